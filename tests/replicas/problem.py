"""One small training that every engine runs, alone and over replicas.

A program of this folder trains every case for three steps of SGD from the
same weights and writes what came out; the test compares the files.
"""

import functools
import itertools

import keras
import numpy as np

import inbatch_neg

STEPS = 3
LEARNING_RATE = 0.5
GLOBAL_ROWS = 16
USERS, ITEMS, DIMENSIONS = 12, 10, 4

# Arguments of the layer, inputs that it gets, and whether `fit` has weights.
CASES = {
    "everything": (
        {"temperature": 0.3},
        ("candidate_ids", "query_ids", "probability", "weight"),
        False,
    ),
    "rotation": (
        {"num_negatives": 11, "seed": 3},
        ("candidate_ids", "query_ids", "probability", "weight"),
        False,
    ),
    "symmetric": (
        {"symmetric": True, "temperature": "learned"},
        ("candidate_ids", "query_ids", "weight"),
        False,
    ),
    "hardest": (
        {"num_negatives": 9, "sampling": "hardest"},
        ("candidate_ids", "query_ids", "extra", "tuples"),
        False,
    ),
    "logits": (
        {"return_logits": True},
        ("candidate_ids", "extra", "tuples"),
        True,
    ),
    "memory": (
        {"temperature": 0.5},
        ("candidate_ids", "query_ids", "estimate", "memory", "weight"),
        False,
    ),
    "memory_alone": ({"num_negatives": 11, "seed": 4}, ("memory",), True),
    "several_vectors": (
        {"symmetric": True, "temperature": 0.5},
        ("candidate_ids", "query_ids", "several", "weight"),
        False,
    ),
    "chunked": ({"temperature": 0.5}, ("candidate_ids", "chunked"), True),
    "sparse": (
        {"temperature": 0.5},
        ("candidate_ids", "query_ids", "weight", "sparse"),
        False,
    ),
    "uncounted": (
        {"temperature": 0.5},
        ("candidate_ids", "query_ids", "extra", "weight", "uncounted"),
        False,
    ),
    # Each replica has as many valid positions as the others.
    "positions": ({"temperature": 0.5}, ("positions",), False),
    "two_shifts_logits": (
        {"num_negatives": 2, "seed": 7, "return_logits": True},
        ("extra",),
        False,
    ),
}

if keras.backend.backend() == "torch":
    del CASES["sparse"]  # refused


def data():
    """Returns the rows of all steps, in order: few ids, so many collide."""
    random = np.random.default_rng(11)
    rows = STEPS * GLOBAL_ROWS
    return {
        "user": random.integers(0, USERS, rows),
        "item": random.integers(0, ITEMS, rows),
        # Two explicit hard negatives of every row, some masked.
        "extra": random.integers(0, ITEMS, (rows, 2)),
        # Not bools: under `tf.distribute`, `fit` of Keras 3.15 adds up a first
        # batch of all inputs, which TensorFlow refuses for bools.
        "extra_mask": random.binomial(1, 0.7, (rows, 2)),
        "candidate_mask": random.binomial(1, 0.8, rows),
        "probability": random.uniform(0.001, 0.3, rows).astype("float32"),
        "weight": random.uniform(0.0, 2.0, rows).astype("float32"),
    }


class TwoTowers(keras.Model):
    """Two towers that end in the layer; both weights are embeddings."""

    def __init__(self, arguments, inputs, cross_replica):
        super().__init__()
        self.inputs_used = inputs
        embedding = keras.layers.Embedding
        if "sparse" in inputs:
            # Of an epsilon that a gradient of the wrong scale shows with.
            embedding = functools.partial(
                inbatch_neg.SparseEmbedding, learning_rate=0.5, epsilon=0.1
            )
        self.users = embedding(USERS, DIMENSIONS, name="users")
        self.items = embedding(ITEMS, DIMENSIONS, name="items")
        self.dense = keras.layers.Dense(DIMENSIONS, name="dense")
        self.softmax = inbatch_neg.InBatchNegativeSoftmax(
            cross_replica=cross_replica, **arguments
        )
        # Not a multiple of the batch: an older one is left in part.
        self.memory = inbatch_neg.CrossBatchMemory(24, warmup_steps=1)
        self.estimate = inbatch_neg.StreamingSamplingProbability(
            64, num_hashes=2
        )

    def join(self):
        """Makes the towers of layers that are built."""
        ids = keras.Input((), dtype="int32")
        self.query_tower = keras.Model(ids, self.dense(self.users(ids)))
        self.item_tower = self.items
        if "chunked" in self.inputs_used:
            # Of 16 or 4 rows, so that the last chunk is a smaller one.
            chunked = inbatch_neg.ChunkedTower
            self.query_tower = chunked(self.query_tower, 3)
            self.item_tower = chunked(self.item_tower, 3)

    def call(self, batch, training=None):
        ops = keras.ops
        used = self.inputs_used
        query = self.query_tower(batch["user"])
        ids = batch["item"]
        given = {}
        if "positions" in used:
            return self.softmax(**self.positions(query, batch))
        if "several" in used:  # two vectors, and a third of half of the users
            query = ops.stack([query, -query, ops.roll(query, 1, 1)], axis=1)
            third = ops.expand_dims(batch["user"] % 2 == 0, 1)
            given["query_mask"] = ops.concatenate(
                [ops.ones_like(third), ops.ones_like(third), third], axis=1
            )
        if "extra" in used:
            ids = ops.concatenate([ids, ops.reshape(batch["extra"], (-1,))])
            extra_mask = ops.reshape(batch["extra_mask"], (-1,))
            mask = ops.concatenate([batch["candidate_mask"], extra_mask])
            given["candidate_mask"] = ops.cast(mask, "bool")
        candidate = self.item_tower(ids)
        if "candidate_ids" in used:
            given["candidate_ids"] = ids
        if "query_ids" in used:
            given["query_ids"] = batch["user"]
        if "probability" in used:
            given["candidate_sampling_probability"] = batch["probability"]
        if "estimate" in used:
            given["candidate_sampling_probability"] = self.estimate(
                batch["item"], training=training
            )
        if "weight" in used:
            given["sample_weight"] = batch["weight"]
        if "uncounted" in used:  # NaN where the mask is False
            mask = given["candidate_mask"]
            candidate = _where(mask, candidate, np.nan)
            query = _where(mask[: ops.shape(query)[0]], query, np.nan)
            given["sample_weight"] *= ops.cast(
                batch["candidate_mask"], "float32"
            )
        if "memory" in used:
            names = ("candidate_ids", "candidate_sampling_probability")
            own = {k: given.pop(k) for k in names if k in given}
            given.update(self.memory(candidate, training=training, **own))
            candidate = given.pop("candidate")
        if "tuples" in used:  # as rows of a positive and two negatives
            candidate = _as_tuples(candidate)
            for name in ("candidate_ids", "candidate_mask"):
                given[name] = _as_tuples(given[name])
        return self.softmax(query, candidate, training=training, **given)

    def positions(self, query, batch):
        """Returns the rows of sequences of 2 and of 1 in turn."""
        ops = keras.ops
        long = ops.arange(ops.shape(query)[0]) % 2 == 0
        second = _where(long, -query, np.nan)
        return inbatch_neg.ops.positions(
            ops.stack([query, second], axis=1),
            self.item_tower(batch["extra"]),
            ops.stack([ops.ones_like(long), long], axis=1),
            candidate_ids=batch["extra"],
            query_ids=batch["user"],
        )


def _as_tuples(tensor):
    positives, *negatives = keras.ops.split(tensor, 3)
    negatives = keras.ops.concatenate(negatives)
    shape = (-1, 2, *tensor.shape[1:])
    negatives = keras.ops.reshape(negatives, shape)
    return keras.ops.concatenate([positives[:, None], negatives], axis=1)


def _where(rows, tensor, otherwise):
    otherwise = keras.ops.full_like(tensor, otherwise)
    return keras.ops.where(rows[:, None], tensor, otherwise)


def model(case, cross_replica, **changes):
    """Returns the built model of a case with fixed weights.

    Args:
        case: A key of `CASES`.
        cross_replica: Argument of the layer.
        changes: Further arguments of the layer.
    """
    arguments, inputs, _ = CASES[case]
    towers = TwoTowers({**arguments, **changes}, inputs, cross_replica)
    towers.users.build((None,))
    towers.items.build((None,))
    towers.dense.build((None, DIMENSIONS))
    towers.join()
    towers.softmax.build((None, DIMENSIONS))
    towers.estimate.build((None,))
    ids = (None,) if "candidate_ids" in inputs else None
    probability = (None,) if "estimate" in inputs else None
    towers.memory.build((None, DIMENSIONS), ids, probability)
    random = np.random.default_rng(5)
    for weight in towers.trainable_weights:
        if weight.name == "accumulators":  # never negative
            continue
        weight.assign(random.normal(size=weight.shape).astype("float32"))
    return towers


def fit_arguments(case):
    """Returns the rows as `fit` takes them: (x,) or (x, y, weights)."""
    rows = data()
    if CASES[case][2]:
        return (rows, np.zeros(len(rows["user"])), rows["weight"])
    return (rows,)


def fit(towers, data, run_eagerly=False, **arguments):
    """Trains with Keras' `fit`; returns the reported losses by epoch."""
    towers.compile(
        keras.optimizers.SGD(LEARNING_RATE),
        loss=inbatch_neg.InBatchNegativeLoss(),
        run_eagerly=run_eagerly,
    )
    history = towers.fit(data, shuffle=False, verbose=0, **arguments)
    return history.history["loss"]


def fit_alone(path):
    """Trains every case on one device, in this process."""
    results = {}
    for case in CASES:
        towers = model(case, cross_replica=False)
        rows, *rest = fit_arguments(case)
        losses = fit(
            towers,
            rows,
            # Tracing takes longer than three steps.
            run_eagerly=keras.backend.backend() == "tensorflow",
            y=rest[0] if rest else None,
            sample_weight=rest[1] if rest else None,
            batch_size=GLOBAL_ROWS,
        )
        results[case] = result(towers, losses)
    save(path, results)


def result(towers, losses):
    """Returns what is compared: every weight, and the mean of the losses."""
    out = {
        f"{number}_{weight.name}": keras.ops.convert_to_numpy(weight)
        for number, weight in enumerate(towers.weights)
    }
    out["loss"] = np.asarray(losses, dtype="float64").mean()
    return out


def save(path, results):
    """Writes the results of all cases to one file."""
    np.savez(
        path,
        **{
            f"{case}/{name}": value
            for case, values in results.items()
            for name, value in values.items()
        },
    )


def batches_from(step, processes):
    """Returns the batches of this process from a step on, without an end."""
    batches = inbatch_neg.full_batches(
        data(),
        GLOBAL_ROWS // processes,
        shuffle=True,
        seed=1,
        shard="auto",
        first_epoch=step // STEPS,
    )
    return itertools.chain.from_iterable(itertools.repeat(batches))


def print_refusals(**other):
    """Prints what `full_batches` says of one different argument at a time."""
    common = {"batch_size": 4, "seed": 1, "rows": 24}
    for name, value in other.items():
        arguments = {**common, name: value}
        rows = np.arange(arguments.pop("rows"))
        try:
            inbatch_neg.full_batches(
                rows, shuffle=True, shard="auto", **arguments
            )
        except ValueError as error:
            print(f"refused: {str(error).split('Received: ')[1]}", flush=True)

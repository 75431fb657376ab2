"""How good and how dear `StreamingSamplingProbability` is.

    python -m tests.benchmarks.sampling_probability [error] [shift] [cost]

On a stream of 10^6 ids with known Zipf probabilities: the relative error by
decile of the traffic (each tenth of the rows, most frequent ids first), how
the estimate follows a sudden change of all frequencies, and the share of a
training step that the layer takes.
"""

import argparse
import time

import keras
import numpy as np

import inbatch_neg

IDS, BUCKETS, ROWS = 1_000_000, 100_000, 4096


class Zipf:
    """Draws ids with probabilities that fall as 1 / rank."""

    def __init__(self, ids, seed):
        self.random = np.random.default_rng(seed)
        probability = 1.0 / np.arange(1, ids + 1)
        self.by_rank = probability / probability.sum()
        self.edges = np.cumsum(self.by_rank)
        self.ids = self.random.permutation(ids)  # by rank

    def batch(self, rows):
        rank = np.searchsorted(self.edges, self.random.random(rows))
        return self.ids[np.minimum(rank, len(self.ids) - 1)]

    def shift(self):
        """Gives every id another frequency."""
        self.ids = self.random.permutation(self.ids)

    def deciles(self):
        """Returns the decile of traffic of each rank, 0 the most frequent."""
        middle = self.edges - self.by_rank / 2
        return np.minimum((10 * middle).astype(int), 9)


def estimates(layer, ids, rows=10_000):
    """Returns the estimate of each id, without learning from it."""
    return np.concatenate(
        [
            keras.ops.convert_to_numpy(layer(part, training=False))
            for part in np.split(ids.astype("int32"), len(ids) // rows)
        ]
    )


class Learner:
    """Compiled training steps of a model that is nothing but the layer."""

    def __init__(self, layer):
        ids = keras.Input((), batch_size=ROWS, dtype="int32")
        # Without a trainable weight there would be no training.
        scale = keras.layers.Dense(1)
        probability = keras.ops.expand_dims(layer(ids), -1)
        self.model = keras.Model(ids, scale(probability))
        self.model.compile("sgd", loss=lambda _, y: 0.0 * y)

    def learn(self, stream, steps):
        def batches():
            for _ in range(steps):
                ids = stream.batch(ROWS).astype("int32")
                yield ids, np.zeros((ROWS, 1), "float32")

        if steps:
            self.model.fit(batches(), steps_per_epoch=steps, verbose=0)


def errors(layer, stream):
    """Returns rows (ids, mean |error|, mean log2 ratio) by decile.

    Weighted as in training: by how often an id comes.
    """
    ratio = estimates(layer, stream.ids) / stream.by_rank
    rows = []
    for decile in range(10):
        ranks = stream.deciles() == decile
        weights = stream.by_rank[ranks]
        error = np.average(abs(ratio[ranks] - 1), weights=weights)
        log = np.average(np.log2(ratio[ranks]), weights=weights)
        rows.append((int(ranks.sum()), error, log))
    return rows


def report_errors(steps):
    print(f"\nRelative error by decile of traffic, {steps} steps of {ROWS}")
    settings = [(BUCKETS, 1), (BUCKETS, 4), (IDS, 1), (IDS, 2)]
    columns = []
    for buckets, hashes in settings:
        layer = inbatch_neg.StreamingSamplingProbability(
            buckets, num_hashes=hashes
        )
        stream = Zipf(IDS, seed=0)
        Learner(layer).learn(stream, steps)
        columns.append(errors(layer, stream))
    print("buckets x hashes: mean |error|, mean log2(estimate / truth)")
    names = [f"{b:,} x {h}" for b, h in settings]
    print(f"{'decile':>6} {'ids':>8}" + "".join(f"{n:>18}" for n in names))
    for decile in range(10):
        cells = [column[decile] for column in columns]
        print(
            f"{decile + 1:>6} {cells[0][0]:>8,}"
            + "".join(f"{e:>10.3f}{log:>+8.2f}" for _, e, log in cells)
        )


def report_shift(steps):
    print(
        f"\nAll frequencies change after {steps} steps of {ROWS}: mean "
        "|log2(estimate / truth)| of the upper half of the traffic"
    )
    after = [0, 1, 10, 100, 300, 1000]
    print("steps after".rjust(16) + "".join(f"{n:>8}" for n in after))
    for rate in (0.01, 0.05):
        layer = inbatch_neg.StreamingSamplingProbability(
            BUCKETS, learning_rate=rate, num_hashes=4
        )
        stream, learner = Zipf(IDS, seed=1), Learner(layer)
        learner.learn(stream, steps)
        line = [f"{_half(layer, stream):.2f} before"]
        stream.shift()
        for previous, now in zip([0, *after], after):
            learner.learn(stream, now - previous)
            line.append(f"{_half(layer, stream):8.2f}")
        print(f"rate {rate:<4} " + "".join(line))


def _half(layer, stream):
    upper = stream.edges <= 0.5
    ratio = estimates(layer, stream.ids[:10_000])[upper[:10_000]]
    truth = stream.by_rank[upper]
    return np.average(abs(np.log2(ratio / truth)), weights=truth)


def training_step(estimator, ids=10_000, dimensions=64):
    """Returns a compiled two-tower step (batch -> None)."""
    user = keras.Input((), dtype="int32", name="user")
    item = keras.Input((), dtype="int32", name="item")
    given = keras.Input((), dtype="float32", name="given")
    towers = [
        keras.layers.UnitNormalization()(
            keras.layers.Embedding(ids, dimensions)(number)
        )
        for number in (user, item)
    ]
    probability = given if estimator is None else estimator(item)
    losses = inbatch_neg.InBatchNegativeSoftmax(temperature=0.2)(
        *towers,
        candidate_ids=item,
        candidate_sampling_probability=probability,
    )
    model = keras.Model({"user": user, "item": item, "given": given}, losses)
    model.compile("adam", loss=inbatch_neg.InBatchNegativeLoss())
    return model.train_on_batch


def report_cost(repeats):
    """Alternates, so that a busy machine slows all of them alike."""
    random = np.random.default_rng(0)
    batch = {
        "user": random.integers(0, 10_000, ROWS).astype("int32"),
        "item": random.zipf(1.3, ROWS).astype("int32") % 10_000,
        "given": np.full(ROWS, 1e-3, "float32"),
    }
    settings = [None, (BUCKETS, 1), (BUCKETS, 4), (IDS, 1)]
    steps = []
    for setting in settings:
        estimator = setting and inbatch_neg.StreamingSamplingProbability(
            setting[0], num_hashes=setting[1]
        )
        steps.append(training_step(estimator))
        steps[-1](batch)
    seconds = [[] for _ in steps]
    for _ in range(repeats):
        for step, spent in zip(steps, seconds):
            start = time.perf_counter()
            step(batch)
            spent.append(time.perf_counter() - start)
    print(f"\nTraining step of {ROWS} rows, 64 dimensions, 10,000 ids")
    # The fastest of many: what other processes do only ever adds time.
    without, *others = (1e3 * min(spent) for spent in seconds)
    print(f"{'probability given':>20} {without:7.2f} ms")
    for setting, spent in zip(settings[1:], others):
        name = f"{setting[0]:,} x {setting[1]}"
        print(f"{name:>20} {spent:7.2f} ms, {spent / without - 1:+.1%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["error", "shift", "cost"])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    print(f"Keras {keras.__version__} on {keras.backend.backend()}")
    if "error" in options.parts:
        report_errors(options.steps)
    if "shift" in options.parts:
        report_shift(options.steps)
    if "cost" in options.parts:
        report_cost(options.repeats)


if __name__ == "__main__":
    main()

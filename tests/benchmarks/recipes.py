"""What a training step of each recipe of the MovieLens example takes.

    python -m tests.benchmarks.recipes [NAME ...]

Compiled steps of 1024 random rows with MovieLens-100K's numbers of users and
items. The recipes take turns, so that a busy machine slows all of them alike,
and the fastest of many steps counts: others only ever add time.
"""

import argparse
import pathlib
import sys
import time

import keras
import numpy as np

import inbatch_neg

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"
USERS, ITEMS, ROWS = 943, 1682, 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    sys.path.insert(0, str(EXAMPLES))
    import movielens
    import movielens_data

    names = options.names or list(movielens.RECIPES)
    random = np.random.default_rng(0)
    items = np.minimum(random.zipf(1.3, 97 * ROWS) - 1, ITEMS - 1)
    split = movielens_data.Split(
        users=random.integers(0, USERS, len(items)),
        items=items,
        validation=np.zeros(USERS, int),
        test=np.zeros(USERS, int),
        num_items=ITEMS,
    )
    steps = []
    for name in names:
        model, *_ = movielens.build(movielens.RECIPES[name], split, seed=0)
        model.compile("adam", loss=inbatch_neg.InBatchNegativeLoss())
        steps.append(model.train_on_batch)
    seconds = [[] for _ in names]
    for repeat in range(options.repeats):
        rows = slice(repeat % 97 * ROWS, (repeat % 97 + 1) * ROWS)
        probability = split.probability[items[rows]].astype("float32")
        batch = [
            split.users[rows].astype("int32"),
            items[rows].astype("int32"),
            probability,
        ]
        for step, spent in zip(steps, seconds):
            start = time.perf_counter()
            step(batch)
            spent.append(time.perf_counter() - start)
    print(f"Keras {keras.__version__} on {keras.backend.backend()}")
    best = {name: min(spent) for name, spent in zip(names, seconds)}
    base = best.get("recipe", best[names[0]])
    for name, spent in best.items():
        print(f"{name:>10} {1e3 * spent:7.2f} ms, {spent / base:5.2f} x")


if __name__ == "__main__":
    main()

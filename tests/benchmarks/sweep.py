"""Recall of the README's recipe by temperature, batch size, and others.

    pip install "inbatch_neg[benchmark]"
    python -m tests.benchmarks.sweep --json sweep.json

Trains the recipe on MovieLens-100K as `tests.benchmarks.quality` does, with one
thing changed at a time, and prints the tables of
docs/batch-size-and-temperature.md: means and standard deviations over the
seeds. The epoch is chosen by NDCG@10 on the validation items, and so is the
learning rate of batch sizes and of dot products. `--json` keeps each training,
and goes on where an earlier run stopped.
"""

import argparse
import json
import pathlib
from typing import NamedTuple

import numpy as np

from tests.benchmarks import quality

EPOCHS, PATIENCE = 40, 6
RATES = (3e-3, 1e-2, 3e-2)


class Point(NamedTuple):
    """What is varied."""

    temperature: float = quality.TEMPERATURE
    batch_size: int = quality.BATCH
    dimensions: int = quality.DIMENSIONS
    exponent: float = 1.0  # of q
    unit_length: bool = True


RECIPE = Point()
DOT_PRODUCT = Point(unit_length=False)
# The name of what is varied, its values, and what the rest is.
TABLES = (
    ("temperature", (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0), RECIPE),
    ("temperature", (0.5, 1.0, 2.0), DOT_PRODUCT),
    ("batch_size", (256, 1024, 4096), RECIPE),
    ("dimensions", (16, 64, 128), RECIPE),
    ("exponent", (0.0, 0.5, 1.0, 1.5), RECIPE),
)


def train(split, point, rate, seed):
    """Returns the figures of the best epoch, and its number from 1."""
    settings = quality.Settings(
        point.unit_length,
        point.dimensions,
        point.batch_size,
        rate,
        EPOCHS,
        PATIENCE,
    )
    losses = quality.recipe_losses(point.temperature, point.exponent)
    epoch, (validation, test) = quality.best(
        quality.two_towers(split, seed, losses, settings)
    )
    return {"epoch": epoch + 1, "validation": validation, "test": test}


class Trainings:
    """All trainings, each done once and kept in a file."""

    def __init__(self, file):
        self.file, self.done = file, {}
        if file and file.exists():
            self.done = json.loads(file.read_text())
        self._split = None

    def __call__(self, point, rate, seed):
        """Returns what `train` found."""
        key = json.dumps([*point, rate, seed])
        if key not in self.done:
            if self._split is None:
                self._split = quality.load_split()
            self.done[key] = train(self._split, point, rate, seed)
            print(key, self.done[key], flush=True)
            if self.file:
                self.file.write_text(json.dumps(self.done, indent=1))
        return self.done[key]

    def best_rate(self, point):
        """Returns the recipe's learning rate, or the best one of seed 0."""
        if point.unit_length and point.batch_size == RECIPE.batch_size:
            return quality.RATE
        return max(RATES, key=lambda r: self(point, r, 0)["validation"][1])


def table(trainings, name, values, rest, seeds):
    """Returns the lines of a table, in Markdown."""
    lines = [
        f"| {name} | Recall@10 | NDCG@10 | validation NDCG@10 | rate | epoch |",
        "|---|---|---|---|---|---|",
    ]
    for value in values:
        point = rest._replace(**{name: value})
        rate = trainings.best_rate(point)
        found = [trainings(point, rate, seed) for seed in range(seeds)]
        cells = [
            spread([one[part][column] for one in found])
            for part, column in (("test", 0), ("test", 1), ("validation", 1))
        ]
        epoch = np.mean([one["epoch"] for one in found])
        row = [str(value), *cells, str(rate), f"{epoch:.0f}"]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def spread(values):
    """Returns the mean and the deviation, as text."""
    text = f"{np.mean(values):.3f}"
    if len(values) > 1:
        text += f" +- {np.std(values, ddof=1):.3f}"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="keeps trainings")
    options = parser.parse_args()
    trainings = Trainings(options.json)
    for name, values, rest in TABLES:
        title = "towers of unit length" if rest.unit_length else "dot product"
        lines = table(trainings, name, values, rest, options.seeds)
        print(f"\n{title}:\n", *lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()

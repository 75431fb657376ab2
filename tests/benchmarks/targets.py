"""What the package claims of its speed and memory: one table.

`python -m tests.benchmarks --check` measures what the table names.
"""

import statistics
from typing import NamedTuple


class Target(NamedTuple):
    """A figure and its limit.

    Attributes:
        claim: In words.
        quantity: "seconds" or "extra_bytes".
        of: "measurement:contender" whose quantity is meant.
        per: Likewise what it is divided by, or None.
        comparison: ">=" or "<=".
        limit: What the figure is compared with.
    """

    claim: str
    quantity: str
    of: str
    per: str | None
    comparison: str
    limit: float

    def figure(self, results):
        """Returns the median over the rounds, None if it was not measured.

        Args:
            results: {measurement: {contender: [what the worker printed]}},
                contenders without their engine.
        """
        values = self._values(self.of, results)
        if self.per is not None:
            values = [
                value / other
                for value, other in zip(values, self._values(self.per, results))
            ]
        return statistics.median(values) if values else None

    def is_met(self, figure):
        """Whether the figure is on the right side of the limit."""
        if self.comparison == ">=":
            return figure >= self.limit
        return figure <= self.limit

    def _values(self, name, results):
        measurement, contender = name.split(":")
        rounds = results.get(measurement, {}).get(contender, [])
        return [result[self.quantity] for result in rounds]


def _speedup(measurement, peer, limit):
    return Target(
        f"{measurement}: times as fast as {peer}",
        "seconds",
        f"{measurement}:{peer}",
        f"{measurement}:ours",
        ">=",
        limit,
    )


def _memory_share(measurement, peer, limit):
    return Target(
        f"{measurement}: share of the memory of {peer}",
        "extra_bytes",
        f"{measurement}:ours",
        f"{measurement}:{peer}",
        "<=",
        limit,
    )


def _evaluation(measurement):
    return Target(
        f"{measurement}: share of the time of a training step",
        "seconds",
        f"{measurement}:evaluation",
        f"{measurement}:training",
        "<=",
        0.5,
    )


def _growth(quantity, word, limit):
    return Target(
        f"{word} at 65,536 rows over that at 16,384",
        quantity,
        "scale-65536:ours",
        "scale-16384:ours",
        "<=",
        limit,
    )


TARGETS = (
    _speedup("tensorflow-8192", "tfrs", 1.7),
    _speedup("tensorflow-8192", "keras_rs", 2.0),
    _memory_share("tensorflow-8192", "tfrs", 1 / 8),
    _memory_share("tensorflow-8192", "keras_rs", 1 / 8),
    _speedup("tensorflow-8192-rules", "tfrs", 1.7),
    _speedup("tensorflow-8192-rules", "keras_rs", 2.0),
    _memory_share("tensorflow-8192-rules", "tfrs", 1 / 8),
    _memory_share("tensorflow-8192-rules", "keras_rs", 1 / 8),
    _speedup("tensorflow-4096", "tfrs", 1.7),
    _speedup("tensorflow-4096", "keras_rs", 2.0),
    _speedup("tensorflow-4096-rules", "tfrs", 1.7),
    _speedup("tensorflow-4096-rules", "keras_rs", 2.0),
    _speedup("jax-8192", "plain", 1.5),
    _speedup("torch-8192", "plain", 1.7),
    _speedup("torch-8192", "sentence_transformers", 3.0),
    _speedup("rotation-20", "article", 1.5),
    _memory_share("rotation-20", "article", 0.5),
    _speedup("rotation-100", "article", 1.5),
    _memory_share("rotation-100", "article", 0.5),
    _evaluation("evaluate-8192"),
    _evaluation("evaluate-8192-rules"),
    Target(
        "scale-65536: extra memory in bytes",
        "extra_bytes",
        "scale-65536:ours",
        None,
        "<=",
        0.6e9,
    ),
    # 4 times the rows: 16 times the time and 4 times the memory, and a
    # quarter more for a machine that is not at rest.
    _growth("seconds", "time", 20.0),
    _growth("extra_bytes", "memory", 5.0),
)


def names():
    """Returns the "measurement:contender" that the table needs."""
    return sorted(
        {target.of for target in TARGETS}
        | {target.per for target in TARGETS if target.per is not None}
    )

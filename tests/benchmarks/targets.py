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


def _share_of_limit(measurement, limit):
    return Target(
        f"{measurement}: share of the limit, three TensorFlow products",
        "seconds",
        f"{measurement}:limit",
        f"{measurement}:ours",
        ">=",
        limit,
    )


def _times_as_long(claim, of, per, limit):
    return Target(claim, "seconds", of, per, "<=", limit)


def _half(engine):
    # A twentieth for the noise of the machine.
    return [
        _times_as_long(
            f"half-{engine}-8192: time with {dtype} over float32",
            f"half-{engine}-8192:ours_{dtype}",
            f"half-{engine}-8192:ours",
            1.05,
        )
        for dtype in ("bfloat16", "float16")
    ]


def _small(engine, peers=("plain",)):
    # Likewise.
    return [
        _speedup(f"{engine}-{rows}", peer, 0.95)
        for rows in (256, 1024)
        for peer in peers
    ]


def _peers(size, speed=None):
    """Beside PyTorch's own loss in chunks, `ours` with ids, too."""
    name, peer = f"peers-{size}", "linear_cross_entropy"
    memory = Target(
        f"{name}: share of the memory of {peer}",
        "extra_bytes",
        f"{name}:ours_log_q",
        f"{name}:{peer}",
        "<=",
        1.0,
    )
    if speed is None:
        return [memory]
    plain, ids = (
        Target(
            f"{name}: times as fast as {peer}{words}",
            "seconds",
            f"{name}:{peer}",
            f"{name}:{ours}",
            ">=",
            limit,
        )
        for words, ours, limit in (
            ("", "ours_log_q", speed),
            (", ids on our side alone", "ours", 1.0),
        )
    )
    return [plain, ids, memory]


def _growth(quantity, word, limit):
    return Target(
        f"{word} at 65,536 rows over that at 16,384",
        quantity,
        "scale-65536:ours",
        "scale-16384:ours",
        "<=",
        limit,
    )


def _memory(measurement, limit, contender="ours"):
    return Target(
        f"{measurement}: extra memory in bytes",
        "extra_bytes",
        f"{measurement}:{contender}",
        None,
        "<=",
        limit,
    )


TARGETS = (
    _speedup("tensorflow-8192", "tfrs", 2.2),
    _speedup("tensorflow-8192", "keras_rs", 2.4),
    _share_of_limit("tensorflow-8192", 0.9),
    _memory_share("tensorflow-8192", "tfrs", 1 / 8),
    _memory_share("tensorflow-8192", "keras_rs", 1 / 8),
    _speedup("tensorflow-8192-rules", "tfrs", 2.2),
    _speedup("tensorflow-8192-rules", "keras_rs", 2.4),
    _memory_share("tensorflow-8192-rules", "tfrs", 1 / 8),
    _memory_share("tensorflow-8192-rules", "keras_rs", 1 / 8),
    _times_as_long(
        "tensorflow-8192: time with ids and probabilities over without",
        "tensorflow-8192-rules:ours",
        "tensorflow-8192:ours",
        1.15,
    ),
    _times_as_long(
        "upstream-8192: time with uneven weights over even ones",
        "upstream-8192:ours_uneven",
        "upstream-8192:ours",
        1.8,
    ),
    _speedup("tensorflow-4096", "tfrs", 2.0),
    _speedup("tensorflow-4096", "keras_rs", 2.4),
    _speedup("tensorflow-4096-rules", "tfrs", 2.0),
    _speedup("tensorflow-4096-rules", "keras_rs", 2.4),
    *_small("tensorflow", ("plain", "plain_xla")),
    *_small("jax"),
    *_small("torch"),
    _speedup("jax-8192", "plain", 1.8),
    _share_of_limit("jax-8192", 0.65),
    _speedup("torch-8192", "plain", 2.2),
    _speedup("torch-8192", "sentence_transformers", 3.0),
    *_peers("2048x64", 1.2),
    *_peers("8192x64", 1.2),
    *_peers("4096x128", 1.2),
    *_peers("4096x768"),
    _share_of_limit("torch-8192", 0.75),
    *_half("tensorflow"),
    *_half("jax"),
    *_half("torch"),
    _speedup("rotation-4", "article", 2.0),
    _speedup("rotation-20", "article", 2.0),
    _speedup("rotation-100", "article", 2.0),
    _memory_share("rotation-20", "article", 0.5),
    _memory_share("rotation-100", "article", 0.25),
    _speedup("vectors-4", "tfrs", 2.0),
    _memory_share("vectors-4", "tfrs", 1 / 8),
    _times_as_long(
        "positions-25600: time with ids, probabilities and padding over plain",
        "positions-25600:positions",
        "positions-25600:ours",
        1.3,
    ),
    # 0.9 of the share at 16,384 rows, which is 0.97.
    _share_of_limit("positions-25600", 0.87),
    _memory("positions-25600", 200e6, "positions"),
    _times_as_long(
        "layer-8192: time of evaluation over a training step",
        "layer-8192:evaluation",
        "layer-8192:training",
        0.5,
    ),
    _times_as_long(
        "layer-8192-rules: time of evaluation over a training step",
        "layer-8192-rules:evaluation",
        "layer-8192-rules:training",
        0.5,
    ),
    _times_as_long(
        "layer-8192: time of both directions over one",
        "layer-8192:symmetric",
        "layer-8192:training",
        2.1,
    ),
    _memory("scale-65536", 0.6e9),
    _memory("scale-131072", 1e9),
    # 4 times the rows: 16 times the time and 4 times the memory, and a
    # quarter more for a machine that is not at rest.
    _growth("seconds", "time", 20.0),
    _growth("extra_bytes", "memory", 5.0),
)


def names(quantity=None):
    """Returns the "measurement:contender" that the table needs.

    Args:
        quantity: Those whose quantity this is alone, or None for all.
    """
    return sorted(
        name
        for target in TARGETS
        if quantity in (None, target.quantity)
        for name in (target.of, target.per)
        if name is not None
    )

"""What is measured: which contenders, on batches of which size."""

import importlib.util
from typing import NamedTuple

_TENSORFLOW = tuple(
    f"tensorflow/{name}"
    for name in ("ours", "tfrs", "keras_rs", "plain", "limit")
)
_JAX = ("jax/ours", "jax/plain", "jax/own_limit", "tensorflow/limit")
_TORCH = (
    "torch/ours",
    "torch/plain",
    "torch/linear_cross_entropy",
    "torch/sentence_transformers",
    "torch/own_limit",
    "tensorflow/limit",
)
# Here with probabilities, and `ours` with ids too: the peers have none.
_PEERS = tuple(
    f"torch/{name}"
    for name in ("ours_log_q", "ours", "linear_cross_entropy", "plain")
)
# What the backend of PyTorch does for speed on a CPU, left out in turn.
_TORCH_CPU = tuple(
    f"torch/{name}" for name in ("ours", "ours_mkl", "ours_returned_memory")
)
# B and D.
_PEER_SIZES = (
    *((rows, 64) for rows in (256, 1024, 2048, 8192)),
    (4096, 128),
    (4096, 768),
)
_ROTATION = tuple(
    f"tensorflow_rotation/{name}"
    for name in ("ours", "article", "one_concatenation", "hardest")
)
_POSITIONS = tuple(
    f"tensorflow/{name}" for name in ("ours", "positions", "limit")
)
_TUPLES = tuple(
    f"torch/{name}"
    for name in (
        "ours",
        "linear_cross_entropy",
        "plain",
        "sentence_transformers",
    )
)
_VECTORS = tuple(f"tensorflow/{name}" for name in ("ours", "tfrs", "limit"))
_LAYER = tuple(
    f"tensorflow_layer/{name}"
    for name in ("training", "evaluation", "symmetric")
)
_STEP = ("ours", "ours_xla", "tfrs", "keras_rs")
_TOWERS = ("movielens", "mlp")
_ENGINES = ("tensorflow", "jax", "torch")
# The forms that win for small batches elsewhere.
_SMALL = {
    "tensorflow": ("ours", "plain", "plain_xla"),
    "jax": ("ours", "plain"),
    "torch": ("ours", "plain"),
}

# What a contender needs, and the extra of the package that brings it.
_NEEDED = {
    "jax": (("jax",), "jax"),
    "torch": (("torch",), "torch"),
    "tfrs": (("tensorflow_recommenders", "tf_keras"), "benchmark"),
    "keras_rs": (("keras_rs",), "benchmark"),
    "sentence_transformers": (("sentence_transformers",), "benchmark"),
}

# Contenders that compute another loss, so that theirs is not compared. With
# ids, `RemoveAccidentalHits` of keras-rs adds 1e-40 to a score that it should
# remove. On PyTorch the peers have no ids.
_OTHER_MATHS = ("ours_uneven", "ours_bfloat16", "ours_float16", "hardest")
_OTHER_MATHS += ("symmetric", "positions")


def is_same_maths(contender, with_rules):
    """Whether a contender must have the loss of the others."""
    if contender in ("tensorflow/keras_rs", "torch/ours"):
        return not with_rules
    return contender.split("/")[1] not in _OTHER_MATHS


class Measurement(NamedTuple):
    """Contenders that take turns on the same batch.

    Attributes:
        name: The name that `--only` and the targets use.
        contenders: "engine/function", the first is the one of reference.
        rows: B.
        with_rules: Whether ids and sampling probabilities are given.
        negatives: N rotations.
        vectors: P, of a query.
        dimensions: D; None for that of the command line.
        hard_negatives: K, of a row.
    """

    name: str
    contenders: tuple
    rows: int
    with_rules: bool = False
    negatives: int = 0
    vectors: int = 1
    dimensions: int | None = None
    hard_negatives: int = 0

    @property
    def is_scale(self):
        """Whether it is part of the table over B, where peers may fail."""
        return self.name.startswith("scale-")


def every(largest, quick):
    """Returns all measurements.

    Args:
        largest: Most rows of the table over B.
        quick: Whether only small batches are wanted.
    """
    sizes = (2048,) if quick else (4096, 8192)
    result = [
        Measurement(
            f"{engine}-{rows}",
            tuple(f"{engine}/{name}" for name in names),
            rows,
        )
        for rows in (256, 1024)
        for engine, names in _SMALL.items()
    ]
    result += [
        _with_or_without_rules("tensorflow", _TENSORFLOW, rows, with_rules)
        for rows in sizes
        for with_rules in (False, True)
    ]
    most = sizes[-1]
    result += [
        Measurement(
            f"limit-{most}",
            tuple(
                f"tensorflow/{name}"
                for name in ("ours", "limit", "limit_in_chunks")
            ),
            most,
        ),
        Measurement(f"jax-{most}", _JAX, most),
        Measurement(f"torch-{most}", _TORCH, most),
        Measurement(f"cpu-torch-{most}", _TORCH_CPU, most),
        *(
            Measurement(
                f"peers-{rows}x{dimensions}",
                _PEERS,
                rows,
                with_rules=True,
                dimensions=dimensions,
            )
            for rows, dimensions in _PEER_SIZES
            if rows <= most
        ),
        Measurement(
            f"upstream-{most}",
            ("tensorflow/ours", "tensorflow/ours_uneven"),
            most,
        ),
    ]
    result += [
        Measurement(
            f"half-{engine}-{most}",
            tuple(
                f"{engine}/ours{suffix}"
                for suffix in ("", "_bfloat16", "_float16")
            ),
            most,
        )
        for engine in _ENGINES
    ]
    result += [
        Measurement(f"rotation-{n}", _ROTATION, sizes[0], negatives=n)
        for n in (4, 20, 100)
    ]
    result += [
        Measurement(f"vectors-{count}", _VECTORS, sizes[0], vectors=count)
        for count in (2, 4, 8)
    ]
    result += [
        Measurement(
            f"tuples-{rows}x{dimensions}",
            _TUPLES,
            rows,
            dimensions=dimensions,
            hard_negatives=4,
        )
        for rows, dimensions in ((1024, 64), (most, 384))
    ]
    if not quick:  # 512 windows of 50 positions
        result.append(Measurement("positions-25600", _POSITIONS, 25_600))
    result += [
        _with_or_without_rules("layer", _LAYER, most, with_rules)
        for with_rules in (False, True)
    ]
    result += [
        Measurement(
            f"step-{towers}-{rows}",
            tuple(f"tensorflow_{towers}/{name}" for name in _STEP),
            rows,
        )
        for towers in _TOWERS
        for rows in sizes
    ]
    rows = 1024
    while rows <= (min(largest, most) if quick else largest):
        result.append(Measurement(f"scale-{rows}", _TENSORFLOW, rows))
        rows *= 2
    return result


def _with_or_without_rules(name, contenders, rows, with_rules):
    suffix = "-rules" if with_rules else ""
    return Measurement(f"{name}-{rows}{suffix}", contenders, rows, with_rules)


def only(measurements, names):
    """Returns the measurements, and of them the contenders, that are named.

    Args:
        measurements: List of `Measurement`.
        names: Each the beginning of a measurement's name, which means all its
            contenders, or "measurement:contender", the contender without its
            engine. The contender of reference is always kept.
    """
    result = []
    unused = set(names)
    for measurement in measurements:
        kept = set()
        for name in names:
            start, _, wanted = name.partition(":")
            if measurement.name.startswith(start):
                found = [
                    contender
                    for contender in measurement.contenders
                    if wanted in ("", contender.split("/")[1])
                ]
                kept.update(found)
                if found:
                    unused.discard(name)
        if kept:
            kept.add(measurement.contenders[0])
            contenders = [c for c in measurement.contenders if c in kept]
            result.append(measurement._replace(contenders=tuple(contenders)))
    if unused:
        raise SystemExit(
            f"`--only` names nothing that is measured: {sorted(unused)}. "
            "Measurements: " + ", ".join(m.name for m in measurements)
        )
    return result


def require_installed(measurements):
    """Exits with what to install, if a contender's library is missing."""
    asked_for = {
        part
        for measurement in measurements
        for contender in measurement.contenders
        for part in contender.split("/")
    }
    missing = {}
    for name in sorted(asked_for & set(_NEEDED)):
        modules, extra = _NEEDED[name]
        for module in modules:
            if importlib.util.find_spec(module) is None:
                missing.setdefault(extra, []).append(module)
    if missing:
        raise SystemExit(
            "\n".join(
                f"Not installed: {', '.join(modules)}. "
                f'pip install "inbatch_neg[{extra}]"'
                for extra, modules in missing.items()
            )
            + "\nOr leave it out with `--only`."
        )

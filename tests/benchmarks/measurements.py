"""What is measured: which contenders, on batches of which size."""

import importlib.util
from typing import NamedTuple

_TENSORFLOW = tuple(
    f"tensorflow/{name}"
    for name in ("ours", "tfrs", "keras_rs", "plain", "limit")
)
_JAX = ("jax/ours", "jax/plain", "jax/limit")
_TORCH = (
    "torch/ours",
    "torch/plain",
    "torch/sentence_transformers",
    "torch/limit",
)
_ROTATION = tuple(
    f"tensorflow_rotation/{name}"
    for name in ("ours", "article", "one_concatenation")
)
_LAYER = ("tensorflow_layer/training", "tensorflow_layer/evaluation")

# What a contender needs, and the extra of the package that brings it.
_NEEDED = {
    "jax": (("jax",), "jax"),
    "torch": (("torch",), "torch"),
    "tfrs": (("tensorflow_recommenders", "tf_keras"), "benchmark"),
    "keras_rs": (("keras_rs",), "benchmark"),
    "sentence_transformers": (("sentence_transformers",), "benchmark"),
}

# `RemoveAccidentalHits` of keras-rs adds 1e-40 to a score that it should
# remove, so with ids it computes another loss.
OTHER_MATHS = {("tensorflow/keras_rs", True)}


class Measurement(NamedTuple):
    """Contenders that take turns on the same batch.

    Attributes:
        name: The name that `--only` and the targets use.
        contenders: "engine/function", the first is the one of reference.
        rows: B.
        with_rules: Whether ids and sampling probabilities are given.
        negatives: N rotations.
    """

    name: str
    contenders: tuple
    rows: int
    with_rules: bool = False
    negatives: int = 0

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
        _with_or_without_rules("tensorflow", _TENSORFLOW, rows, with_rules)
        for rows in sizes
        for with_rules in (False, True)
    ]
    most = sizes[-1]
    result += [
        Measurement(f"jax-{most}", _JAX, most),
        Measurement(f"torch-{most}", _TORCH, most),
    ]
    result += [
        Measurement(f"rotation-{n}", _ROTATION, sizes[0], negatives=n)
        for n in (4, 20, 100)
    ]
    result += [
        _with_or_without_rules("evaluate", _LAYER, most, with_rules)
        for with_rules in (False, True)
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

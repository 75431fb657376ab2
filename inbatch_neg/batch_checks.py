"""Checks of the tensors of a batch: shapes, dtypes and some values.

Like the checks in `arguments`, they read static shapes and dtypes, so they
work for symbolic tensors, while tracing and for values. Values are read only
where that is cheap.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import keras

from inbatch_neg.arguments import (
    FLOATS,
    check_dtype,
    check_rank,
    sizes_differ,
    to_tensor,
)
from inbatch_neg.backends import backend
from inbatch_neg.softmax.batch import Batch
from inbatch_neg.types import Tensor

_logger = logging.getLogger("inbatch_neg")

# More hard negatives than this are rare; sequences without pooling are not.
_MANY_NEGATIVES = 64


def bind(call: Callable, args: tuple, kwargs: dict[str, Any]) -> Batch:
    """Returns the batch that is passed to the `call` of a layer."""
    passed = inspect.signature(call).bind(*args, **kwargs).arguments
    passed.pop("training", None)
    return Batch(**passed)


def to_tensors(batch: Batch) -> Batch:
    """Returns the batch as tensors, with unchanged dtypes."""
    return Batch(*map(to_tensor, Batch._fields, batch))


def check_vectors(
    query: Tensor, candidate: Tensor, several: bool = False
) -> None:
    """Refuses queries and candidates of a wrong shape or dtype.

    Args:
        query: (B, D).
        candidate: (C, D).
        several: Whether queries (B, P, D) or candidates (B, 1 + K, D) are
            allowed too.
    """
    if several and _has_vectors(query) and _has_vectors(candidate):
        raise ValueError(
            "`query` and `candidate` must not both have rank 3: n-tuples of "
            "candidates need one vector per query. Fix: flatten sequences "
            "with `inbatch_neg.ops.positions`, and n-tuples to rows, the "
            "positives first. "
            f"Received: {_shapes(query, candidate)}"
        )
    for name, tensor in (("query", query), ("candidate", candidate)):
        if several and _has_vectors(tensor):
            _check_vectors_per_row(name, tensor)
        else:
            check_rank(name, tensor, 2, "(rows, dimensions)")
        check_dtype(name, tensor, FLOATS, "floats.")
    rows, *_, dimensions = query.shape
    candidates, *negatives, candidate_dimensions = candidate.shape
    shapes = _shapes(query, candidate)
    if sizes_differ(dimensions, candidate_dimensions):
        raise ValueError(
            "`query` and `candidate` must have the same number of dimensions "
            "(columns). Fix: give both towers the same output size. "
            f"Received: {shapes}"
        )
    if sizes_differ(rows, candidates) and candidates < rows:
        raise ValueError(
            "`candidate` must have at least as many rows as `query`: row i is "
            f"the positive of query i. Received: {shapes}"
        )
    if negatives:
        _check_tuples(rows, candidate, shapes)


def _check_tuples(rows: int | None, candidate: Tensor, shapes: str) -> None:
    """Refuses n-tuples of other rows; logs what looks like sequences."""
    if sizes_differ(rows, candidate.shape[0]):
        raise ValueError(
            "`candidate` of shape (rows, 1 + negatives, dimensions) must have "
            f"one row per query. Received: {shapes}"
        )
    if candidate.shape[1] > 1 + _MANY_NEGATIVES:
        _log_many_negatives(candidate.shape[1] - 1)


@functools.cache
def _log_many_negatives(count: int) -> None:
    _logger.warning(
        "`candidate` of shape (rows, %d, dimensions) has a positive and %d "
        "hard negatives in each row. If these are the steps of a sequence, "
        "end the tower with `keras.layers.GlobalAveragePooling1D()`.",
        1 + count,
        count,
    )


def check_batch(batch: Batch) -> None:
    """Refuses a batch whose tensors do not fit each other.

    Args:
        batch: Symbolic tensors or values.
    """
    check_vectors(batch.query, batch.candidate, several=True)
    check_query_mask(batch.query_mask, batch.query)
    for name in _FIELDS:
        check_field(batch, name)


def check_field(batch: Batch, name: str) -> None:
    """Refuses one of `_FIELDS` that is not one such value per row.

    Args:
        batch: Symbolic tensors or values; the field may be missing.
        name: Name of the field.
    """
    tensor = getattr(batch, name)
    if tensor is None:
        return
    rows_of, check_values = _FIELDS[name]
    shape = getattr(getattr(batch, rows_of), "shape", (None,))[:1]
    if rows_of == "candidate" and _has_vectors(batch.candidate):
        shape = batch.candidate.shape[:2]
        check_rank(name, tensor, 2, "(rows, 1 + negatives), as `candidate`")
    else:
        check_rank(name, tensor, 1, "(rows,)")
    check_values(name, tensor)
    if any(map(sizes_differ, tensor.shape, shape)):
        per = f"row of `{rows_of}`, {shape[0]}"
        if len(shape) == 2:
            per = f"vector of `candidate`, {tuple(shape)}"
        raise ValueError(
            f"`{name}` must have one entry per {per}. "
            f"Received: {name}.shape={_shape(tensor)}"
        )


def _check_ids(name: str, ids: Tensor) -> None:
    dtype = keras.backend.standardize_dtype(ids.dtype)
    if dtype not in backend.id_dtypes:
        rule = f"`{name}` must hold integers"
        if "string" in backend.id_dtypes:
            rule += " or strings"
        raise TypeError(f"{rule}{_id_remedy(dtype)} Received: dtype={dtype}")


def _id_remedy(dtype: str) -> str:
    if dtype == "string":
        return (
            " on this backend. Fix: map strings to integers in the data, with "
            "`keras.layers.StringLookup` or `keras.layers.Hashing`."
        )
    if dtype.startswith("uint"):
        return " that this backend can sort. Fix: cast them to int64."
    return (
        ", since large ids become equal as floats. Fix: cast them to integers "
        "when they are read, before they become floats."
    )


def _check_probabilities(name: str, values: Tensor) -> None:
    """Refuses other dtypes than floats, and values below 0 or NaN."""
    check_dtype(
        name,
        values,
        FLOATS,
        "floats: probabilities or counts, not logarithms. Fix: "
        f'`keras.ops.cast({name}, "float32")`.',
    )
    if not backend.is_readable(values):
        return
    values = keras.ops.convert_to_numpy(values).reshape(-1)
    wrong = ~(values >= 0)
    if wrong.any():
        example = float(values[int(wrong.argmax())])
        raise ValueError(
            f"`{name}` must hold numbers of 0 or more: probabilities or "
            f"counts, not their logarithms. Fix: `keras.ops.exp({name})`. "
            f"Received: {wrong.sum()} of {len(wrong)} values below 0 or NaN, "
            f"for example {example:.6g}"
        )


def _check_mask(name: str, mask: Tensor) -> None:
    rule = "bools, True where a candidate may be a negative."
    check_dtype(name, mask, ("bool",), rule)


def _check_weight(name: str, weight: Tensor) -> None:
    check_dtype(name, weight, (*FLOATS, "int", "uint"), "numbers.")


# The tensors with one entry per row: of which tensor, and with which values.
_FIELDS: dict[str, tuple[str, Callable[[str, Tensor], None]]] = {
    "candidate_ids": ("candidate", _check_ids),
    "candidate_sampling_probability": ("candidate", _check_probabilities),
    "candidate_mask": ("candidate", _check_mask),
    "query_ids": ("query", _check_ids),
    "sample_weight": ("query", _check_weight),
}


def check_query_mask(mask: Tensor, query: Tensor) -> None:
    """Refuses a mask that is not one bool per vector of `query`.

    Rows without any vector are refused where values can be read.
    """
    if mask is None:
        return
    if not _has_vectors(query):
        raise ValueError(
            "`query_mask` needs queries of shape (rows, vectors, dimensions). "
            "Do not pass it with one vector per row. "
            f"Received: query.shape={_shape(query)}"
        )
    check_rank("query_mask", mask, 2, "(rows, vectors)")
    rule = "bools, True where a vector is used."
    check_dtype("query_mask", mask, ("bool",), rule)
    if any(map(sizes_differ, mask.shape, query.shape)):
        raise ValueError(
            "`query_mask` must have one entry per vector of `query`. "
            f"Received: query_mask.shape={_shape(mask)}, "
            f"query.shape={_shape(query)}"
        )
    if backend.is_readable(mask):
        _query_mask_values(mask)


def _query_mask_values(values: Tensor) -> None:
    """Refuses rows without any vector."""
    empty = ~keras.ops.convert_to_numpy(values).any(axis=1)
    if empty.any():
        raise ValueError(
            "`query_mask` must be True for at least one vector of every row. "
            "Fix: drop such rows, or keep any vector and pass a "
            "`sample_weight` of 0. "
            f"Received: row {int(empty.argmax())} without any"
        )


def _has_vectors(tensor: Tensor) -> bool:
    return len(getattr(tensor, "shape", ())) == 3


def _check_vectors_per_row(name: str, tensor: Tensor) -> None:
    """Refuses (B, P, D) without vectors, or with an unknown P."""
    if not tensor.shape[1]:
        raise ValueError(
            f"`{name}` of shape (rows, vectors, dimensions) must have a static "
            "number of vectors, 1 or more. Fix: pad rows that have fewer, and "
            f"pass a `{name}_mask`. Received: {name}.shape={_shape(tensor)}"
        )


def _shapes(query: Tensor, candidate: Tensor) -> str:
    return f"query.shape={_shape(query)}, candidate.shape={_shape(candidate)}"


def _shape(tensor: Tensor) -> tuple[int | None, ...]:
    return tuple(tensor.shape)

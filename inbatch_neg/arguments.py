"""Checks of arguments: each error names the argument, the rule and the value.

They read static shapes and dtypes alone, so they run on symbolic tensors,
while tracing and on values alike, and cost nothing in a compiled step.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import keras
import numpy as np

if TYPE_CHECKING:
    from inbatch_neg.backends import Backend, Tensor
    from inbatch_neg.softmax.batch import Batch

Choice = TypeVar("Choice")


def integer(name: str, value: Any, *, minimum: int, otherwise: str = "") -> int:
    """Returns `value` as an int; any `operator.index` integer but a bool."""
    rule = f"`{name}` must be an integer of {minimum} or more"
    rule += f",{otherwise}." if otherwise else "."
    received = f" Received: {name}={value!r}"
    if isinstance(value, bool):
        raise TypeError(rule + received + " (a bool)")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(rule + received) from None
    if number < minimum:
        raise ValueError(rule + received)
    return number


def choice(name: str, value: Choice, choices: Sequence[Choice]) -> Choice:
    """Returns `value` if it is one of `choices`."""
    if value not in choices:
        listed = " or ".join(repr(c) for c in choices)
        raise ValueError(
            f"`{name}` must be {listed}. Received: {name}={value!r}"
        )
    return value


def flag(name: str, value: Any) -> bool:
    """Returns `value` if it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(
            f"`{name}` must be True or False. Received: {name}={value!r}"
        )
    return value


def positive_number(name: str, value: Any) -> float:
    """Returns `value` as a float that is finite and above zero."""
    rule = f"`{name}` must be a finite number above 0."
    received = f" Received: {name}={value!r}"
    if isinstance(value, bool) or not (
        isinstance(value, (numbers.Real, np.generic))
        or (isinstance(value, np.ndarray) and value.ndim == 0)
    ):
        raise TypeError(rule + received)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(rule + received) from None
    if not 0.0 < number < float("inf"):
        raise ValueError(rule + received)
    return number


def temperature(value: Any) -> float | Tensor:
    """Returns a number above zero, or a scalar tensor as it came."""
    if not hasattr(value, "shape") or isinstance(
        value, (np.generic, np.ndarray)
    ):
        return positive_number("temperature", value)
    _rank("temperature", value, 0, "()")
    return value


def to_tensors(batch: Batch) -> Batch:
    """Returns the batch as tensors, of the dtypes that they came in."""
    return batch._replace(
        **{k: to_tensor(k, value) for k, value in batch._asdict().items()}
    )


def to_tensor(name: str, value: Any) -> Tensor:
    """Returns an argument as a tensor, None as None."""
    if value is None:
        return None
    try:
        return keras.ops.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        what = type(value).__name__
        if hasattr(value, "dtype"):
            what += f" of {value.dtype}"
        raise TypeError(
            f"`{name}` must be a tensor, or an array that "
            f"{keras.backend.backend()} can hold. Received: {what}"
        ) from error


def shifts(shifts: Any, rows: int | None) -> Tensor:
    """Returns shifts (N,) int32, refusing known ones that do not rotate."""
    rule = (
        "`shifts` must be one or more integers, none a multiple of the "
        "number of rows: that would make the positive its own negative."
    )
    if isinstance(shifts, np.ndarray) and shifts.dtype.kind in "iu":
        shifts = shifts.tolist() if shifts.ndim == 1 else shifts
    if isinstance(shifts, (list, tuple)):
        try:
            shifts = [operator.index(shift) for shift in shifts]
        except TypeError:
            raise TypeError(f"{rule} Received: shifts={shifts!r}") from None
        wrong = isinstance(rows, int) and any(s % rows == 0 for s in shifts)
        if not shifts or wrong:
            raise ValueError(f"{rule} Received: shifts={shifts!r}, {rows} rows")
        return keras.ops.convert_to_tensor(shifts, dtype="int32")
    shifts = to_tensor("shifts", shifts)
    _rank("shifts", shifts, 1, "(shifts,)")
    dtype = keras.backend.standardize_dtype(shifts.dtype)
    if not dtype.startswith(("int", "uint")):
        raise TypeError(f"{rule} Received: dtype={dtype}")
    return keras.ops.cast(shifts, "int32")


def vectors(query: Tensor, candidate: Tensor) -> None:
    """Refuses queries (B, D) and candidates (C, D) that do not fit."""
    for name, tensor in (("query", query), ("candidate", candidate)):
        _rank(name, tensor, 2, "(rows, dimensions)")
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if not dtype.startswith(("float", "bfloat")):
            raise TypeError(
                f"`{name}` must hold floats. Received: dtype={dtype}"
            )
    rows, dimensions = query.shape
    candidates, candidate_dimensions = candidate.shape
    if _differ(dimensions, candidate_dimensions):
        raise ValueError(
            "`query` and `candidate` must have the same number of "
            "dimensions (columns): give both towers the same output size. "
            f"Received: query.shape={_shape(query)}, "
            f"candidate.shape={_shape(candidate)}"
        )
    if _known(rows, candidates) and candidates < rows:
        raise ValueError(
            "`candidate` must have at least as many rows as `query`: row i "
            "is the positive of query i, further rows are extra negatives. "
            f"Received: query.shape={_shape(query)}, "
            f"candidate.shape={_shape(candidate)}"
        )


def ids(
    name: str,
    tensor: Tensor,
    rows: int | None,
    of: str,
    backend: Backend,
) -> None:
    """Refuses ids that are not one integer (or string) per row of `of`.

    Args:
        name: Of the argument.
        tensor: The ids, or None.
        rows: How many there must be, None if unknown.
        of: The argument that has these rows.
        backend: Says which dtypes ids may have.
    """
    if tensor is None:
        return
    _rank(name, tensor, 1, "(rows,)")
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype not in backend.id_dtypes:
        rule = f"`{name}` must hold integers"
        if "string" in backend.id_dtypes:
            rule += " or strings"
        raise TypeError(f"{rule}{_id_remedy(dtype)} Received: dtype={dtype}")
    _length(name, tensor, rows, of)


def _id_remedy(dtype: str) -> str:
    if dtype == "string":
        return (
            " on this backend. Fix: map the strings to integers in the input "
            "pipeline, with `keras.layers.StringLookup` or "
            "`keras.layers.Hashing`."
        )
    if dtype.startswith("uint"):
        return (
            " that this backend can sort. Fix: cast them to int64 where they "
            "are read, or number them from 0."
        )
    return (
        ", since floats merge large ids. Fix: cast them where they are read, "
        "before any float conversion."
    )


def probability(
    name: str, tensor: Tensor, rows: int | None, of: str, backend: Backend
) -> None:
    """Refuses probabilities that are not one float per row of `of`.

    Negative ones and NaN are refused where the values can be read.
    """
    if tensor is None:
        return
    _rank(name, tensor, 1, "(rows,)")
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if not dtype.startswith(("float", "bfloat")):
        raise TypeError(
            f"`{name}` must hold floats, probabilities or counts and no "
            f'logarithms. Fix: `keras.ops.cast({name}, "float32")`. '
            f"Received: dtype={dtype}"
        )
    _length(name, tensor, rows, of)
    if backend.are_readable(tensor):
        _probability_values(name, tensor)


def _probability_values(name: str, values: Tensor) -> None:
    """Refuses values that are below 0 or NaN."""
    wrong = ~(keras.ops.convert_to_numpy(values) >= 0)
    if wrong.any():
        example = float(values[int(wrong.argmax())])
        raise ValueError(
            f"`{name}` must hold numbers of 0 or more: probabilities or "
            "counts themselves, not their logarithms. Fix: "
            f"`keras.ops.exp({name})` if these are logarithms. Received: "
            f"{wrong.sum()} of {len(wrong)} values below 0 or NaN, for example "
            f"{example:.6g}"
        )


def mask(name: str, tensor: Tensor, rows: int | None, of: str) -> None:
    """Refuses a mask that is not one bool per row of `of`."""
    if tensor is None:
        return
    _rank(name, tensor, 1, "(rows,)")
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype != "bool":
        raise TypeError(
            f"`{name}` must hold bools, True where the candidate may be a "
            f"negative. Received: dtype={dtype}"
        )
    _length(name, tensor, rows, of)


def weight(name: str, tensor: Tensor, rows: int | None, of: str) -> None:
    """Refuses weights that are not one number per row of `of`."""
    if tensor is None:
        return
    _rank(name, tensor, 1, "(rows,)")
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if not dtype.startswith(("float", "bfloat", "int", "uint")):
        raise TypeError(f"`{name}` must hold numbers. Received: dtype={dtype}")
    _length(name, tensor, rows, of)


def check_batch(batch: Batch, backend: Backend) -> None:
    """Refuses any tensor of a batch that does not fit the others.

    Args:
        batch: Symbolic tensors or values.
        backend: Says which dtypes ids may have, and which values it can
            read at little cost.
    """
    vectors(batch.query, batch.candidate)
    rows, candidates = batch.query.shape[0], batch.candidate.shape[0]
    check_candidate_fields(batch, candidates, backend)
    ids("query_ids", batch.query_ids, rows, "query", backend)
    weight("sample_weight", batch.sample_weight, rows, "query")


def check_candidate_fields(
    batch: Batch, candidates: int | None, backend: Backend
) -> None:
    """Refuses what belongs to candidates and has not one entry for each."""
    ids("candidate_ids", batch.candidate_ids, candidates, "candidate", backend)
    probability(
        "candidate_sampling_probability",
        batch.candidate_sampling_probability,
        candidates,
        "candidate",
        backend,
    )
    mask("candidate_mask", batch.candidate_mask, candidates, "candidate")


def _rank(name: str, tensor: Tensor, rank: int, form: str) -> None:
    if not hasattr(tensor, "shape") or not hasattr(tensor, "dtype"):
        raise TypeError(
            f"`{name}` must be a tensor. Received: {name}={tensor!r}"
        )
    if len(tensor.shape) != rank:
        hint = ""
        if rank == 1 and len(tensor.shape) == 2 and tensor.shape[1] == 1:
            hint = f" Fix: `keras.ops.squeeze({name}, -1)`."
        elif rank == 2 and len(tensor.shape) == 3 and tensor.shape[1] == 1:
            hint = f" Fix: `keras.ops.squeeze({name}, 1)` after the tower."
        elif rank == 2 and len(tensor.shape) > 2:
            hint = (
                " Fix: end the tower with `keras.layers.Flatten()`, or pool "
                "its steps, with `keras.layers.GlobalAveragePooling1D()`."
            )
        raise ValueError(
            f"`{name}` must have shape {form}.{hint} Received: "
            f"{name}.shape={_shape(tensor)}"
        )


def _length(name: str, tensor: Tensor, rows: int | None, of: str) -> None:
    if _differ(tensor.shape[0], rows):
        raise ValueError(
            f"`{name}` must have one entry per row of `{of}`, {rows}. "
            f"Received: {name}.shape={_shape(tensor)}"
        )


def _known(*sizes: int | None) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _differ(one: int | None, other: int | None) -> bool:
    return _known(one, other) and one != other


def _shape(tensor: Tensor) -> tuple[int | None, ...]:
    return tuple(tensor.shape)

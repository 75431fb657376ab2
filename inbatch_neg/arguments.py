"""Checks of one argument: errors name the argument, the rule and the value.

They read only static shapes and dtypes, so they work for symbolic tensors,
while tracing and for values, and cost nothing in a compiled step.
"""

import numbers
import operator
from collections.abc import Sequence
from typing import Any, TypeVar

import keras
import numpy as np

from inbatch_neg.types import Size, Tensor

Choice = TypeVar("Choice")


def check_integer(
    name: str, value: Any, *, minimum: int, otherwise: str = ""
) -> int:
    """Returns `value` as an int; takes any integer type except bool."""
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


def check_choice(name: str, value: Choice, choices: Sequence[Choice]) -> Choice:
    """Returns `value` if it is one of `choices`."""
    if value not in choices:
        listed = " or ".join(repr(c) for c in choices)
        raise ValueError(
            f"`{name}` must be {listed}. Received: {name}={value!r}"
        )
    return value


def check_flag(name: str, value: Any) -> bool:
    """Returns `value` if it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(
            f"`{name}` must be True or False. Received: {name}={value!r}"
        )
    return value


def check_positive_number(name: str, value: Any) -> float:
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


def check_temperature(value: Any) -> float | Tensor:
    """Returns a float above zero, or a scalar tensor unchanged."""
    if not hasattr(value, "shape") or isinstance(
        value, (np.generic, np.ndarray)
    ):
        return check_positive_number("temperature", value)
    check_rank("temperature", value, 0, "()")
    return value


def to_tensor(name: str, value: Any) -> Tensor:
    """Returns an argument as a tensor, None as None."""
    if value is None:
        return None
    refuse_keras_2(name, value)
    if isinstance(value, keras.Variable):
        # On TensorFlow, `convert_to_tensor` leaves it as it is.
        return keras.ops.cast(value, value.dtype)
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


def refuse_keras_2(name: str, value: Any) -> None:
    """Refuses tensors and models of Keras 2, which Keras 3 cannot read."""
    for kind in type(value).__mro__:
        if kind.__module__.startswith(("tf_keras.", "tensorflow.python.keras")):
            raise TypeError(
                f"`{name}` comes from Keras 2, and this package is for Keras "
                "3. Fix: `import keras`, or unset TF_USE_LEGACY_KERAS. "
                f"Received: {kind.__module__}.{kind.__qualname__}"
            )


def check_shifts(shifts: Any, rows: int | None) -> Tensor:
    """Returns shifts (N,) int32; refuses known ones that do not rotate."""
    rule = (
        "`shifts` must be one or more integers, none a multiple of the "
        "number of rows: a positive would be its own negative."
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
    check_rank("shifts", shifts, 1, "(shifts,)")
    dtype = keras.backend.standardize_dtype(shifts.dtype)
    if not dtype.startswith(("int", "uint")):
        raise TypeError(f"{rule} Received: dtype={dtype}")
    return keras.ops.cast(shifts, "int32")


def sizes_differ(one: Size, other: Size) -> bool:
    """Returns whether two dimensions are known, and not equal."""
    return isinstance(one, int) and isinstance(other, int) and one != other


FLOATS = ("float", "bfloat")


def check_dtype(
    name: str, tensor: Tensor, kinds: tuple[str, ...], rule: str
) -> None:
    """Refuses a tensor whose dtype begins with none of `kinds`."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if not dtype.startswith(kinds):
        raise TypeError(f"`{name}` must hold {rule} Received: dtype={dtype}")


def check_rank(name: str, tensor: Tensor, rank: int, form: str) -> None:
    """Refuses anything but a tensor of this rank, of the shape `form`."""
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
                " Fix: end the tower with `keras.layers.Flatten()` or "
                "`keras.layers.GlobalAveragePooling1D()`."
            )
        raise ValueError(
            f"`{name}` must have shape {form}.{hint} Received: "
            f"{name}.shape={tuple(tensor.shape)}"
        )

"""The backend that Keras uses, chosen once, when the package is imported."""

import importlib
from typing import Any

import keras

from inbatch_neg.backends.base import HALF, Backend

_NAME = keras.backend.backend()


def engine(package: str) -> Any:
    """Returns the file of the backend in a package that has one for each."""
    return importlib.import_module(f"{package}.{_NAME}")


if _NAME not in ("tensorflow", "jax", "torch"):
    raise ImportError(
        "`inbatch_neg` trains on the Keras backends tensorflow, jax and "
        "torch. Set one of them, for example KERAS_BACKEND=tensorflow, before "
        f"the first import of keras. Received: {_NAME!r}"
    )

backend: Backend = engine(__package__).Backend()

__all__ = ["HALF", "Backend", "backend", "engine"]

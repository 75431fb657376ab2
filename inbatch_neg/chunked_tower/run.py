"""Runs a tower in chunks of rows, on the backend that Keras uses."""

import importlib
from typing import Any

from inbatch_neg.backends import backend
from inbatch_neg.chunked_tower.call import TowerCall, VariableValues
from inbatch_neg.types import Tensor


def _engine() -> Any:
    """Returns the module of the backend."""
    return importlib.import_module(f"{__package__}.{backend.name}")


def is_dense(tensor: Tensor) -> bool:
    """Returns whether a tensor is neither sparse nor ragged."""
    return bool(_engine().is_dense(tensor))


def run_in_chunks(
    call: TowerCall, chunk_size: int
) -> tuple[list[Tensor], VariableValues]:
    """Returns the outputs of a tower, computed in chunks of rows.

    Keeps only the activations of one chunk. The gradient runs each chunk
    again, with the state that the tower had before it.

    Args:
        call: The call of the tower.
        chunk_size: Rows of a chunk.

    Returns:
        The outputs; and the variables that the tower assigns, with their
        new values, which are not assigned yet.
    """
    outputs, state = _engine().run_in_chunks(call, chunk_size)
    return outputs, state

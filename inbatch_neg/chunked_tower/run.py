"""Runs a tower in chunks of rows, on the backend that Keras uses."""

from inbatch_neg.backends import engine
from inbatch_neg.chunked_tower.call import TowerCall, VariableValues
from inbatch_neg.types import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Returns whether a tensor is neither sparse nor ragged."""
    return bool(engine(__package__).is_dense(tensor))


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
    outputs, state = engine(__package__).run_in_chunks(call, chunk_size)
    return outputs, state

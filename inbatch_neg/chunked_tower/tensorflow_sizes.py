"""Sizes of the outputs of a tower that only a run of its graph knows."""

from collections.abc import Sequence

import tensorflow as tf

from inbatch_neg.chunked_tower.call import TowerCall
from inbatch_neg.types import Tensor


def dense_rows(
    call: TowerCall, outputs: Sequence[Tensor], rows: int | None
) -> list[Tensor]:
    """Returns the outputs with a static number of rows, if that is known."""
    for output in outputs:
        if isinstance(output, (tf.RaggedTensor, tf.SparseTensor)):
            raise TypeError(
                "`tower` must return dense tensors, which the chunks can be "
                "joined from. Make ragged or sparse ones dense in the tower, "
                "with padding to one length. "
                f"Received: tower={call.tower.name!r}, which returned a "
                f"{type(output).__name__}"
            )
    return [tf.ensure_shape(x, [rows, *x.shape[1:]]) for x in outputs]


class UnknownSizes:
    """Compares the sizes of outputs by chunk that are unknown while tracing.

    Args:
        call: The call of the tower.
        outputs: The outputs of a chunk.

    Attributes:
        any: Sizes from which no others differ.
    """

    def __init__(self, call: TowerCall, outputs: Sequence[Tensor]) -> None:
        shapes = [x.shape[1:] for x in outputs]
        self._places = [
            i for i, x in enumerate(shapes) if not x.is_fully_defined()
        ]
        self._message = call.other_sizes("the sizes")
        self.any = tf.fill([sum(shapes[i].rank for i in self._places)], -1)

    def compared(
        self, outputs: Sequence[Tensor], expected: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Returns the outputs of a chunk, and their sizes.

        An assertion fails if `expected`, of the chunk before, differs.
        """
        if not self._places:
            return list(outputs), expected
        sizes = tf.concat([tf.shape(outputs[i])[1:] for i in self._places], 0)
        check = tf.debugging.Assert(
            tf.reduce_all((expected < 0) | (expected == sizes)),
            [self._message, expected, sizes],
            summarize=-1,
        )
        with tf.control_dependencies([check]):
            return [tf.identity(x) for x in outputs], sizes

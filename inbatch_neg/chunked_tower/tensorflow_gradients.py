"""Gradients of the chunks of a tower on TensorFlow: flattened and summed."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from inbatch_neg.types import Tensor


class GradientLayout:
    """Flattens the gradients of a chunk to a list of tensors, and back.

    The loops of a graph carry tensors only, but some gradients are None or
    `tf.IndexedSlices`.

    Args:
        shapes: The shapes of the variables and weights. Their gradients are
            summed over the chunks, or stacked if they are `IndexedSlices`.
            The gradients of rows, which follow, are stacked.
    """

    def __init__(self, shapes: Sequence[tuple]) -> None:
        self._shapes = list(shapes)
        self._kinds: list[type | None] = []

    def flatten(self, gradients: Sequence[Any]) -> list[Tensor]:
        """Returns the tensors of gradients, some of which may be None."""
        count = len(self._shapes)
        gradients = [
            *gradients[:count],
            *(
                x if x is None else tf.convert_to_tensor(x)
                for x in gradients[count:]
            ),
        ]
        self._kinds = [None if x is None else type(x) for x in gradients]
        parts: list[Tensor] = []
        for gradient in gradients:
            if isinstance(gradient, tf.IndexedSlices):
                parts += [gradient.values, gradient.indices]
            elif gradient is not None:
                parts.append(gradient)
        return parts

    def stacked_and_summed(
        self, parts: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the tensors to stack, and those to sum."""
        leaves = iter(parts)
        stacked: list[Tensor] = []
        summed: list[Tensor] = []
        for place, kind in enumerate(self._kinds):
            if kind is tf.IndexedSlices:
                stacked += [next(leaves), next(leaves)]
            elif kind is not None:
                is_sum = place < len(self._shapes)
                (summed if is_sum else stacked).append(next(leaves))
        return stacked, summed

    def unflatten(
        self, stacked: Sequence[Tensor], summed: Sequence[Tensor]
    ) -> list[Any]:
        """Returns the gradients, some of which may be None."""
        rows, sums = iter(stacked), iter(summed)
        gradients: list[Any] = []
        for place, kind in enumerate(self._kinds):
            if kind is None:
                gradients.append(None)
            elif kind is tf.IndexedSlices:
                values, indices = next(rows), next(rows)
                shape = tf.constant(self._shapes[place], indices.dtype)
                gradients.append(tf.IndexedSlices(values, indices, shape))
            else:
                is_sum = place < len(self._shapes)
                gradients.append(next(sums if is_sum else rows))
        return gradients


def joined(by_chunk: Sequence[Sequence[Any]], count: int) -> list[Any]:
    """Returns the gradients of the batch, from those of its chunks.

    The first `count` are summed. The others, of rows, are concatenated.
    """
    sums = list(by_chunk[0][:count])
    for gradients in by_chunk[1:]:
        sums = [_sum(*pair) for pair in zip(sums, gradients)]
    by_rows = zip(*(gradients[count:] for gradients in by_chunk))
    return sums + [
        None if column[0] is None else tf.concat(column, axis=0)
        for column in by_rows
    ]


def _sum(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    if not isinstance(one, tf.IndexedSlices) or not isinstance(
        other, tf.IndexedSlices
    ):
        return tf.convert_to_tensor(one) + tf.convert_to_tensor(other)
    return tf.IndexedSlices(
        tf.concat([one.values, other.values], axis=0),
        tf.concat([one.indices, other.indices], axis=0),
        one.dense_shape,
    )

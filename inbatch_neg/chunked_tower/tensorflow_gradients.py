"""Gradients of the chunks of a tower on TensorFlow, stacked and summed."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from inbatch_neg.types import Tensor


def split(
    gradients: Sequence[Any], count: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the tensors of a chunk's gradients to stack, and those to sum.

    The loops of a graph carry tensors only.

    Args:
        gradients: Of variables and weights, then of rows: tensors,
            `tf.IndexedSlices` or None.
        count: How many are of variables and weights. These are summed over
            the chunks, but for `IndexedSlices`.
    """
    stacked: list[Tensor] = []
    summed: list[Tensor] = []
    for place, gradient in enumerate(gradients):
        if isinstance(gradient, tf.IndexedSlices):
            stacked += [gradient.values, gradient.indices]
        elif gradient is not None:
            (summed if place < count else stacked).append(gradient)
    return stacked, summed


def merged(
    like: Sequence[Any],
    shapes: Sequence[tuple],
    stacked: Sequence[Tensor],
    summed: Sequence[Tensor],
) -> list[Any]:
    """Returns the inverse of `split`.

    Args:
        like: The gradients of a chunk.
        shapes: The shapes of the variables and weights.
        stacked: The tensors that are stacked, now of all chunks.
        summed: The tensors that are summed, likewise.
    """
    rows, sums = iter(stacked), iter(summed)
    gradients: list[Any] = []
    for place, one in enumerate(like):
        if isinstance(one, tf.IndexedSlices):
            values, indices = next(rows), next(rows)
            shape = tf.constant(shapes[place], indices.dtype)
            gradients.append(tf.IndexedSlices(values, indices, shape))
        elif one is None:
            gradients.append(None)
        else:
            gradients.append(next(sums if place < len(shapes) else rows))
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

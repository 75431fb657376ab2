"""Gradients of the chunks of a tower on TensorFlow: flattened, and added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from inbatch_neg.backends.types import Tensor


class GradientLayout:
    """How the gradients of a chunk lie in a list of tensors.

    Args:
        shapes: Those of the variables and weights. Gradients by these are
            summed over the chunks, or collected if they are `IndexedSlices`;
            those by rows, which follow, are collected.
    """

    def __init__(self, shapes: Sequence[tuple]) -> None:
        self._shapes = list(shapes)
        self._kinds: list[type | None] = []

    def taken_apart(self, slopes: Sequence[Any]) -> list[Tensor]:
        """Returns the tensors of gradients, of which some may be None."""
        count = len(self._shapes)
        slopes = [
            *slopes[:count],
            *(
                x if x is None else tf.convert_to_tensor(x)
                for x in slopes[count:]
            ),
        ]
        self._kinds = [None if x is None else type(x) for x in slopes]
        parts: list[Tensor] = []
        for slope in slopes:
            if isinstance(slope, tf.IndexedSlices):
                parts += [slope.values, slope.indices]
            elif slope is not None:
                parts.append(slope)
        return parts

    def stacked_and_summed(
        self, parts: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the tensors to collect, and those to add up."""
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

    def put_together(
        self, stacked: Sequence[Tensor], summed: Sequence[Tensor]
    ) -> list[Any]:
        """Returns the gradients, some of which are None."""
        rows, sums = iter(stacked), iter(summed)
        slopes: list[Any] = []
        for place, kind in enumerate(self._kinds):
            if kind is None:
                slopes.append(None)
            elif kind is tf.IndexedSlices:
                values, indices = next(rows), next(rows)
                shape = tf.constant(self._shapes[place], indices.dtype)
                slopes.append(tf.IndexedSlices(values, indices, shape))
            else:
                is_sum = place < len(self._shapes)
                slopes.append(next(sums if is_sum else rows))
        return slopes


def joined(every: Sequence[Sequence[Any]], count: int) -> list[Any]:
    """Returns the gradients of all chunks: the first `count` are summed.

    Those by the rows are concatenated.
    """
    sums = list(every[0][:count])
    for slopes in every[1:]:
        sums = [_added(*pair) for pair in zip(sums, slopes)]
    by_rows = zip(*(slopes[count:] for slopes in every))
    return sums + [
        None if column[0] is None else tf.concat(column, axis=0)
        for column in by_rows
    ]


def _added(one: Any, other: Any) -> Any:
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

"""Sparse updates on TensorFlow: the gradient of a gather is sparse."""

from typing import Any

import keras
import tensorflow as tf

from inbatch_neg.replicas.current import replicas
from inbatch_neg.sparse_embedding import table
from inbatch_neg.types import Tensor

Accumulators = keras.Variable


class Table(table.Table):
    """Updates its rows where an optimizer assigns `IndexedSlices`."""

    def assign(self, value: Any) -> Any:
        """Updates rows, or assigns a whole table."""
        if isinstance(value, tf.IndexedSlices):
            self._update(value.indices, value.values)
            return value
        if value is None:  # no gradient, in Keras 3.5
            return value
        self.refuse_dense(value)
        return super().assign(value)

    def _update(self, ids: Tensor, gradients: Tensor) -> None:
        collectives = replicas.collectives()
        if collectives is not None:
            ids = collectives.all_gather(ids)
            gradients = collectives.all_gather(gradients)
        accumulators = self.adagrad.accumulators.value
        gradients = tf.cast(gradients, accumulators.dtype)
        # Equal ids become neighbours, and a segment. There are as many
        # segments as ids, since XLA needs a static number; the last are empty.
        order = tf.argsort(ids)
        ids = tf.gather(ids, order)
        is_first = ids != tf.concat([ids[:1] - 1, ids[:-1]], 0)
        segment = tf.cumsum(tf.cast(is_first, tf.int32)) - 1
        size = tf.shape(ids)[0]
        gradients = tf.math.unsorted_segment_sum(
            tf.gather(gradients, order), segment, size
        )
        rows = tf.math.unsorted_segment_max(ids, segment, size)
        used = tf.range(size) < tf.reduce_sum(tf.cast(is_first, tf.int32))
        # A gather under XLA takes any id.
        used &= (rows >= 0) & (rows < tf.cast(self.shape[0], rows.dtype))
        # x - 0.0 is x, whatever x is, so row 0 stays.
        rows = tf.where(used, rows, 0)
        squares = tf.reduce_mean(tf.square(gradients), 1)
        squares = tf.where(used, squares, 0.0)
        after = tf.gather(accumulators, rows) + squares
        step = self.adagrad.rate() / (tf.sqrt(after) + self.adagrad.epsilon)
        step = tf.where(used[:, None], step[:, None] * gradients, 0.0)
        accumulators.scatter_sub(tf.IndexedSlices(-squares, rows))
        self.value.scatter_sub(
            tf.IndexedSlices(tf.cast(step, self.value.dtype), rows)
        )


def lookup(weight: Table, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the vectors of (N,) ids, and a zero for the loss."""
    return _unscaled(tf.gather(weight.value, ids))


@tf.custom_gradient
def _unscaled(vectors: Tensor) -> Any:
    def gradient(d_vectors: Tensor, d_zero: Tensor) -> Tensor:
        # Keras divides each loss by the number of replicas.
        scale = d_zero * replicas.count()
        return d_vectors / tf.where(scale == 0.0, tf.ones_like(scale), scale)

    return (tf.identity(vectors), tf.zeros((), vectors.dtype)), gradient

"""Contenders for negatives by rotation. See `on_tensorflow.py`.

The article that this package began with repeats the batch of candidates once
for each negative, rotated, and the queries as often, and multiplies them row
by row. It is written anew here from that description.
"""

import keras
import tensorflow as tf

from tests.benchmarks.on_tensorflow import differentiated


def ours(inputs):
    """`inbatch_neg.ops.rotation_logits` and the loss of its logits."""
    import inbatch_neg

    loss = inbatch_neg.InBatchNegativeLoss()

    def loss_of(query, candidate, shifts):
        logits = inbatch_neg.ops.rotation_logits(query, candidate, shifts)
        return loss(None, logits)

    return differentiated(inputs, loss_of, shifts=inputs.shifts)


def hardest(inputs):
    """The layer with as many hardest negatives, of all B."""
    import inbatch_neg

    softmax = inbatch_neg.InBatchNegativeSoftmax(
        len(inputs.shifts), sampling="hardest", batch_size="any"
    )
    loss = inbatch_neg.InBatchNegativeLoss()
    return differentiated(
        inputs, lambda *vectors: loss(None, softmax(*vectors, training=True))
    )


def article(inputs):
    """As the article has it: the rotated batches are appended one by one."""

    def rotations(candidate):
        stacked = candidate
        for shift in inputs.shifts:
            stacked = tf.concat(
                [stacked, candidate[shift:], candidate[:shift]], axis=0
            )
        return stacked

    return _repeated_and_multiplied(inputs, rotations)


def one_concatenation(inputs):
    """A kinder article: the rotated batches are joined at once."""

    def rotations(candidate):
        parts = [candidate]
        for shift in inputs.shifts:
            parts += [candidate[shift:], candidate[:shift]]
        return tf.concat(parts, axis=0)

    return _repeated_and_multiplied(inputs, rotations)


def _repeated_and_multiplied(inputs, rotations):
    times = 1 + len(inputs.shifts)
    rows = len(inputs.query)

    def loss_of(query, candidate):
        product = tf.tile(query, [times, 1]) * rotations(candidate)
        scores = tf.reduce_sum(product, axis=1)
        logits = tf.transpose(tf.reshape(scores, [times, rows]))
        labels = tf.one_hot(tf.zeros(rows, tf.int32), times)
        return tf.reduce_mean(
            keras.losses.categorical_crossentropy(labels, tf.nn.softmax(logits))
        )

    return differentiated(inputs, loss_of)

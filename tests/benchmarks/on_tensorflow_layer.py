"""The layer alone, in training and in evaluation. See `on_tensorflow.py`."""

import tensorflow as tf

from tests.benchmarks.on_tensorflow import differentiated


def training(inputs, **arguments):
    """Losses and both gradients, as in `fit`."""
    softmax, loss = _layer_and_loss(**arguments)

    def loss_of(query, candidate, **rules):
        losses = softmax(query, candidate, training=True, **rules)
        return loss(None, losses)

    return differentiated(inputs, loss_of, **inputs.rules)


def symmetric(inputs):
    """Both directions, in training."""
    return training(inputs, symmetric=True)


def evaluation(inputs):
    """Losses alone, as in `evaluate`."""
    softmax, loss = _layer_and_loss()
    query, candidate = tf.constant(inputs.query), tf.constant(inputs.candidate)
    rules = {name: tf.constant(v) for name, v in inputs.rules.items()}

    @tf.function
    def step(query, candidate, rules):
        losses = softmax(query, candidate, training=False, **rules)
        return (loss(None, losses),)

    return lambda: step(query, candidate, rules)


def _layer_and_loss(**arguments):
    import inbatch_neg

    return (
        inbatch_neg.InBatchNegativeSoftmax(batch_size="any", **arguments),
        inbatch_neg.InBatchNegativeLoss(),
    )

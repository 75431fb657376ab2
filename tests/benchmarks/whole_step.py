"""A whole training step: towers, loss, gradients and Adam.

The same on the Keras of TFRS, which is the legacy one, and on Keras 3.
"""

import numpy as np
import tensorflow as tf


def embeddings(keras, users, items):
    """Returns a user and an item tower that look vectors up."""
    return [
        keras.Sequential([keras.layers.Embedding(count, 64)])
        for count in (users, items)
    ]


def perceptrons(keras, users, items):
    """Returns two towers with layers of 256, 128 and 64 upon vectors of 64."""
    return [
        keras.Sequential(
            [
                keras.layers.Embedding(count, 64),
                keras.layers.Dense(256, activation="relu"),
                keras.layers.Dense(128, activation="relu"),
                keras.layers.Dense(64),
            ]
        )
        for count in (users, items)
    ]


class Contenders:
    """The contenders with towers of one kind.

    Args:
        make_towers: A function of this module.
        users: Number of users.
        items: Number of items.
    """

    def __init__(self, make_towers, users, items):
        self._make_towers = make_towers
        self._counts = users, items

    def ours(self, inputs, xla=False):
        """`InBatchNegativeSoftmax` and its loss."""
        import keras

        import inbatch_neg

        softmax = inbatch_neg.InBatchNegativeSoftmax(batch_size="any")
        loss = inbatch_neg.InBatchNegativeLoss()
        return self._step(
            keras,
            inputs,
            lambda *vectors: loss(None, softmax(*vectors, training=True)),
            xla,
        )

    def ours_xla(self, inputs):
        """The same by XLA, as `jit_compile="auto"` has it in `fit`."""
        return self.ours(inputs, xla=True)

    def tfrs(self, inputs):
        """TensorFlow Recommenders' task, on legacy Keras."""
        import tensorflow_recommenders
        import tf_keras

        task = tensorflow_recommenders.tasks.Retrieval()
        return self._step(
            tf_keras,
            inputs,
            lambda *vectors: task(*vectors, compute_metrics=False),
        )

    def keras_rs(self, inputs):
        """Scores, one-hot labels and Keras' cross-entropy."""
        import keras

        loss = keras.losses.CategoricalCrossentropy(from_logits=True)

        def loss_of(query, candidate):
            logits = keras.ops.matmul(query, keras.ops.transpose(candidate))
            return loss(keras.ops.eye(*logits.shape), logits)

        return self._step(keras, inputs, loss_of)

    def _step(self, keras, inputs, loss_of, xla=False):
        towers = self._make_towers(keras, *self._counts)
        random = np.random.default_rng(0)
        ids = [
            tf.constant(random.integers(0, count, len(inputs.query)))
            for count in self._counts
        ]
        for tower, one in zip(towers, ids):
            tower(one[:2])
        variables = [v for t in towers for v in t.trainable_variables]
        optimizer = keras.optimizers.Adam(1e-3)
        optimizer.build(variables)

        @tf.function(jit_compile=xla)
        def step(user_id, item_id):
            with tf.GradientTape() as tape:
                loss = loss_of(towers[0](user_id), towers[1](item_id))
            slopes = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(slopes, variables))
            return loss

        def run():
            float(step(*ids))  # the weights change: no loss to compare

        return run

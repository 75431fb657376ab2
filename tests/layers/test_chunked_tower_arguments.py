"""What `ChunkedTower` refuses, and in which words."""

import keras
import numpy as np
import pytest
from keras import layers

from inbatch_neg import ChunkedTower
from tests.helpers import to_numpy


def dense():
    return layers.Dense(2)


@pytest.mark.parametrize(
    "make, kind, words",
    [
        (lambda: ChunkedTower(len), TypeError, "`tower` must be a Keras layer"),
        (lambda: ChunkedTower(dense(), 0), ValueError, "`chunk_size` must be"),
        (lambda: ChunkedTower(dense(), 2.5), TypeError, "`chunk_size` must be"),
        (lambda: ChunkedTower(dense(), True), TypeError, "(a bool)"),
        (
            lambda: ChunkedTower(dense(), dtype="float16"),
            TypeError,
            "`dtype` must be passed to the tower",
        ),
    ],
)
def test_refused_at_construction(make, kind, words):
    with pytest.raises(kind) as error:
        make()
    assert words in str(error.value)
    assert "Received: " in str(error.value)


def test_a_numpy_integer_is_an_integer():
    assert ChunkedTower(dense(), np.int64(3)).chunk_size == 3


class Flattened(layers.Layer):
    def call(self, x):
        return keras.ops.reshape(x, (-1,))


class Mean(layers.Layer):
    def call(self, x):
        return keras.ops.mean(x)


class AddsLoss(layers.Layer):
    def call(self, x):
        self.add_loss(keras.ops.mean(x))
        return x


class AssignsWeight(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        self.scale.assign(self.scale * 0.5)
        return x * self.scale


REFUSED = [
    (Flattened, "`tower` must return tensors with one entry per row"),
    (Mean, "`tower` must return tensors with one entry per row"),
    (AddsLoss, "`tower` must not call `add_loss`"),
    (
        lambda: layers.Dense(2, activity_regularizer="l2"),
        "to the outputs of the `ChunkedTower`",
    ),
    (AssignsWeight, "`tower` must not assign a trainable weight"),
]


@pytest.mark.parametrize("make, words", REFUSED)
@pytest.mark.parametrize("rows", [None, 3, 10])
def test_towers_that_are_refused(make, words, rows):
    """In the first symbolic call, and in the first call of rows."""
    with pytest.raises(ValueError) as error:
        ChunkedTower(make(), 4)(keras.Input((3,), batch_size=rows))
    assert words in str(error.value) and "Received: tower=" in str(error.value)
    if rows is not None:
        with pytest.raises(ValueError) as error:
            ChunkedTower(make(), 4)(np.ones((rows, 3), "float32"))
        assert words in str(error.value)


def test_a_loss_in_training_alone_is_refused():
    class Loss(layers.Layer):
        def call(self, x, training=None):
            if training:
                self.add_loss(keras.ops.mean(x))
            return x

    layer = ChunkedTower(Loss(), 4)
    rows = np.ones((10, 3), "float32")
    np.testing.assert_array_equal(to_numpy(layer(rows)), rows)
    with pytest.raises(ValueError, match="must not call `add_loss`"):
        layer(rows, training=True)


def test_inputs_with_other_rows():
    tower = layers.Concatenate(axis=-1)
    with pytest.raises(ValueError) as error:
        ChunkedTower(tower, 4)([np.ones((10, 2)), np.ones((9, 2))])
    assert "inputs[0]: 10 rows, inputs[1]: 9 rows" in str(error.value)
    with pytest.raises(ValueError, match="must have one entry per row"):
        ChunkedTower(layers.Identity(), 4)(keras.ops.ones(()))


@pytest.mark.backends("tensorflow", "jax")
def test_sparse_inputs_are_refused_in_words():
    with pytest.raises(TypeError, match="`inputs` must be dense"):
        ChunkedTower(dense(), 4)(keras.Input((3,), sparse=True))


@pytest.mark.backends("tensorflow")
def test_ragged_and_sparse_tensors_are_refused_in_words():
    import tensorflow as tf

    for tensor in (
        tf.ragged.constant([[1.0], [1.0, 2.0]]),
        tf.sparse.from_dense(np.eye(3, dtype="float32")),
    ):
        with pytest.raises(TypeError, match="`inputs` must be dense"):
            ChunkedTower(dense(), 4)(tensor)


@pytest.mark.backends("jax")
def test_an_error_leaves_the_weights_of_the_model():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    weights = model.get_weights()

    class Refused(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = model
            self.tower = ChunkedTower(Loss(), 4)

        def call(self, x, training=None):
            return self.tower(self.dense(x), training=training)

    class Loss(layers.Layer):
        def call(self, x, training=None):
            if training:
                self.add_loss(keras.ops.mean(x))
            return x

    refused = Refused()
    refused.compile("sgd", "mse")
    with pytest.raises(ValueError, match="must not call `add_loss`"):
        refused.fit(np.ones((10, 3)), np.ones((10, 2)), 10, verbose=0)
    for one, other in zip(model.get_weights(), weights):
        np.testing.assert_array_equal(one, other)

"""Towers in chunks whose sizes are unknown while tracing, or vary by chunk."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from inbatch_neg import ChunkedTower
from tests.helpers import BACKEND, assert_close, to_numpy
from tests.layers import towers

WORDS, WIDTH = 13, 4
POOLED = layers.GlobalAveragePooling1D

# Trains towers eagerly, and with XLA the towers in chunks, on batches of two
# lengths. The process ends with an error if they differ. It may crash, too.
LENGTHS_SCRIPT = """
import sys
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from inbatch_neg import ChunkedTower

WIDTH = 4

def embedding():
    return layers.Embedding(13, WIDTH, mask_zero=True)

def recurrent(wrap):
    words = keras.Input((None,), dtype="int32")
    return wrap(
        keras.Sequential([words, embedding(), layers.SimpleRNN(WIDTH)])
    )

def sequences(wrap):
    # The outputs have an unknown length.
    ids = keras.Input((None,), dtype="int32")
    steps = layers.SimpleRNN(WIDTH, return_sequences=True)(embedding()(ids))
    steps = wrap(keras.Model(ids, steps))(ids)
    return keras.Model(ids, layers.GlobalMaxPooling1D()(steps))

def batches():
    rng = np.random.default_rng(0)
    for length in (5, 3):
        ids = rng.integers(1, 13, (10, length)).astype("int32")
        ids[::3, -1] = 0
        yield ids, np.ones((10, WIDTH), "float32")

def check(tower, rows):
    data = tf.data.Dataset.from_generator(
        batches,
        output_signature=(
            tf.TensorSpec((rows, None), tf.int32),
            tf.TensorSpec((rows, WIDTH), tf.float32),
        ),
    )
    found = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        wrap = (lambda x: ChunkedTower(x, 4)) if jit_compile else lambda x: x
        inner = tower(wrap)

        class Model(keras.Model):
            def call(self, ids, training=None):
                return inner(ids, training=training)

        model = Model()
        model.inner = inner
        model.compile(
            keras.optimizers.SGD(0.1),
            "mse",
            jit_compile=jit_compile,
            run_eagerly=not jit_compile,
        )
        losses = model.fit(data, verbose=0).history["loss"]
        assert model.jit_compile is jit_compile
        found.append([np.asarray(losses), *model.get_weights()])
    assert np.abs(found[0][0]).min() > 0.1
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)
    print(tower.__name__, rows, flush=True)

check(sequences, 10)
if sys.argv[1:] == ["unknown"]:
    check(recurrent, None)
print("all the same")
"""


@pytest.mark.backends("tensorflow")
def test_a_length_that_varies_by_batch_with_xla():
    # XLA of TensorFlow 2.16 has no loop of an unknown length.
    cases = [] if keras.__version__.startswith("3.5.") else ["unknown"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LENGTHS_SCRIPT, *cases],
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.strip().endswith("all the same")


class Split(layers.Layer):
    """Looks up the words of texts, as many as there are in a chunk."""

    def __init__(self, pooled=True):
        super().__init__()
        self.embedding = layers.Embedding(WORDS, WIDTH)
        self.embedding.build(None)
        self.pooled = pooled

    def call(self, texts):
        import tensorflow as tf

        ids = tf.strings.to_hash_bucket_fast(tf.strings.split(texts), WORDS)
        words = ids.with_values(self.embedding(ids.values))
        if not self.pooled:
            return words
        means = tf.reduce_mean(words, axis=1)
        return tf.ensure_shape(means, [texts.shape[0], WIDTH])


def vectorized(pooling):
    texts = keras.Input((), dtype="string")
    vocabulary = [f"w{number}" for number in range(10)]
    ids = layers.TextVectorization(vocabulary=vocabulary)(texts)
    words = layers.Embedding(WORDS, WIDTH, mask_zero=True)(ids)
    return keras.Model(texts, pooling(words))


def recurrent_twice(words):
    """A loop, and another use of the same lookups."""
    return layers.SimpleRNN(WIDTH)(words) + layers.GlobalAveragePooling1D()(
        words
    )


def texts_of(rows, seed=0):
    """Returns texts of 1 to 8 words."""
    rng = np.random.default_rng(seed)
    return np.array(
        [
            " ".join(f"w{word}" for word in rng.integers(0, 10, length))
            for length in rng.integers(1, 9, rows)
        ]
    )


def trained(tower, rows, known, how):
    import tensorflow as tf

    class Model(keras.Model):
        def call(self, texts, training=None):
            return tower(texts, training=training)

    model = Model()
    model.tower = tower
    model.compile(keras.optimizers.Adam(0.01), "mse", **how)
    data = tf.data.Dataset.from_tensor_slices(
        (texts_of(2 * rows), np.ones((2 * rows, WIDTH), "float32"))
    ).batch(rows, drop_remainder=known)
    losses = model.fit(data, epochs=2, verbose=0).history["loss"]
    return [np.asarray(losses), *model.get_weights()]


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize(
    ("tower", "rows", "known", "how"),
    [
        (lambda: vectorized(POOLED()), 8, True, {}),
        (lambda: vectorized(POOLED()), 10, False, {}),
        (lambda: vectorized(recurrent_twice), 10, True, {}),
        (Split, 10, True, {}),
        (Split, 3, False, {}),  # no full chunk
        (Split, 10, True, {"run_eagerly": True}),
    ],
)
def test_a_number_of_lookups_that_varies_by_chunk(tower, rows, known, how):
    found = []
    for chunked, kind in ((False, towers.TRAINS), (True, how)):
        keras.utils.set_random_seed(0)
        made = ChunkedTower(tower(), 4) if chunked else tower()
        found.append(trained(made, rows, known, kind))
    for one, other in zip(*found, strict=True):
        assert_close(other, one, 1e-5)


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("known", [True, False])
def test_gradients_of_varying_lookups_stay_sparse(known):
    import tensorflow as tf

    tower = Split()
    chunked = ChunkedTower(tower, 4)
    texts = texts_of(10)
    table = tower.embedding.embeddings.value
    rows = 10 if known else None

    def step(tower):
        @tf.function(input_signature=[tf.TensorSpec((rows,), tf.string)])
        def gradient(texts):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tower(texts) ** 2)
            return tape.gradient(loss, table)

        return gradient(texts)

    found, expected = step(chunked), step(tower)
    assert isinstance(found, tf.IndexedSlices)
    assert found.indices.shape == expected.indices.shape
    assert_close(
        tf.convert_to_tensor(found), tf.convert_to_tensor(expected), 1e-5
    )


class Trim(layers.Layer):
    """Drops the columns that are 0 in all rows: the length varies by chunk."""

    def call(self, x):
        length = keras.ops.max(keras.ops.sum(x != 0, axis=1))
        if BACKEND == "tensorflow":
            return x[:, :length, None]
        return x[:, : int(length), None]


SIZES = "`tower` must return outputs of one size in all chunks"


def rows_of_lengths(*lengths):
    """Returns rows (chunks of 4, 5), with as many ones in each chunk."""
    by_chunk = [np.tile(np.arange(5) < length, (4, 1)) for length in lengths]
    return np.concatenate(by_chunk).astype("float32")


# JAX has no sizes that only the run knows. Outputs of length 1 could be
# broadcast.
@pytest.mark.backends("tensorflow", "torch")
@pytest.mark.parametrize("lengths", [(5, 3), (5, 1), (1, 5), (4, 4, 2)])
@pytest.mark.parametrize("cut", [0, 1])
def test_outputs_that_vary_by_chunk_are_refused(lengths, cut):
    rows = rows_of_lengths(*lengths)
    rows = rows[: len(rows) - cut]
    with pytest.raises(ValueError, match=SIZES):
        ChunkedTower(Trim(), 4)(rows)


@pytest.mark.backends("tensorflow", "torch")
def test_outputs_of_one_size_that_only_the_run_knows():
    rows = rows_of_lengths(3, 3, 3)[:-1]
    assert to_numpy(ChunkedTower(Trim(), 4)(rows)).shape == (11, 3, 1)


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("cut", [0, 1])
def test_outputs_that_vary_by_chunk_are_refused_in_a_graph(known, cut):
    import tensorflow as tf

    layer = ChunkedTower(Trim(), 4)
    rows = rows_of_lengths(3, 3, 3)[: 12 - cut]
    size = len(rows) if known else None

    @tf.function(input_signature=[tf.TensorSpec((size, 5), tf.float32)])
    def run(rows):
        return layer(rows)

    assert run(rows).shape == (12 - cut, 3, 1)
    for lengths in ((5, 5, 3), (5, 3, 5), (1, 1, 5)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=SIZES):
            run(rows_of_lengths(*lengths)[: 12 - cut])


def test_outputs_of_which_another_dimension_is_that_of_the_rows():
    class Products(layers.Layer):
        def call(self, x):
            return keras.ops.matmul(x, keras.ops.transpose(x))

    with pytest.raises(ValueError, match=SIZES):
        ChunkedTower(Products(), 4)(np.eye(10, 3, dtype="float32"))


@pytest.mark.backends("tensorflow")
def test_ragged_outputs_are_refused_in_a_graph():
    import tensorflow as tf

    layer = ChunkedTower(Split(pooled=False), 4)
    with pytest.raises(TypeError, match="`tower` must return dense tensors"):
        tf.function(layer)(tf.constant(texts_of(10)))


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("rows", [8, 10])
def test_a_weight_that_is_not_used_has_no_gradient(rows):
    import tensorflow as tf

    class Half(layers.Layer):
        def build(self, shape):
            self.used = self.add_weight(shape=(3, 2), name="used")
            self.unused = self.add_weight(shape=(3, 2), name="unused")

        def call(self, x):
            return keras.ops.matmul(x, self.used)

    tower = Half()
    tower.build((None, 3))
    x = tf.ones((rows, 3))

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(ChunkedTower(tower, 4)(x))
        return tape.gradient(loss, [tower.used.value, tower.unused.value])

    used, unused = gradients()
    assert_close(used, np.full((3, 2), rows), 1e-6)
    assert unused is None

"""The tower in chunks against the tower: values, gradients, training."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

import inbatch_neg
from inbatch_neg import ChunkedTower
from tests.helpers import BACKEND, assert_close, to_numpy
from tests.layers import towers

# By way, the backends that have it.
_BACKENDS = {
    "compiled": ("tensorflow", "jax"),
    "xla": ("tensorflow",),
    # JAX traces what it differentiates, so its eager way is the compiled one.
    "eager": ("tensorflow", "torch"),
}
WAYS = [
    pytest.param(way, marks=pytest.mark.backends(*backends))
    for way, backends in _BACKENDS.items()
]


def oracle(model, batch):
    return towers.run(model, batch, way=towers.ORACLE)


def assert_same(found, expected, tolerance=1e-5):
    for name, values in expected.items():
        assert len(found[name]) == len(values), name
        for place, (one, other) in enumerate(zip(found[name], values)):
            assert (one is None) == (other is None), (name, place)
            if one is not None:
                assert_close(one, other, tolerance, f"{name} {place}")


@pytest.mark.parametrize("way", WAYS)
def test_equals_the_tower(way):
    check(towers.encoder(), 10, way)


# Less than a chunk; whole chunks alone.
@pytest.mark.parametrize("rows", [3, 8])
@pytest.mark.parametrize("way", WAYS[:1])
def test_other_numbers_of_rows(rows, way):
    check(towers.light_encoder(), rows, way)


def check(tower, rows, way):
    batch = towers.rows_of(rows)
    expected = oracle(towers.Wrapped(tower), batch)
    assert np.abs(expected["inputs"][0]).max() > 0.1
    found = towers.run(towers.chunked(tower, 4), batch, way=way)
    assert_same(found, expected)


def two_towers(tower):
    """Returns a model that calls one encoder for queries and for items."""
    query, item = towers.inputs("query_"), towers.inputs("item_")
    losses = inbatch_neg.InBatchNegativeSoftmax(temperature=0.5)(
        tower(query)["vector"], tower(item)["vector"]
    )
    return keras.Model([*query.values(), *item.values()], losses)


def pairs(rows):
    query, item = towers.rows_of(rows, 1), towers.rows_of(rows, 2)
    return [query["ids"], query["x"], item["ids"], item["x"]]


def trained(tower, optimizer, **how):
    model = two_towers(tower)
    model.compile(optimizer, loss=inbatch_neg.InBatchNegativeLoss(), **how)
    data, rows = pairs(20), 10
    losses = [
        model.train_on_batch(
            [x[start : start + rows] for x in data], np.zeros(rows)
        )
        for start in range(0, 20, rows)
    ]
    return [np.asarray(losses), *model.get_weights()]


HOW = [
    pytest.param(how, marks=pytest.mark.backends(*backends))
    for how, backends in (
        # With XLA on TensorFlow: test_chunked_tower_keywords.py.
        ({"jit_compile": True}, ("jax",)),
        ({"jit_compile": False}, ("tensorflow", "torch")),
        ({"run_eagerly": True}, ("tensorflow",)),
    )
]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_trains_as_the_tower(how):
    """Two steps; the encoder is shared, so its gradients add up."""
    found = []
    for chunked, kind in ((False, towers.TRAINS), (True, how)):
        keras.utils.set_random_seed(3)
        encoder = tower = towers.light_encoder()
        if chunked:
            encoder = ChunkedTower(tower, 4)
        optimizer = keras.optimizers.Adam(0.05)
        found.append(trained(encoder, optimizer, **kind))
    assert len(found[0]) == len(tower.weights) + 1
    for one, other in zip(*found):
        assert_close(other, one, 1e-5)


def functional(tower):
    given = towers.inputs()
    return keras.Model(given, tower(given)["vector"])


@pytest.mark.parametrize("how", HOW, ids=str)
def test_fit_and_predict_take_a_partial_last_batch(how):
    """Batches of 10 and of 6 rows."""
    tower = towers.light_encoder()
    plain, chunked = functional(tower), functional(ChunkedTower(tower, 4))
    weights = tower.get_weights()
    data, y = towers.rows_of(16), np.ones((16, towers.WIDTH), "float32")
    results = []
    for model, kind in ((plain, towers.TRAINS), (chunked, how)):
        tower.set_weights(weights)
        model.compile(keras.optimizers.SGD(0.1), "mse", **kind)
        fit = model.fit(data, y, batch_size=10, shuffle=False, verbose=0)
        results.append(
            [
                np.asarray(fit.history["loss"]),
                model.predict(data, 10, verbose=0),
                *tower.get_weights(),
            ]
        )
    for one, other in zip(*results):
        assert_close(other, one, 1e-5)


@pytest.mark.backends("torch")
def test_compiled_by_torch():
    tower = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    rows = towers.rows_of(10)["x"]
    model = keras.Sequential([keras.Input((3,)), ChunkedTower(tower, 4)])
    expected = tower.predict(rows, verbose=0)
    model.compile("sgd", "mse", jit_compile=True)
    found = model.predict(rows, batch_size=10, verbose=0)
    assert_close(found, expected, 1e-5)
    model.fit(rows, np.ones((10, 2)), batch_size=10, verbose=0)
    assert np.abs(tower.predict(rows, verbose=0) - expected).max() > 1e-3


@pytest.mark.parametrize("kind", [list, tuple])
def test_sequences_of_inputs_and_outputs(kind):
    class Pair(layers.Layer):
        def call(self, inputs):
            assert isinstance(inputs, kind)
            left, right = inputs
            return kind((left + right, left[:, 0]))

    rows = np.arange(12.0, dtype="float32").reshape(6, 2)
    layer = ChunkedTower(Pair(), 4)
    found = layer(kind((rows, rows)))
    assert isinstance(found, kind)
    np.testing.assert_array_equal(to_numpy(found[0]), rows + rows)
    np.testing.assert_array_equal(to_numpy(found[1]), rows[:, 0])
    symbolic = layer(kind((keras.Input((2,)), keras.Input((2,)))))
    assert [x.shape for x in symbolic] == [(None, 2), (None,)]


def test_in_a_wrapper_that_asks_for_its_shape():
    """`TimeDistributed` of a tower of sentences: a document has several."""
    documents = np.random.default_rng(0).normal(size=(10, 5, 8))
    found = []
    for wrap in (lambda tower: tower, lambda tower: ChunkedTower(tower, 4)):
        keras.utils.set_random_seed(0)
        sentence = keras.Sequential(
            [keras.Input((8,)), layers.Dense(4, "tanh"), layers.Dense(3)]
        )
        inputs = keras.Input((5, 8))
        outputs = layers.TimeDistributed(wrap(sentence))(inputs)
        assert outputs.shape == (None, 5, 3)
        model = keras.Model(inputs, layers.Flatten()(outputs))
        model.compile("sgd", "mse", **towers.TRAINS)
        losses = [
            model.train_on_batch(documents, np.ones((10, 15))) for _ in "ab"
        ]
        found.append([*losses, *sentence.get_weights()])
    for one, other in zip(*found):
        assert_close(other, one, 1e-5)


# On TensorFlow, Keras' own models fail in a `RematScope`.
@pytest.mark.backends("jax", "torch")
def test_in_a_remat_scope():
    rows = np.random.default_rng(0).normal(size=(10, 8))
    found = []
    for wrap in (lambda tower: tower, lambda tower: ChunkedTower(tower, 4)):
        keras.utils.set_random_seed(0)
        with keras.RematScope("full"):
            inputs = keras.Input((8,))
            tower = keras.Sequential([inputs, layers.Dense(4, "tanh")])
            model = keras.Model(inputs, wrap(tower)(inputs))
            model.compile("sgd", "mse")
            model.fit(rows, np.ones((10, 4)), batch_size=10, verbose=0)
        found.append(tower.get_weights()[0])
    assert_close(found[1], found[0], 1e-5)


def test_summary_of_a_subclassed_model(capsys):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.tower = ChunkedTower(layers.Dense(7), 4)

        def call(self, x):
            return self.tower(x)

    model = Model()
    model(np.zeros((10, 3), "float32"))
    model.summary()
    assert "(10, 7)" in capsys.readouterr().out


class Seen(layers.Layer):
    """Tells what reaches it: the mask, `training`, and the rows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.rows = []

    def call(self, x, mask=None, training=None):
        self.rows.append(x.shape[0])
        one = keras.ops.ones((1, x.shape[1]))
        shown = 0.0 if mask is None else keras.ops.cast(mask, "float32")
        return x + 10.0 * shown + (100.0 if training else 0.0) * one


@pytest.mark.parametrize("rows", [3, 8, 10])
def test_masks_and_training_reach_the_tower_and_the_next_layer(rows):
    ids = np.tile(np.array([[1, 2, 0]], "int32"), (rows, 1))
    x = np.zeros((rows, 3), "float32")
    layer = ChunkedTower(Seen(), 4)
    expected = np.tile([[10.0, 10.0, 0.0]], (rows, 1))
    for training in (False, True):
        found = layer(x, mask=ids != 0, training=training)
        assert_close(to_numpy(found), expected + 100.0 * training)

    class Next(layers.Layer):
        def call(self, x, mask=None):
            return 0.0 * x if mask is None else keras.ops.cast(mask, "float32")

    # An attached mask, through the tower to the layer behind.
    words = layers.Embedding(3, 1, mask_zero=True)
    given = keras.Input((3,), dtype="int32")
    tower = keras.Sequential([layers.Dense(2)])
    masks = Next()(ChunkedTower(tower, 4)(words(given)))
    model = keras.Model(given, masks)
    np.testing.assert_array_equal(to_numpy(model(ids)), ids != 0)


def test_the_tower_sees_chunks():
    tower = Seen()
    layer = ChunkedTower(tower, 4)
    layer(np.zeros((1, 3), "float32"))  # Keras builds it
    tower.rows.clear()
    layer(np.zeros((10, 3), "float32"))
    assert max(tower.rows) == 4 and tower.rows[-1] == 2


def test_a_frozen_tower():
    tower = towers.light_encoder()
    tower.trainable = False
    batch = towers.rows_of(10)
    expected = oracle(towers.Wrapped(tower), batch)
    found = towers.run(towers.chunked(tower, 4), batch)
    assert found["weights"] == []
    assert_same(found, expected)


def test_a_half_frozen_tower():
    tower = towers.light_encoder()
    (embedding,) = [x for x in tower.layers if "embedding" in x.name]
    embedding.trainable = False
    batch = towers.rows_of(10)
    expected = oracle(towers.Wrapped(tower), batch)
    found = towers.run(towers.chunked(tower, 4), batch)
    assert 0 < len(found["weights"]) < len(tower.weights)
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("policy", "around"),
    [("mixed_bfloat16", "float32"), ("float32", "mixed_bfloat16")],
)
def test_the_policy_of_the_tower_counts(policy, around):
    keras.config.set_dtype_policy(around)
    tower = keras.Sequential(
        [layers.Dense(4, dtype=policy), layers.Dense(3, dtype=policy)]
    )
    batch = towers.rows_of(10)["x"]
    expected = oracle(towers.Wrapped(tower), batch)
    found = towers.run(towers.chunked(tower, 4), batch)
    kind = "bfloat16" if policy != "float32" else "float32"
    output = ChunkedTower(tower, 4)(batch)
    assert keras.backend.standardize_dtype(output.dtype) == kind
    # bfloat16 has 8 bits, and a chunk's gradient is rounded to them.
    assert_same(found, expected, 1e-5 if policy == "float32" else 3e-2)


def test_gradients_by_one_of_two_outputs():
    tower = towers.light_encoder()

    class First(layers.Layer):
        def __init__(self, tower):
            super().__init__()
            self.tower = tower

        def call(self, inputs, training=None):
            return self.tower(inputs, training=training)["parts"][0]

    batch = towers.rows_of(10)
    expected = oracle(towers.Wrapped(First(tower)), batch)
    found = towers.run(towers.Wrapped(First(ChunkedTower(tower, 4))), batch)
    for one, other in zip(found["weights"], expected["weights"]):
        other = np.zeros_like(one) if other is None else other
        assert_close(np.zeros_like(other) if one is None else one, other, 1e-5)


class Borrowed(layers.Layer):
    """Multiplies by the kernel of a layer that it does not own."""

    def __init__(self, kernel):
        super().__init__()
        self._kernel = lambda: kernel

    def call(self, x):
        return keras.ops.matmul(x, self._kernel())


def trained_kernel(wrap):
    """Returns the kernel that a tower borrows, after a step of training."""
    keras.utils.set_random_seed(0)
    owner = layers.Dense(3, use_bias=False)
    owner.build((None, 3))
    given = keras.Input((3,))
    tower = keras.Model(given, layers.Dense(2)(Borrowed(owner.kernel)(given)))
    x = keras.Input((3,))
    outputs = layers.Concatenate()([wrap(tower)(x), owner(x)])
    model = keras.Model(x, outputs)
    model.compile(
        keras.optimizers.SGD(0.1), "mse", jit_compile=BACKEND == "jax"
    )
    rows = np.random.default_rng(0).normal(size=(10, 3)).astype("float32")
    model.train_on_batch(rows, np.ones((10, 5)))
    return owner.get_weights()[0]


def test_weights_that_the_tower_does_not_own():
    expected = trained_kernel(lambda tower: tower)
    found = trained_kernel(lambda tower: ChunkedTower(tower, 4))
    assert_close(found, expected, 1e-5)


def test_weight_regularizers_count_once():
    tower = keras.Sequential(
        [keras.Input((3,)), layers.Dense(2, kernel_regularizer="l2")]
    )
    model = keras.Sequential([keras.Input((3,)), ChunkedTower(tower, 4)])
    model(np.zeros((10, 3), "float32"))
    (loss,) = model.losses
    kernel = tower.get_weights()[0]
    assert_close(to_numpy(loss), 0.01 * (kernel**2).sum())


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_embeddings_stay_sparse(way):
    import tensorflow as tf

    tower = towers.light_encoder()
    table = tower.trainable_variables[0].value
    chunked = ChunkedTower(tower, 4)
    for rows in (3, 8, 10) if way == "eager" else (10,):
        batch = towers.rows_of(rows)

        def step(batch):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(chunked(batch)["vector"] ** 2)
            return tape.gradient(loss, table)

        if way != "eager":
            step = tf.function(step, jit_compile=way == "xla")
        slope = step(tree_of_tensors(batch))
        assert isinstance(slope, tf.IndexedSlices)
        assert slope.values.shape == (rows * towers.LENGTH, towers.WIDTH)


def tree_of_tensors(batch):
    return {k: keras.ops.convert_to_tensor(v) for k, v in batch.items()}


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("rows", [None, 8, 10])
def test_one_chunk_at_a_time(rows):
    """The chunks of two towers, and of their gradients, wait for each other.

    Otherwise TensorFlow would keep the activations of several at once.
    """
    import tensorflow as tf

    tower = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    chunked = ChunkedTower(tower, 4)

    @tf.function(input_signature=2 * [tf.TensorSpec((rows, 3))])
    def gradients(query, item):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(chunked(query) * chunked(item))
        return tape.gradient(loss, tower.trainable_variables)

    operations = gradients.get_concrete_function().graph.get_operations()
    chunks = [
        x for x in operations if "While" in x.type or "Partitioned" in x.type
    ]
    assert len(chunks) == (4 if rows == 8 else 8)
    for earlier, later in itertools.pairwise(chunks):
        assert earlier in ancestors(later), (earlier.name, later.name)


def ancestors(operation):
    """Returns the operations that finish before this one starts."""
    found, rest = set(), [operation]
    while rest:
        one = rest.pop()
        before = {*one.control_inputs, *(x.op for x in one.inputs)} - found
        found |= before
        rest += before
    return found


@pytest.mark.backends("tensorflow")
def test_strings():
    words = np.array(["a", "b", "c"])
    look_up = layers.StringLookup(vocabulary=list(words))
    given = keras.Input((1,), dtype="string")
    tower = keras.Model(given, layers.Embedding(5, 3)(look_up(given)))
    rows = keras.ops.convert_to_tensor(np.resize(words, (10, 1)))
    expected = to_numpy(tower(rows))
    np.testing.assert_array_equal(
        to_numpy(ChunkedTower(tower, 4)(rows)), expected
    )
    outer = keras.Model(given, ChunkedTower(tower, 4)(given))
    outer.compile("sgd", "mse")
    np.testing.assert_array_equal(
        outer.predict(rows, batch_size=10, verbose=0), expected
    )
    outer.fit(rows, np.ones((10, 1, 3)), batch_size=7, verbose=0)
    assert np.abs(to_numpy(tower(rows)) - expected).max() > 1e-4

"""Arguments of `ChunkedTower` beside the inputs: they reach the tower, or not.

An encoder of texts takes `attention_mask`, a layer of Keras `mask`.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops, tree

from inbatch_neg import ChunkedTower
from tests.helpers import assert_all_equal, assert_close, to_numpy
from tests.layers import towers

WORDS, LENGTH, WIDTH = 11, 3, 2


@keras.saving.register_keras_serializable(package="tests")
class Encoder(layers.Layer):
    """A mean over the words that `attention_mask` keeps, times `scale`.

    `extra` is a nest of floats, (rows, WIDTH) each; `power` is no tensor.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.words = layers.Embedding(WORDS, WIDTH)
        self.dense = layers.Dense(WIDTH)

    def call(
        self,
        ids,
        attention_mask=None,
        scale=None,
        extra=None,
        power=1,
        training=None,
    ):
        words = self.words(ids)
        kept = ops.ones_like(words[:, :, :1])
        if attention_mask is not None:
            kept = ops.cast(attention_mask, words.dtype)[:, :, None]
        x = ops.sum(words * kept, 1) / ops.sum(kept, 1)
        if scale is not None:
            x = x * scale[:, None] ** power
        for one in tree.flatten(extra):
            x = x if one is None else x + ops.tanh(one)
        return self.dense(x)


def arguments_of(rows, seed=0):
    """Returns the ids, and keyword arguments of `Encoder`."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, (rows, LENGTH)).astype("int32")
    mask[:, 0] = 1
    ids = rng.integers(0, WORDS, (rows, LENGTH)).astype("int32")
    return ids, {
        "attention_mask": mask,
        "scale": rng.uniform(1, 2, rows).astype("float32"),
        "extra": {
            "a": rng.normal(size=(rows, WIDTH)).astype("float32"),
            "b": [rng.normal(size=(rows, WIDTH)).astype("float32")],
        },
    }


class Keywords(keras.Model):
    """Calls a layer with its inputs, and with the others by keyword."""

    def __init__(self, layer, **others):
        super().__init__()
        self.layer = layer
        self.others = others

    def call(self, inputs, training=None):
        keywords = dict(inputs)
        return self.layer(
            keywords.pop("ids"), training=training, **keywords, **self.others
        )


def assert_same(found, expected, tolerance=1e-5):
    for name in ("outputs", "weights", "inputs"):
        assert len(found[name]) == len(expected[name])
        for one, other in zip(found[name], expected[name]):
            assert_close(one, other, tolerance, name)


WAYS = [
    pytest.param(way, marks=pytest.mark.backends(*backends))
    for way, backends in (
        ("compiled", ("tensorflow", "jax")),
        ("xla", ("tensorflow",)),
        ("eager", ("tensorflow", "torch")),  # on JAX as "compiled"
    )
]


@pytest.mark.parametrize(
    ("way", "rows"),
    [
        *(pytest.param(*way.values, 10, marks=way.marks) for way in WAYS),
        *(pytest.param("compiled", n, marks=WAYS[0].marks) for n in (3, 8)),
    ],
)
def test_keywords_are_cut_with_the_rows(rows, way):
    ids, keywords = arguments_of(rows)
    batch = {"ids": ids, **keywords}
    tower = Encoder()
    tower(ids)
    expected = towers.run(Keywords(tower, power=2), batch, way=towers.ORACLE)
    found = towers.run(
        Keywords(ChunkedTower(tower, 4), power=2), batch, way=way
    )
    assert len(expected["inputs"]) == 3  # the gradients of the floats
    assert min(np.abs(x).max() for x in expected["inputs"]) > 0.01
    assert_same(found, expected)


@pytest.mark.parametrize("rows", [3, 10])
def test_each_keyword_alone_and_arrays_as_they_are(rows):
    """In the first call, which builds the tower, and in the next one."""
    ids, keywords = arguments_of(rows)
    for names in [*[(x,) for x in keywords], tuple(keywords)]:
        some = {name: keywords[name] for name in names}
        keras.utils.set_random_seed(1)
        layer = ChunkedTower(Encoder(), 4)
        first = to_numpy(layer(ids, **some))
        assert_close(first, to_numpy(layer.tower(ids, **some)), 1e-6)
        assert_close(to_numpy(layer(ids, **some)), first, 1e-6)
        assert_close(to_numpy(layer(inputs=ids, **some)), first, 1e-6)


def functional(tower):
    ids = keras.Input((LENGTH,), dtype="int32", name="ids")
    given = {
        "attention_mask": keras.Input((LENGTH,), dtype="int32", name="mask"),
        "scale": keras.Input((), name="scale"),
        "extra": {
            "a": keras.Input((WIDTH,), name="a"),
            "b": [keras.Input((WIDTH,), name="b")],
        },
    }
    outputs = tower(ids, power=2, **given)
    assert outputs.shape == (None, WIDTH)
    return keras.Model([ids, *tree.flatten(given)], outputs)


def batch_of(rows):
    ids, keywords = arguments_of(rows)
    return [ids, *tree.flatten(keywords)]


HOW = [
    pytest.param(how, marks=pytest.mark.backends(*backends))
    for how, backends in (
        ({"jit_compile": True}, ("tensorflow", "jax")),
        ({"jit_compile": False}, ("tensorflow", "torch")),
        ({"run_eagerly": True}, ("tensorflow", "jax")),
    )
]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_fit_of_a_functional_model(how):
    found = []
    for chunked, kind in ((False, towers.TRAINS), (True, how)):
        keras.utils.set_random_seed(0)
        tower = ChunkedTower(Encoder(), 4) if chunked else Encoder()
        model = functional(tower)
        model.compile(keras.optimizers.SGD(0.1), "mse", **kind)
        fit = model.fit(
            batch_of(20),
            np.ones((20, WIDTH)),
            batch_size=10,
            shuffle=False,
            verbose=0,
        )
        predicted = model.predict(batch_of(20), batch_size=10, verbose=0)
        found.append([*fit.history["loss"], predicted, *model.get_weights()])
    for one, other in zip(*found):
        assert_close(other, one, 1e-5)


def test_saved_loaded_and_cloned(tmp_path):
    model = functional(ChunkedTower(Encoder(), 4))
    expected = model.predict(batch_of(10), batch_size=10, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_all_equal(loaded.get_weights(), model.get_weights())
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (loaded, clone):
        found = other.predict(batch_of(10), batch_size=10, verbose=0)
        assert_close(found, expected, 1e-6)


@pytest.mark.backends("tensorflow", "jax")
def test_exported(tmp_path):
    import tensorflow as tf

    model = functional(ChunkedTower(Encoder(), 4))
    model.export(tmp_path / "saved")
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    for rows in (1, 4, 10):
        given = batch_of(rows)
        expected = model.predict(given, batch_size=rows, verbose=0)
        found = loaded.serve([tf.constant(x) for x in given])
        assert_close(found.numpy(), expected, 1e-5)


@pytest.mark.backends("torch")
def test_exported_by_torch():
    import torch

    model = functional(ChunkedTower(Encoder(), 4))
    given = [torch.as_tensor(x) for x in batch_of(10)]
    program = torch.export.export(model, (given,), strict=False)
    assert_close(to_numpy(program.module()(given)), to_numpy(model(given)))


@pytest.mark.backends("tensorflow")
def test_in_a_function_of_tensorflow():
    """AutoGraph converts what a function of the user's calls."""
    import tensorflow as tf

    layer = ChunkedTower(Encoder(), 4)
    ids, keywords = arguments_of(10)
    expected = to_numpy(layer(ids, power=2, **keywords))

    @tf.function
    def call(ids, keywords):
        return layer(ids, power=2, **keywords)

    tensors = tree.map_structure(tf.constant, (ids, keywords))
    assert_close(call(*tensors).numpy(), expected, 1e-6)

    @tf.function
    def positional(ids, mask):
        return layer(ids, mask)

    with pytest.raises(TypeError, match="the only positional argument"):
        positional(ids, keywords["attention_mask"])


def predicted(call, *arrays):
    """Returns what `call` makes of arrays, in a model; without gradients."""
    given = [keras.Input(x.shape[1:], dtype=x.dtype) for x in arrays]
    model = keras.Model(given, call(*given))
    return model.predict(list(arrays), batch_size=len(arrays[0]), verbose=0)


def test_a_layer_of_keras_with_several_tensors():
    rng = np.random.default_rng(0)
    query, value = rng.normal(size=(2, 10, 4, 6)).astype("float32")
    mask = rng.random((10, 4, 4)) < 0.7
    attention = layers.MultiHeadAttention(2, 3)
    # A nest of the states of a recurrent layer.
    recurrent = layers.SimpleRNN(6)
    found = []
    for wrap in (lambda tower: tower, lambda tower: ChunkedTower(tower, 4)):

        def call(query, value, mask, wrap=wrap):
            words = wrap(attention)(
                query, value=value, attention_mask=mask, use_causal_mask=True
            )
            return wrap(recurrent)(words, initial_state=[value[:, 0]])

        found.append(predicted(call, query, value, mask))
    assert_close(found[1], found[0], 1e-5)


def test_masks_that_are_attached_to_keywords():
    """Keras gives them to an attention by their names."""
    ids = np.random.default_rng(0).integers(0, 4, (10, 5)).astype("int32")
    ids[:, 0] = 1
    words = layers.Embedding(4, 6, mask_zero=True)
    tower = layers.MultiHeadAttention(2, 3)
    chunked = ChunkedTower(tower, 4)
    arrays = ids, ids[::-1].copy()
    expected, found = (
        predicted(lambda q, v, t=t: t(words(q), value=words(v)), *arrays)
        for t in (tower, chunked)
    )
    assert_close(found, expected, 1e-5)
    ids, others = arrays
    found = to_numpy(chunked(words(ids), value=words(others)))
    assert_close(found, expected, 1e-5)
    unmasked = chunked(words(ids), value=ops.copy(words(others)))
    assert np.abs(to_numpy(unmasked) - expected).max() > 1e-4


@pytest.mark.backends("torch")
def test_a_module_of_torch():
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(WORDS, WIDTH)

        def forward(self, input_ids, attention_mask=None):
            kept = torch.ones_like(input_ids)
            kept = kept if attention_mask is None else attention_mask
            return (self.words(input_ids) * kept[:, :, None]).sum(1)

    ids, keywords = arguments_of(10)
    mask = {"attention_mask": keywords["attention_mask"]}
    tower = layers.TorchModuleWrapper(Module())
    layer = ChunkedTower(tower, 4)
    expected = to_numpy(tower(ids, **mask))
    assert np.abs(expected - to_numpy(tower(ids))).max() > 0.1
    assert_close(to_numpy(layer(ids, **mask)), expected, 1e-6)
    with pytest.raises(TypeError, match="the only positional argument"):
        layer(ids, mask["attention_mask"])


def test_a_tower_with_keywords_of_any_name():
    class Any(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x, **kwargs):
            return self.dense(x) * kwargs["weight"][:, None]

    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(10, 3)), rng.normal(size=10)
    layer = ChunkedTower(Any(), 4)
    found = layer(x.astype("float32"), weight=weight.astype("float32"))
    expected = to_numpy(layer.tower.dense(x.astype("float32")))
    assert_close(to_numpy(found), expected * weight[:, None], 1e-5)


class Unaware(layers.Layer):
    """Takes no mask, and passes the attached one on."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, x):
        return 2.0 * x


class Shown(layers.Layer):
    def call(self, x, mask=None):
        shown = 0.0 if mask is None else ops.cast(mask, "float32")[..., None]
        return x * 0.0 + shown


class Both(layers.Layer):
    """Takes Keras' mask and another tensor."""

    def call(self, x, bonus=None, mask=None):
        if mask is not None:
            x = x + 10.0 * ops.cast(mask, "float32")
        return x if bonus is None else x + bonus[:, None]


@pytest.mark.parametrize("rows", [3, 10])
def test_an_explicit_mask_beside_a_keyword(rows):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3)).astype("float32")
    mask = rng.random((rows, 3)) < 0.5
    bonus = rng.normal(size=rows).astype("float32")
    tower = Both()
    layer = ChunkedTower(tower, 4)
    for keywords in ({"mask": mask}, {"mask": mask, "bonus": bonus}):
        expected = to_numpy(tower(x, **keywords))
        assert_close(to_numpy(layer(x, **keywords)), expected, 1e-6)
    given = [
        keras.Input((3,)),
        keras.Input((3,), dtype="bool"),
        keras.Input(()),
    ]
    model = keras.Model(given, layer(given[0], mask=given[1], bonus=given[2]))
    found = model.predict([x, mask, bonus], batch_size=rows, verbose=0)
    assert_close(found, expected, 1e-6)


@pytest.mark.parametrize("rows", [3, 10])
def test_an_attached_mask_passes_a_tower_that_takes_none(rows):
    ids = np.tile(np.array([[1, 2, 0]], "int32"), (rows, 1))
    words = layers.Embedding(3, 1, mask_zero=True)
    layer = ChunkedTower(Unaware(), 4)
    given = keras.Input((3,), dtype="int32")
    model = keras.Model(given, Shown()(layer(words(given))))
    for found in (model(ids), Shown()(layer(words(ids)))):
        np.testing.assert_array_equal(to_numpy(found)[..., 0], ids != 0)
    # Keras has recorded the mask as an argument.
    clone = keras.models.clone_model(model, clone_function=lambda layer: layer)
    found = clone.predict(ids, batch_size=rows, verbose=0)
    np.testing.assert_array_equal(found[..., 0], ids != 0)


def test_several_inputs_without_masks():
    """Keras records a nest of None as their masks."""

    class Sum(layers.Layer):
        def call(self, inputs):
            return inputs[0] + inputs[1]

    given = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(given, ChunkedTower(Sum(), 4)(given))
    x = np.ones((10, 3), "float32")
    found = model.predict([x, 2.0 * x], batch_size=10, verbose=0)
    np.testing.assert_array_equal(found, 3.0 * x)
    found = ChunkedTower(Sum(), 4)([x, x], mask=[None, None])
    np.testing.assert_array_equal(to_numpy(found), 2.0 * x)


def test_an_attached_mask_in_time_distributed():
    """`TimeDistributed` passes the mask of a step itself."""
    documents = np.random.default_rng(0).normal(size=(10, 2, 3))
    documents = documents.astype("float32")
    documents[:, 1] = 0.0
    tower = layers.Dense(3)
    chunked = ChunkedTower(tower, 4)
    expected, found = (
        predicted(
            lambda x, t=t: layers.TimeDistributed(t)(layers.Masking()(x)),
            documents,
        )
        for t in (tower, chunked)
    )
    assert_close(found, expected, 1e-5)


MASK = np.ones((10, LENGTH), "int32")
IDS = np.ones((10, LENGTH), "int32")


@pytest.mark.parametrize("rows", [10, 3, None])
@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda layer, ids: layer(ids, ids),
            "Received: 2 positional arguments for tower='encoder', whose "
            "`call` takes attention_mask, scale",
        ),
        (lambda layer, ids: layer(ids, None), "the only positional argument"),
        (lambda layer, ids: layer(ids, mask=ids != 0), "`mask` must be an arg"),
        (lambda layer, ids: layer(ids, other=ids), "argument 'other'"),
        (lambda layer, ids: layer(ids, other=3), "argument 'other'"),
    ],
)
def test_refused_arguments(call, words, rows):
    ids = IDS[:rows] if rows else keras.Input((LENGTH,), dtype="int32")
    layer = ChunkedTower(Encoder(name="encoder"), 4)
    with pytest.raises(TypeError) as error:
        call(layer, ids)
    assert words in str(error.value)
    # Without them it works.
    layer(ids, attention_mask=ids)


def test_positional_is_refused_also_where_the_tower_takes_a_mask():
    x = np.ones((10, 3), "float32")
    layer = ChunkedTower(Both(), 4)
    with pytest.raises(TypeError, match="the only positional argument"):
        layer(x, x > 0)
    with pytest.raises(TypeError):
        layer.call(x, x > 0)


def test_a_model_of_keras_takes_no_other_name():
    """Keras lets it ignore them, and so it would run without its mask."""
    given = keras.Input((LENGTH,), dtype="int32")
    tower = keras.Model(given, layers.Embedding(WORDS, 2)(given))
    for model in (tower, keras.Sequential([given, layers.Dense(2)])):
        with pytest.raises(TypeError, match="argument 'attention_mask'"):
            ChunkedTower(model, 4)(IDS, attention_mask=MASK)


@pytest.mark.parametrize("symbolic", [False, True])
def test_keywords_with_other_rows(symbolic):
    layer = ChunkedTower(Encoder(), 4)
    ids, keywords = arguments_of(10)
    keywords["extra"]["b"][0] = np.ones((9, WIDTH), "float32")
    if symbolic:
        ids, keywords = tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype),
            (ids, keywords),
        )
    with pytest.raises(ValueError) as error:
        layer(ids, **keywords)
    assert "must have the same number of rows" in str(error.value)
    assert "inputs: 10 rows, attention_mask: 10 rows" in str(error.value)
    assert "extra['b'][0]: 9 rows" in str(error.value)
    with pytest.raises(ValueError) as error:
        layer(ids, scale=ops.ones(()))
    assert "`scale` must have one entry per row" in str(error.value)
    x = np.ones((10, 3), "float32")
    with pytest.raises(ValueError, match="inputs: 10 rows, mask: 1 rows"):
        ChunkedTower(Both(), 4)(x, mask=x[:1] > 0)


@pytest.mark.backends("tensorflow", "jax")
def test_sparse_keywords_are_refused_in_words():
    layer = ChunkedTower(Encoder(), 4)
    given = keras.Input((LENGTH,), dtype="int32")
    with pytest.raises(TypeError, match="`scale` must be dense"):
        layer(given, scale=keras.Input((1,), sparse=True))


@pytest.mark.backends("jax")
def test_an_error_leaves_the_weights_of_the_model():
    dense = layers.Dense(LENGTH)

    class Refused(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = dense
            self.tower = ChunkedTower(layers.Dense(2), 4)

        def call(self, x, training=None):
            x = self.dense(x)
            return self.tower(x, x > 0) if training else self.tower(x)

    model = Refused()
    model(np.ones((10, 3), "float32"))
    weights = model.get_weights()
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="the only positional argument"):
        model.fit(np.ones((10, 3)), np.ones((10, 2)), 10, verbose=0)
    assert_all_equal(model.get_weights(), weights)

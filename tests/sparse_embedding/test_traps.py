"""What goes wrong silently elsewhere: here it is right, or refused in words."""

import warnings

import keras
import numpy as np
import pytest

import inbatch_neg
from tests import internals
from tests.helpers import BACKEND, assert_all_equal, to_numpy, weights_of
from tests.sparse_embedding import test_exact as exact


def test_two_calls_in_a_step():
    model, layer = exact.model_of(nest=False, epsilon=0.1)
    before = weights_of(model)
    if BACKEND == "jax":
        with pytest.raises(ValueError, match="called once in a step"):
            exact.fit(model, 2)
        assert_all_equal(weights_of(model), before)
        model.evaluate(exact.DATA, exact.TARGET, verbose=0)
    else:
        exact.fit(model, 5)
        exact.assert_as_expected(layer, before[0], 5, 0.1)


SGD = keras.optimizers.SGD


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("clipnorm", lambda: SGD(clipnorm=1.0)),
        ("clipvalue", lambda: SGD(clipvalue=1.0)),
        ("global_clipnorm", lambda: keras.optimizers.Adam(global_clipnorm=1.0)),
        ("use_ema", lambda: SGD(use_ema=True)),
        (
            "gradient_accumulation_steps",
            lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
        ),
        ("weight_decay", lambda: keras.optimizers.AdamW()),
    ],
)
def test_options_that_do_not_reach_the_table(name, optimizer):
    model, _ = exact.model_of()
    before = weights_of(model)
    with pytest.raises(ValueError, match=f"`{name}` of the optimizer"):
        exact.fit(model, 2, optimizer())
    assert_all_equal(weights_of(model), before)


def test_weight_decay_of_the_other_weights():
    model, layer = exact.model_of(epsilon=0.1)
    before = weights_of(layer)[0]
    optimizer = keras.optimizers.AdamW(1e-30)
    optimizer.exclude_from_weight_decay(var_names=["embeddings"])
    exact.fit(model, 5, optimizer)
    exact.assert_as_expected(layer, before, 5, 0.1)


def test_a_loss_on_the_table_itself():
    layer = inbatch_neg.SparseEmbedding(30, 4)
    layer.build()

    class Tied(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = layer

        def call(self, ids):
            vectors = self.embedding(ids)
            return vectors @ keras.ops.transpose(layer.embeddings)

    model = Tied()
    model.compile(SGD(), keras.losses.SparseCategoricalCrossentropy(True))
    before = weights_of(model)
    ids = np.arange(8, dtype="int32")
    with pytest.raises(ValueError, match="only through the layer's own call"):
        model.fit(ids, ids, verbose=0)
    assert_all_equal(weights_of(model), before)
    model.evaluate(ids, ids, verbose=0)


def test_in_a_chunked_tower():
    ids = keras.Input((), dtype="int32")
    tower = keras.Model(ids, inbatch_neg.SparseEmbedding(9, 4)(ids))
    chunked = inbatch_neg.ChunkedTower(tower, 2)
    with pytest.raises(ValueError, match="must not have weights that a step"):
        chunked(np.arange(8, dtype="int32"))
    with pytest.raises(ValueError, match="must not have weights that a step"):
        chunked(keras.Input((), dtype="int32"))


def test_nothing_else_changes_the_table():
    model, layer = exact.model_of()
    exact.fit(model, 2)
    before = weights_of(layer)
    model.evaluate(exact.DATA, exact.TARGET, verbose=0)
    model.predict(exact.DATA, verbose=0)
    assert_all_equal(weights_of(layer), before)
    for frozen in (layer, layer.embeddings):
        frozen.trainable = False
        exact.fit(model, 2)
        assert_all_equal(weights_of(layer), before)
        frozen.trainable = True
    exact.fit(model, 2)
    assert np.any(weights_of(layer)[0] != before[0])


@pytest.mark.parametrize("way", [{"trainable": False}, {"frozen": True}])
def test_frozen_from_the_start(way):
    model, layer = exact.model_of(epsilon=0.1, **way)
    before = weights_of(layer)
    exact.fit(model, 1)
    assert_all_equal(weights_of(layer), before)
    layer.trainable = True
    exact.fit(model, 2)
    exact.assert_as_expected(layer, before[0], 2, 0.1)


@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.backends("tensorflow")
def test_data_of_unknown_length(jit_compile):
    def batches():
        for start in range(0, 5 * exact.BATCH, exact.BATCH):
            rows = slice(start, start + exact.BATCH)
            yield (
                {k: v[rows] for k, v in exact.DATA.items()},
                exact.TARGET[rows],
            )

    model, layer = exact.model_of(epsilon=0.1)
    before = weights_of(layer)[0]
    model.compile(SGD(0.0), "mse", jit_compile=jit_compile)
    model.fit(batches(), verbose=0)
    exact.assert_as_expected(layer, before, 5, 0.1)


@pytest.mark.keras_at_least("3.15")
@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_loss_scaling(kind):
    model, layer = exact.model_of(epsilon=0.1)
    before = weights_of(layer)[0]
    if kind == "dynamic":
        optimizer = keras.optimizers.LossScaleOptimizer(SGD(0.0), 2.0**10)
    else:
        optimizer = SGD(0.0, loss_scale_factor=128.0)
    if BACKEND == "torch" and kind == "dynamic":
        with pytest.raises(ValueError, match="with a `LossScaleOptimizer`"):
            exact.fit(model, 5, optimizer)
        return
    exact.fit(model, 5, optimizer)
    exact.assert_as_expected(layer, before, 5, 0.1)


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.keras_at_least("3.15")
def test_an_overflow_in_float16_is_skipped():
    keras.config.set_dtype_policy("mixed_float16")
    layer = inbatch_neg.SparseEmbedding(30, 4, epsilon=0.1)
    assert layer(np.arange(3)).dtype in (
        "float16",
        keras.ops.ones(1, "float16").dtype,
    )
    ids = keras.Input((), dtype="int32")
    model = keras.Model(ids, keras.layers.Dense(4)(layer(ids)))
    model.compile(SGD(0.1), "mse")
    before = weights_of(layer)
    rows = np.arange(8, dtype="int32")
    model.fit(rows, np.full((8, 4), np.inf, "float32"), verbose=0)
    assert_all_equal(weights_of(layer), before)
    model.fit(rows, np.ones((8, 4), "float32"), epochs=4, verbose=0)
    after = weights_of(layer)
    assert np.all(np.isfinite(after[0])) and np.any(after[0] != before[0])
    assert_all_equal([after[0][8:]], [before[0][8:]])


@pytest.mark.parametrize("bad", [-1, 30])
def test_ids_out_of_range_train_no_row(bad):
    layer = inbatch_neg.SparseEmbedding(30, 4)
    ids = keras.Input((), dtype="int32")
    model = keras.Model(ids, keras.layers.Dense(1)(layer(ids)))
    model.compile(SGD(0.0), "mse")
    before = weights_of(layer)
    rows = np.array([bad, 3], "int32")
    weight = np.array([1.0, 0.0], "float32")
    try:
        model.train_on_batch(rows, np.ones((2, 1)), weight)
    except Exception as error:
        assert BACKEND != "jax", error
    after = weights_of(layer)
    changed = np.flatnonzero(np.any(after[0] != before[0], axis=1))
    assert set(changed) <= {3}, changed
    if BACKEND == "jax":
        assert np.isnan(to_numpy(layer(rows))[0]).all()


def test_float_ids():
    with pytest.raises(TypeError, match="must be integers"):
        inbatch_neg.SparseEmbedding(30, 4)(np.ones(3, "float32"))
    with pytest.raises(TypeError, match="must be integers"):
        inbatch_neg.SparseEmbedding(30, 4)(keras.Input(()))


def test_ids_of_a_sequential_model():
    # Keras makes an input of floats for its first layer.
    table = inbatch_neg.SparseEmbedding(30, 4)
    ids = keras.Input((), dtype="int32")
    with pytest.raises(TypeError, match="as its first layer"):
        keras.Sequential([table])(ids)
    tower = keras.Sequential([keras.Input((), dtype="int32"), table])
    assert tower(ids).shape == (None, 4)


def test_a_tower_without_a_symbolic_shape_of_its_own():
    class Tower(keras.Model):
        def __init__(self):
            super().__init__()
            self.table = inbatch_neg.SparseEmbedding(30, 4)

        def call(self, ids):
            return self.table({"item": ids, "last": ids[:, -1]})

    vectors = Tower()(keras.Input((5,), dtype="int32"))
    assert vectors["item"].shape == (None, 5, 4)
    assert vectors["last"].shape == (None, 4)


def test_an_outer_policy_does_not_round_the_table():
    inner = inbatch_neg.SparseEmbedding(30, 4, dtype="float32")
    inner.build()

    class Outer(keras.layers.Layer):
        def call(self, ids):
            return inner(ids)

    ids = np.arange(30, dtype="int32")
    found = to_numpy(Outer(dtype="mixed_bfloat16")(ids))
    assert_all_equal([found], [to_numpy(inner.embeddings)])


@pytest.mark.backends("jax")
@pytest.mark.parametrize("cause", ["not compiled", "LossScaleOptimizer"])
def test_a_copy_of_a_large_table(cause, monkeypatch):
    from inbatch_neg.sparse_embedding import jax

    monkeypatch.setattr(jax, "LARGE_TABLE", 1)
    model, _ = exact.model_of()
    if cause == "not compiled":
        arguments = {"run_eagerly": True}
    else:
        arguments = {"optimizer": keras.optimizers.LossScaleOptimizer(SGD())}
    with pytest.warns(UserWarning, match=f"{cause}.* copies the whole table"):
        exact.fit(model, 2, **arguments)


def torch_step(model, optimizer, start):
    import torch

    rows = slice(start, start + exact.BATCH)
    inputs = {k: torch.as_tensor(v[rows]) for k, v in exact.DATA.items()}
    optimizer.zero_grad()
    loss = ((model(inputs) - torch.as_tensor(exact.TARGET[rows])) ** 2).mean()
    loss.backward()


@pytest.mark.backends("torch")
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad"])
def test_own_optimizers_of_torch(name):
    import torch

    model, layer = exact.model_of(epsilon=0.1)
    before = weights_of(layer)[0]
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-30)
    for step in range(5):
        torch_step(model, optimizer, step * exact.BATCH)
        optimizer.step()
    exact.assert_as_expected(layer, before, 5, 0.1)
    with pytest.raises(ValueError, match="`closure` cannot be used"):
        optimizer.step(lambda: 0.0)
    torch_step(model, optimizer, 0)
    (layer.embeddings.value.sum()).backward()
    with pytest.raises(ValueError, match="only through the layer's own call"):
        optimizer.step()


@pytest.mark.backends("torch")
def test_the_compiler_of_torch():
    import torch

    model, layer = exact.model_of(epsilon=0.1)
    before = weights_of(layer)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = torch.compile(torch_step, backend="eager")
    for number in range(3):
        step(model, optimizer, number * exact.BATCH)
        optimizer.step()
    exact.assert_as_expected(layer, before, 3, 0.1)


@pytest.mark.keras_at_least("3.15")
def test_a_table_that_the_step_does_not_use():
    used, unused, stopped = (
        inbatch_neg.SparseEmbedding(30, 4) for _ in range(3)
    )

    class Some(keras.Model):
        def __init__(self):
            super().__init__()
            self.tables = [used, unused, stopped]

        def call(self, ids, training=None):
            vectors = stopped(ids, training=training)
            return used(ids, training=training) + keras.ops.stop_gradient(
                vectors
            )

    for layer in (used, unused, stopped):
        layer.build()
    model = Some()
    before = [weights_of(layer) for layer in (used, unused, stopped)]
    model.compile(SGD(), "mse")
    ids = np.arange(8, dtype="int32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Keras: no gradient
        model.fit(ids, np.ones((8, 4)), verbose=0)
    after = [weights_of(layer) for layer in (used, unused, stopped)]
    assert np.any(after[0][0] != before[0][0])
    assert_all_equal(after[1] + after[2], before[1] + before[2])


@pytest.mark.backends("torch")
def test_several_processes(monkeypatch):
    internals.pretend_replicas(monkeypatch, 2)
    model, layer = exact.model_of()
    model.predict(exact.DATA, verbose=0)
    with pytest.raises(ValueError, match="several processes of PyTorch"):
        exact.fit(model, 2)


@pytest.mark.backends("jax")
def test_a_table_in_shards():
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"))
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(
            layout_map=keras.distribution.LayoutMap(mesh),
            batch_dim_name="batch",
        )
    )
    try:
        with pytest.raises(ValueError, match="cannot be sharded"):
            inbatch_neg.SparseEmbedding(3, 2).build()
    finally:
        keras.distribution.set_distribution(None)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"input_dim": 0}, ValueError, "`input_dim`"),
        ({"output_dim": 2.5}, TypeError, "`output_dim`"),
        ({"learning_rate": 0}, ValueError, "`learning_rate`"),
        ({"learning_rate": "fast"}, TypeError, "`learning_rate`"),
        ({"initial_accumulator": -1}, ValueError, "`initial_accumulator`"),
        ({"epsilon": 0}, ValueError, "`epsilon`"),
        ({"mask_zero": 1}, TypeError, "`mask_zero`"),
    ],
    ids=str,
)
@pytest.mark.once
def test_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        inbatch_neg.SparseEmbedding(
            **{"input_dim": 3, "output_dim": 2, **arguments}
        )


@pytest.mark.once
def test_a_rate_of_another_shape():
    with pytest.raises(ValueError, match="`learning_rate` must have shape"):
        inbatch_neg.SparseEmbedding(3, 2, learning_rate=keras.Variable([0.1]))

"""Against loops of float64, and that nothing else changes."""

import keras
import numpy as np
import pytest

import inbatch_neg
from tests.helpers import BACKEND, to_numpy
from tests.sparse_embedding import rowwise

ROWS, SIZE, DIMENSIONS, BATCH, LENGTH = 30, 3, 4, 8, 5
RNG = np.random.default_rng(0)
STEPS = 100
# Row 25 and above never occur.
ITEM = RNG.integers(0, 25, (STEPS * BATCH,)).astype("int32")
HISTORY = RNG.integers(0, 25, (STEPS * BATCH, LENGTH)).astype("int32")
TARGET = RNG.normal(size=(STEPS * BATCH, DIMENSIONS)).astype("float32")
DATA = {"item": ITEM, "history": HISTORY}


def model_of(nest=True, dtype=None, frozen=False, **arguments):
    """Returns the model whose outputs are item + mean of the history."""
    layer = inbatch_neg.SparseEmbedding(
        ROWS, DIMENSIONS, **{"learning_rate": 0.3, **arguments}, dtype=dtype
    )
    if frozen:
        layer.trainable = False
    inputs = {
        "item": keras.Input((), dtype="int32", name="item"),
        "history": keras.Input((LENGTH,), dtype="int32", name="history"),
    }
    vectors = (
        layer(inputs) if nest else {k: layer(v) for k, v in inputs.items()}
    )
    total = vectors["item"] + keras.ops.mean(vectors["history"], axis=1)
    bias = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    outputs = total + bias(total)  # another weight, of the optimizer's own
    return keras.Model(inputs, outputs), layer


def expected(table, steps, epsilon, rate=0.3, initial=0.1):
    table = table.astype("float64")
    accumulators = np.full(ROWS, initial)
    for start in range(0, steps * BATCH, BATCH):
        rows = slice(start, start + BATCH)
        item, history = ITEM[rows], HISTORY[rows]
        output = table[item] + table[history].mean(1)
        gradient = 2 * (output - TARGET[rows]) / output.size
        rowwise.step(
            table,
            accumulators,
            np.concatenate([item, history.reshape(-1)]),
            np.concatenate(
                [gradient, np.repeat(gradient / LENGTH, LENGTH, axis=0)]
            ),
            rate,
            epsilon,
        )
    return table, accumulators


def fit(model, steps=STEPS, optimizer=None, **arguments):
    # The other weight does not train, so that the loops stay short.
    model.compile(optimizer or keras.optimizers.SGD(0.0), "mse", **arguments)
    rows = steps * BATCH
    model.fit(
        {k: v[:rows] for k, v in DATA.items()},
        TARGET[:rows],
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
    )


def state(layer):
    return {v.path.split("/")[-1]: to_numpy(v) for v in layer.weights}


def assert_as_expected(layer, before, steps, epsilon, tolerance=1e-5):
    table, accumulators = expected(before, steps, epsilon)
    found = state(layer)
    np.testing.assert_allclose(
        found["embeddings"], table, tolerance, tolerance * np.abs(table).max()
    )
    np.testing.assert_allclose(found["accumulators"], accumulators, tolerance)
    assert np.array_equal(found["embeddings"][25:], before[25:])
    assert np.all(found["accumulators"][25:] == np.float32(0.1))


WAYS = {
    "fit": {},
    "eager": {"run_eagerly": True},
    "uncompiled": {"jit_compile": False},
}


@pytest.mark.parametrize("epsilon", [1e-7, 0.1])
@pytest.mark.parametrize("way", WAYS)
def test_equals_the_loops(way, epsilon):
    if way != "fit" and BACKEND == "torch":
        epsilon = 0.1
    model, layer = model_of(epsilon=epsilon)
    before = state(layer)["embeddings"]
    steps = 100 if way == "fit" else 5
    fit(model, steps, **WAYS[way])
    assert_as_expected(layer, before, steps, epsilon)


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-6), ("bfloat16", 5e-3)]
)
def test_another_dtype_than_that_of_the_loss(dtype, tolerance):
    model, layer = model_of(dtype=dtype)
    before = state(layer)["embeddings"]
    fit(model, 1)
    table, _ = expected(before, 1, 1e-7)
    found = state(layer)["embeddings"].astype("float64")
    assert np.abs(found - table).max() < tolerance * np.abs(table).max()


@pytest.mark.parametrize("rows", [300, 70_000])  # beyond 8 and 16 bits
def test_ids_of_few_bits(rows):
    layer = inbatch_neg.SparseEmbedding(rows, 1, "uniform")
    layer.build()
    ids = np.array([0, 44, 127])
    table = to_numpy(layer.embeddings)
    dtypes = ["int8", "uint8", "int16", "int32", "int64"]
    alone = [layer(ids.astype(dtype)) for dtype in dtypes]
    together = layer({dtype: ids.astype(dtype) for dtype in dtypes})
    for vectors in (*alone, *together.values()):
        np.testing.assert_array_equal(to_numpy(vectors), table[ids])


@pytest.mark.backends("jax")
def test_a_gradient_that_was_compiled_before():
    import jax

    model, layer = model_of(epsilon=0.1)
    before = state(layer)["embeddings"]
    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build(model.trainable_variables)
    trainable = [v.value for v in model.trainable_variables]
    others = [v.value for v in optimizer.variables]

    def batch(step):
        rows = slice(step * BATCH, step * BATCH + BATCH)
        return {k: v[rows] for k, v in DATA.items()}, TARGET[rows]

    def loss(trainable, inputs, target):
        output, _ = model.stateless_call(trainable, [], inputs)
        return ((output - target) ** 2).mean()

    gradient = jax.jit(jax.grad(loss))
    for step in range(2):
        # Compiled anew, as with another shape.
        trainable, others = jax.jit(lambda *x: optimizer.stateless_apply(*x))(
            others, gradient(trainable, *batch(step)), trainable
        )
    for variable, value in zip(model.trainable_variables, trainable):
        variable.assign(value)
    assert_as_expected(layer, before, 2, 0.1)

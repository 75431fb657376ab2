"""State in a chunked tower: random numbers, moving averages, counters."""

import keras
import numpy as np
import pytest
from keras import layers

from inbatch_neg import ChunkedTower
from tests.helpers import assert_close, to_numpy
from tests.layers import towers
from tests.layers.test_chunked_tower import WAYS, assert_same, oracle


class Noise(layers.Layer):
    """Multiplies by normal numbers of a generator of its own."""

    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(5)

    def call(self, x):
        return x * keras.random.normal(keras.ops.shape(x), seed=self.generator)


class Counter(layers.Layer):
    """Two weights that depend on the order of the chunks; uses one of them."""

    def build(self, shape):
        kind = {"trainable": False, "initializer": "ones"}
        self.calls = self.add_weight(shape=(), dtype="int32", **kind)
        self.trace = self.add_weight(shape=(shape[-1],), **kind)

    def call(self, x):
        self.calls.assign(self.calls + 1)
        self.trace.assign(0.5 * self.trace + keras.ops.mean(x, axis=0))
        # A copy, since PyTorch refuses to differentiate what is assigned.
        return x * keras.ops.stop_gradient(self.trace + 0.0)


def dense(*between):
    """Returns a smooth tower with layers inside."""
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(6, activation="tanh"),
            *between,
            layers.Dense(2),
        ]
    )


STATEFUL = {
    "draws": lambda: dense(layers.Dropout(0.5, seed=1), Noise()),
    "averages": lambda: dense(layers.BatchNormalization(), Counter()),
}


def copy(make):
    keras.utils.set_random_seed(4)
    return make()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STATEFUL)
def test_state_goes_from_chunk_to_chunk(name, way):
    """As if the tower was called on one chunk after the other, by hand."""
    batch = towers.rows_of(10)["x"]
    one, other = copy(STATEFUL[name]), copy(STATEFUL[name])
    by_hand, chunked = towers.ByHand(one, 4), towers.chunked(other, 4)
    modes = (True,)
    if name == "averages" and way != "xla":  # which compiles for seconds
        modes = (True, False)
    # XLA of TensorFlow draws other numbers.
    by_hand_way = way if way == "xla" else towers.ORACLE
    for training in modes:
        expected = towers.run(by_hand, batch, training, by_hand_way)
        found = towers.run(chunked, batch, training, way)
        assert_same(found, expected)


def test_attention_dropout():
    def make():
        given = keras.Input((3, 2))
        attention = layers.MultiHeadAttention(1, 2, dropout=0.5, seed=1)
        return keras.Model(given, attention(given, given))

    batch = np.random.default_rng(0).normal(size=(6, 3, 2)).astype("float32")
    one, other = copy(make), copy(make)
    expected = oracle(towers.ByHand(one, 4), batch)
    found = towers.run(towers.chunked(other, 4), batch)
    assert_same(found, expected)
    # The counts of the draws: one in each chunk.
    assert max(seed[1] for seed in found["state"]) == 2


def test_gradients_are_those_of_the_drawn_function():
    """Central differences along a direction, each from the same seeds."""
    tower = copy(STATEFUL["draws"])
    model = towers.chunked(tower, 4)
    rows = towers.rows_of(10)["x"]
    state = [to_numpy(v) for v in tower.non_trainable_variables]

    def run():
        for variable, value in zip(tower.non_trainable_variables, state):
            variable.assign(value)
        return towers.run(model, rows)

    slopes = run()["weights"]
    weights = [to_numpy(v) for v in tower.trainable_variables]
    random = np.random.default_rng(0)
    directions = [random.normal(size=w.shape) for w in weights]

    def loss(step):
        for variable, value, way in zip(
            tower.trainable_variables, weights, directions
        ):
            variable.assign((value + step * way).astype("float32"))
        total = 0.0
        for number, x in enumerate(run()["outputs"]):
            upstream = np.cos(np.arange(x.size) + number).reshape(x.shape)
            total += float((x.astype("float64") * upstream).sum())
        return total

    step = 3e-3
    difference = (loss(step) - loss(-step)) / (2 * step)
    slope = sum(
        (np.asarray(s, "float64") * d).sum() for s, d in zip(slopes, directions)
    )
    scale = sum(np.abs(s * d).sum() for s, d in zip(slopes, directions))
    # Another mask in the second run would be wrong by half of it and more.
    assert abs(slope - difference) < 5e-3 * scale, (slope, difference)


def test_each_chunk_is_drawn_anew_and_each_step_too():
    layer = ChunkedTower(layers.Dropout(0.5, seed=1), 4)
    rows = np.ones((12, 50), "float32")
    draws = [to_numpy(layer(rows, training=True)) for _ in range(2)]
    chunks = [x for draw in draws for x in np.split(draw, 3)]
    for place, chunk in enumerate(chunks):
        assert 0.3 < (chunk == 0).mean() < 0.7
        for other in chunks[:place]:
            assert (chunk != other).mean() > 0.3
    (seed,) = layer.non_trainable_variables
    assert to_numpy(seed).tolist()[1] == 6  # three chunks, twice


def test_batch_normalization_moves_once_a_chunk():
    tower = layers.BatchNormalization(momentum=0.5)
    layer = ChunkedTower(tower, 4)
    rows = np.repeat([[1.0], [2.0], [3.0]], [4, 4, 2], 0).astype("float32")
    layer(rows, training=True)
    mean = ((0.0 * 0.5 + 1.0 * 0.5) * 0.5 + 2.0 * 0.5) * 0.5 + 3.0 * 0.5
    assert_close(to_numpy(tower.moving_mean), [mean])
    model = towers.Wrapped(layer)
    towers.run(model, rows)  # with a gradient, and so with a second run
    for value in (1.0, 2.0, 3.0):
        mean = 0.5 * mean + 0.5 * value
    assert_close(to_numpy(tower.moving_mean), [mean])


def test_one_layer_called_twice_in_a_model():
    """The second call goes on from the state that the first one leaves."""

    class Twice(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def call(self, x, training=None):
            first = self.layer(x, training=training)
            return first, self.layer(2.0 * x, training=training)

    def make():
        return dense(layers.Dropout(0.5, seed=1), Counter())

    batch = towers.rows_of(6)["x"]
    one, other = copy(make), copy(make)
    expected = oracle(Twice(towers.ByHand(one, 4)), batch)
    found = towers.run(Twice(ChunkedTower(other, 4)), batch)
    assert_same(found, expected)


# The values of JAX never change.
@pytest.mark.backends("tensorflow", "torch")
def test_a_later_call_does_not_disturb_the_gradient_of_an_earlier_one():
    """What the first call has read is assigned before its second run."""

    class EvaluatedThenTrained(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def call(self, x, training=None):
            return self.layer(x, training=False), self.layer(x, training=True)

    batch = towers.rows_of(10)["x"]
    one, other = copy(STATEFUL["draws"]), copy(STATEFUL["draws"])
    expected = oracle(EvaluatedThenTrained(towers.ByHand(one, 4)), batch)
    found = towers.run(EvaluatedThenTrained(ChunkedTower(other, 4)), batch)
    assert_same(found, expected)


@pytest.mark.backends("tensorflow", "torch")
@pytest.mark.keras_at_least("3.6")  # draws otherwise in the loop before
def test_the_global_generator_of_keras():
    """JAX refuses it in a compiled function, by Keras' own error."""

    class Unseeded(layers.Layer):
        def call(self, x):
            return x * keras.random.normal(keras.ops.shape(x))

    batch = towers.rows_of(10)["x"]
    results = []
    for make in (towers.ByHand, towers.chunked):
        model = make(copy(lambda: dense(Unseeded())), 4)
        keras.utils.set_random_seed(9)
        for way in ("compiled", "eager"):  # both eager on PyTorch
            results.append(towers.run(model, batch, way=way))
    half = len(results) // 2
    for expected, found in zip(results[:half], results[half:]):
        assert_same(found, expected)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("built", [True, False])
def test_the_generator_and_the_buffers_of_torch(built):
    """Keras takes a `Sequential` with an `Input` for built, modules or not."""
    import torch

    batch = towers.rows_of(10)["x"]
    results = []
    for around in (towers.ByHand, towers.chunked):
        keras.utils.set_random_seed(3)
        norm = torch.nn.BatchNorm1d(6)
        # Where the first run builds a layer, it is done again, and draws again.
        modules = [torch.nn.Dropout(0.5), norm] if built else [norm]
        model = around(dense(*map(layers.TorchModuleWrapper, modules)), 4)
        if built:
            model(batch)  # builds the layers behind a module
            norm.reset_running_stats()
        torch.manual_seed(7)
        results.append(towers.run(model, batch))
        results[-1]["buffers"] = [to_numpy(x) for x in norm.buffers()]
    assert len(results[0]["buffers"]) == 3
    assert_same(results[1], results[0])

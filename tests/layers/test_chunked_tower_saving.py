"""A chunked tower on disk, cloned, exported; its weights with and without."""

import keras
import numpy as np
import pytest
from keras import layers

import inbatch_neg
from inbatch_neg import ChunkedTower
from tests.helpers import assert_all_equal, assert_close, to_numpy
from tests.layers import towers


def functional(tower):
    given = towers.inputs()
    return keras.Model(given, tower(given)["vector"])


@pytest.fixture
def model():
    return functional(ChunkedTower(towers.light_encoder(dropout=0.3), 4))


def outputs(model, rows=10):
    given = towers.rows_of(rows)
    return model.predict(given, batch_size=rows, verbose=0)


def chunked_of(model):
    (layer,) = [x for x in model.layers if isinstance(x, ChunkedTower)]
    return layer


def test_a_subclassed_tower_that_is_built_by_its_first_call(tmp_path):
    @keras.saving.register_keras_serializable(package="tests")
    class Tower(keras.Model):
        def __init__(self, width, **kwargs):
            super().__init__(**kwargs)
            self.width = width
            self.dense = layers.Dense(width)

        def call(self, inputs):
            return self.dense(inputs["x"])

        def get_config(self):
            return {**super().get_config(), "width": self.width}

    given = towers.inputs()
    model = keras.Model(given, ChunkedTower(Tower(2), 4)(given))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(outputs(loaded), outputs(model), 1e-6)
    # Built by its first rows.
    layer = ChunkedTower(Tower(3), 4)
    rows = towers.rows_of(10)
    assert_close(to_numpy(layer(rows)), to_numpy(layer.tower(rows)), 1e-6)


def test_cloned(model):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert chunked_of(clone).tower is not chunked_of(model).tower
    assert_close(outputs(clone), outputs(model), 1e-6)


def test_config_of_the_layer():
    layer = ChunkedTower(layers.Dense(2), 7, name="tower", trainable=False)
    again = ChunkedTower.from_config(layer.get_config())
    assert (again.chunk_size, again.name, again.trainable) == (
        7,
        "tower",
        False,
    )
    assert again.tower.units == 2


def test_a_tower_in_two_layers_stays_one(tmp_path):
    tower = towers.light_encoder()
    halves = towers.inputs("a_"), towers.inputs("b_")
    given = [x for half in halves for x in half.values()]
    model = keras.Model(
        given,
        [ChunkedTower(tower, n)(h)["vector"] for n, h in zip((3, 4), halves)],
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert len(loaded.weights) == len(model.weights) == len(tower.weights)


class Parent(keras.Model):
    def __init__(self, wrap):
        super().__init__()
        self.tower = wrap(keras.Sequential([layers.Dense(3), layers.Dense(2)]))

    def call(self, x):
        return self.tower(x)


def test_paths_and_order_of_weights_are_those_of_the_tower(tmp_path):
    def wrap(tower):
        return ChunkedTower(tower, 4)

    found = []
    for around in (lambda tower: tower, wrap):
        keras.utils.clear_session(free_memory=False)
        found.append(functional(around(towers.light_encoder())))
    plain, chunked = found
    paths = [[v.path for v in model.variables] for model in found]
    assert paths[0] == paths[1]
    # So weights go both ways, as lists and by their paths.
    for model in found:
        model.compile("sgd", "mse")
    chunked.set_weights(plain.get_weights())
    assert_close(outputs(chunked), outputs(plain), 1e-6)
    plain.set_weights([w + 0.1 for w in plain.get_weights()])
    values = {v.path: to_numpy(v) for v in plain.variables}
    for variable in chunked.variables:
        variable.assign(values[variable.path])
    assert_close(outputs(chunked), outputs(plain), 1e-6)
    # As a file, those of the tower, which is the same object in both.
    tower = chunked_of(chunked).tower
    tower.save_weights(tmp_path / "tower.weights.h5")
    other = towers.light_encoder()
    other.load_weights(tmp_path / "tower.weights.h5")
    assert_all_equal(other.get_weights(), tower.get_weights())
    other.save_weights(tmp_path / "other.weights.h5")
    tower.load_weights(tmp_path / "other.weights.h5")


def test_paths_in_a_subclassed_model():
    paths = []
    for wrap in (lambda tower: tower, lambda tower: ChunkedTower(tower, 4)):
        keras.utils.clear_session(free_memory=False)
        model = Parent(wrap)
        model(np.ones((5, 3), "float32"))
        paths.append([v.path for v in model.variables])
    assert paths[0] == paths[1]


def test_weights_of_the_whole_model_as_a_file(model, tmp_path):
    model.save_weights(tmp_path / "model.weights.h5")
    again = functional(ChunkedTower(towers.light_encoder(dropout=0.3), 8))
    again.load_weights(tmp_path / "model.weights.h5")
    assert_close(outputs(again), outputs(model), 1e-6)


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize(
    "whole",
    [
        # Keras 3.5 exports a dict of inputs as a list.
        pytest.param(True, marks=pytest.mark.keras_at_least("3.6")),
        False,
    ],
)
def test_exported(whole, tmp_path):
    import tensorflow as tf

    model = functional(ChunkedTower(towers.light_encoder(dropout=0.3), 4))
    tower = chunked_of(model).tower
    # A signature of TensorFlow cannot return nested outputs.
    exported = (
        model if whole else keras.Model(tower.inputs, tower.output["vector"])
    )
    exported.export(tmp_path / "saved")
    # Owns the variables of its functions.
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    for rows in (1, 4, 10):
        given = {k: tf.constant(v) for k, v in towers.rows_of(rows).items()}
        if not whole:
            given = [given[x.name] for x in tower.inputs]
        found = loaded.serve(given)
        assert_close(found.numpy(), outputs(model, rows), 1e-5)


@pytest.mark.backends("torch")
def test_exported_by_torch():
    import torch

    model = functional(ChunkedTower(towers.encoder(dropout=0.3), 4))
    given = {k: torch.as_tensor(v) for k, v in towers.rows_of(10).items()}
    program = torch.export.export(model, (given,), strict=False)
    assert_close(to_numpy(program.module()(given)), outputs(model), 1e-5)


def test_saved_in_the_middle_of_training(tmp_path):
    """With the softmax behind it."""
    query, item = towers.inputs("query_"), towers.inputs("item_")
    tower = ChunkedTower(towers.light_encoder(), 4)
    losses = inbatch_neg.InBatchNegativeSoftmax(temperature=0.5)(
        tower(query)["vector"], tower(item)["vector"]
    )
    model = keras.Model(
        {v.name: v for v in [*query.values(), *item.values()]}, losses
    )
    loss = inbatch_neg.InBatchNegativeLoss()
    model.compile("adam", loss=loss, **towers.TRAINS)
    rows = {
        f"{side}_{name}": values
        for seed, side in enumerate(("query", "item"))
        for name, values in towers.rows_of(10, seed).items()
    }
    model.train_on_batch(rows, np.zeros(10))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert chunked_of(loaded).chunk_size == 4
    assert_all_equal(loaded.get_weights(), model.get_weights())
    model.reset_metrics()  # else the mean of both steps, in Keras 3.5
    losses = [m.train_on_batch(rows, np.zeros(10)) for m in (model, loaded)]
    assert_close(losses[1], losses[0], 1e-6)
    for one, other in zip(model.get_weights(), loaded.get_weights()):
        assert_close(other, one, 1e-5)

"""A variable, or a tower, of two layers stays one in a copy of the model."""

import json
import pickle

import keras
import numpy as np
import pytest

from inbatch_neg import (
    ChunkedTower,
    InBatchNegativeLoss,
    InBatchNegativeSoftmax,
)
from tests.helpers import BACKEND, assert_close, to_numpy

ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
LABELS = {"one": np.zeros(6, "float32"), "other": np.zeros(6, "float32")}


def two_losses(one, other):
    """Returns a model with two softmax layers, each of other vectors."""
    given = keras.Input((4,))
    shifted = keras.layers.Dense(4, name="dense")(given)
    outputs = {
        "one": InBatchNegativeSoftmax(temperature=one, name="one")(
            given, shifted
        ),
        "other": InBatchNegativeSoftmax(temperature=other, name="other")(
            shifted, given
        ),
    }
    return keras.Model(given, outputs)


def compiled(model, optimizer="sgd"):
    losses = {name: InBatchNegativeLoss() for name in LABELS}
    # TensorFlow takes longer to trace a step than to run a few.
    model.compile(
        keras.optimizers.get(optimizer),
        loss=losses,
        run_eagerly=BACKEND == "tensorflow",
    )
    return model


def shared(trainable=True):
    variable = keras.Variable(0.5, trainable=trainable, name="mine")
    return two_losses(variable, variable)


def temperatures(model):
    return [
        float(to_numpy(model.get_layer(name).temperature)) for name in LABELS
    ]


def saved_and_loaded(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def cloned(model, folder):
    del folder
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def pickled(model, folder):
    del folder
    return pickle.loads(pickle.dumps(model))


copies = pytest.mark.parametrize("copy", [saved_and_loaded, cloned, pickled])


@pytest.mark.parametrize(
    ("copy", "optimizer"),
    [(saved_and_loaded, "adam"), (cloned, "sgd"), (pickled, "adam")],
)
def test_it_trains_by_the_sum_of_both_gradients(copy, optimizer, tmp_path):
    model = compiled(shared(), optimizer)
    for _ in range(2):
        model.train_on_batch(ROWS, LABELS)
    again = copy(model, tmp_path)
    assert len(again.weights) == len(model.weights) == 3
    assert len(again.trainable_weights) == 3
    if copy is cloned:  # without the state of the optimizer
        compiled(again, optimizer)
    assert len(again.optimizer.variables) == len(model.optimizer.variables)
    for one in (model, again):
        one.train_on_batch(ROWS, LABELS)
    assert temperatures(again) == pytest.approx(temperatures(model), rel=1e-5)
    one, other = temperatures(again)
    assert one == other


def test_the_gradients_are_those_of_two_variables():
    starts = keras.Variable(0.5), keras.Variable(0.5)
    both, apart = compiled(shared()), compiled(two_losses(*starts))
    apart.get_layer("dense").set_weights(both.get_layer("dense").get_weights())
    for model in (both, apart):
        model.train_on_batch(ROWS, LABELS)
    moved = [value - 0.5 for value in temperatures(apart)]
    assert moved[0] != moved[1]
    assert temperatures(both)[0] - 0.5 == pytest.approx(sum(moved), rel=1e-3)


@copies
def test_setting_one_sets_the_other_but_not_the_original(copy, tmp_path):
    model = shared(trainable=False)
    first, second = copy(model, tmp_path), copy(model, tmp_path)
    first.get_layer("one").temperature = 0.25
    assert temperatures(first) == [0.25, 0.25]
    assert temperatures(second) == temperatures(model) == [0.5, 0.5]
    again = copy(first, tmp_path)
    again.get_layer("other").temperature = 0.75
    assert temperatures(again) == [0.75, 0.75]


@copies
def test_two_variables_of_one_name_stay_two(copy, tmp_path):
    model = two_losses(*(keras.Variable(x, name="mine") for x in (0.5, 0.25)))
    again = copy(model, tmp_path)
    assert temperatures(again) == [0.5, 0.25]
    again.get_layer("one").temperature = 0.75
    assert temperatures(again) == [0.75, 0.25]


@copies
def test_in_a_model_inside_of_the_model(copy, tmp_path):
    variable = keras.Variable(0.5, name="mine")
    inner = two_losses(variable, variable)
    given = keras.Input((4,))
    softmax = InBatchNegativeSoftmax(temperature=variable, name="outer")
    model = keras.Model(given, [softmax(given, given), inner(given)])
    again = copy(model, tmp_path)
    assert len(again.weights) == len(model.weights) == 3
    again.get_layer("outer").temperature = 0.25
    assert temperatures(again.get_layer(inner.name)) == [0.25, 0.25]
    assert temperatures(model.get_layer(inner.name)) == [0.5, 0.5]


def test_a_clone_function_of_the_user():
    model = shared()
    again = keras.models.clone_model(
        model, clone_function=lambda x: type(x).from_config(x.get_config())
    )
    again.get_layer("one").temperature = 0.25
    assert temperatures(again) == [0.25, 0.25]


@pytest.mark.parametrize("saved_shared", [True, False])
def test_weights_alone_go_into_a_model_that_shares_or_does_not(
    saved_shared, tmp_path
):
    def apart():
        return two_losses(keras.Variable(0.5), keras.Variable(0.5))

    model, again = (shared(), apart()) if saved_shared else (apart(), shared())
    for name in LABELS:
        model.get_layer(name).temperature = 0.25
    model.save_weights(tmp_path / "model.weights.h5")
    again.load_weights(tmp_path / "model.weights.h5")
    assert temperatures(again) == [0.25, 0.25]


def test_the_config_is_plain_and_a_layer_alone_gets_its_own_variable():
    variable = keras.Variable(0.5, name="mine")
    layer = InBatchNegativeSoftmax(temperature=variable)
    config = json.loads(json.dumps(layer.get_config()))
    first, second = (
        InBatchNegativeSoftmax.from_config(config) for _ in range(2)
    )
    first.temperature = 0.25
    assert float(to_numpy(second.temperature)) == 0.5
    assert float(to_numpy(variable)) == 0.5
    assert [v.name for v in first.weights] == ["mine"]
    # As versions before 0.2.1 saved it.
    del config["temperature"]["shared_object_id"]
    old = InBatchNegativeSoftmax.from_config(config)
    assert float(to_numpy(old.temperature)) == 0.5


class TwoLosses(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        variable = keras.Variable(0.5, name="mine")
        self.one = InBatchNegativeSoftmax(temperature=variable)
        self.other = InBatchNegativeSoftmax(temperature=variable)

    def call(self, rows):
        return self.one(rows, rows) + self.other(rows, -rows)


def test_a_subclassed_model_with_a_constructor_of_its_own(tmp_path):
    model = TwoLosses()
    model.compile("sgd", loss=InBatchNegativeLoss())
    model.train_on_batch(ROWS, LABELS["one"])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(
        tmp_path / "model.keras", custom_objects={"TwoLosses": TwoLosses}
    )
    assert len(again.weights) == 1
    for one in (model, again):
        one.train_on_batch(ROWS, LABELS["one"])
    one, other = (float(to_numpy(m.one.temperature)) for m in (model, again))
    assert one == pytest.approx(other, rel=1e-5)
    assert other == float(to_numpy(again.other.temperature))


@copies
@pytest.mark.parametrize("alone", ["not", "first", "last"])
def test_a_tower_of_two_layers(copy, alone, tmp_path):
    """Also if the model calls the tower itself, before them or after."""
    tower = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    given = keras.Input((4,))
    calls = [ChunkedTower(tower, 3), ChunkedTower(tower, 4)]
    calls = {"not": calls, "first": [tower, *calls], "last": [*calls, tower]}
    model = keras.Model(given, [call(given) for call in calls[alone]])
    again = copy(model, tmp_path)
    assert len(again.weights) == len(model.weights) == 2
    for one, other in zip(model(ROWS), again(ROWS)):
        assert_close(to_numpy(other), to_numpy(one), 1e-6)
    assert again.weights[0] is not model.weights[0]

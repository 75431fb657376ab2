"""The temperature: a number that can be set, or a weight that trains."""

import keras
import numpy as np
import pytest

import inbatch_neg
from inbatch_neg import InBatchNegativeLoss, InBatchNegativeSoftmax
from tests import oracle
from tests.helpers import BACKEND, to_numpy


def foreign_variables():
    """Returns variables of the backend's own, by backend."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return [tf.Variable(0.1)]
    if BACKEND == "torch":
        import torch

        return [torch.nn.Parameter(torch.tensor(0.1))]
    return [keras.ops.convert_to_tensor(0.1)]


def test_a_variable_of_the_backend_is_refused_with_both_ways():
    for variable in foreign_variables():
        with pytest.raises(TypeError, match="learned") as caught:
            InBatchNegativeSoftmax(temperature=variable)
        assert "`keras.Variable`" in str(caught.value)


@pytest.fixture(scope="module")
def model():
    user = keras.Input((), dtype="int32", name="user")
    item = keras.Input((), dtype="int32", name="item")
    temperature = keras.Variable(0.5, trainable=False, name="temperature")
    losses = InBatchNegativeSoftmax(temperature=temperature, name="softmax")(
        keras.layers.Embedding(9, 4)(user), keras.layers.Embedding(9, 4)(item)
    )
    model = keras.Model({"user": user, "item": item}, losses)
    model.compile(keras.optimizers.SGD(0.0), loss=InBatchNegativeLoss())
    return model


def expected_loss(model, temperature):
    tables = [to_numpy(w) for w in model.trainable_weights]
    losses, _ = oracle.softmax_loss(
        *(table[:8] for table in tables), temperature=temperature
    )
    return losses.mean()


def test_a_schedule_reaches_the_compiled_step(model):
    rows = np.arange(8, dtype="int32")
    data = inbatch_neg.full_batches({"user": rows, "item": rows}, 8)
    schedule = [0.5, 0.2, 0.05]

    class Anneal(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.get_layer("softmax").temperature = schedule[epoch]

    history = model.fit(data, epochs=3, verbose=0, callbacks=[Anneal()])
    expected = [expected_loss(model, value) for value in schedule]
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-5)


def test_set_saved_and_loaded(model, tmp_path):
    layer = model.get_layer("softmax")
    layer.temperature = 0.3
    assert float(to_numpy(layer.temperature)) == pytest.approx(0.3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded_layer = loaded.get_layer("softmax")
    assert float(loaded_layer.temperature) == pytest.approx(0.3)
    loaded_layer.temperature = 0.9
    assert float(to_numpy(layer.temperature)) == pytest.approx(0.3)
    model.save_weights(tmp_path / "model.weights.h5")
    layer.temperature = 0.7
    model.load_weights(tmp_path / "model.weights.h5")
    assert float(to_numpy(layer.temperature)) == pytest.approx(0.3)


@pytest.mark.parametrize("trainable", [True, False])
def test_a_variable_trains_if_it_is_trainable(trainable):
    variable = keras.Variable(0.5, trainable=trainable, name="mine")
    vectors = keras.Input((4,))
    losses = InBatchNegativeSoftmax(temperature=variable)(vectors, vectors)
    model = keras.Model(vectors, losses)
    assert len(model.trainable_weights) == int(trainable)
    model.compile(keras.optimizers.SGD(0.1), loss=InBatchNegativeLoss())
    data = np.eye(4, dtype="float32")
    model.train_on_batch(data, np.zeros(4))
    moved = float(to_numpy(variable)) != 0.5
    assert moved == trainable
    if trainable:
        # d loss / d T = (s_ii - sum_j p_ij s_ij) / T with s the scores.
        p = np.exp(2.0) / (np.exp(2.0) + 3)
        expected = 0.5 - 0.1 * (2.0 - p * 2.0) / 0.5
        assert float(to_numpy(variable)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_variable_of_another_dtype(dtype):
    rows = np.eye(4, 3, dtype="float32")
    losses = InBatchNegativeSoftmax(
        temperature=keras.Variable(0.5, dtype=dtype)
    )(rows, rows)
    expected = InBatchNegativeSoftmax(temperature=0.5)(rows, rows)
    assert keras.backend.standardize_dtype(losses.dtype) == "float32"
    np.testing.assert_allclose(to_numpy(losses), to_numpy(expected), rtol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_mixed_policy_does_not_round_a_variable(policy):
    rows = np.eye(4, 3, dtype="float32")
    variable = keras.Variable(0.1)
    losses = InBatchNegativeSoftmax(temperature=variable, dtype=policy)(
        rows, rows
    )
    expected = InBatchNegativeSoftmax(temperature=0.1)(rows, rows)
    np.testing.assert_allclose(to_numpy(losses), to_numpy(expected), rtol=1e-6)


def test_a_number_is_no_weight():
    assert InBatchNegativeSoftmax(temperature=0.5).variables == []
    assert InBatchNegativeSoftmax(temperature=0.5).temperature == 0.5


@pytest.mark.parametrize("temperature", [0.5, "learned"])
def test_others_cannot_be_set_and_the_error_names_the_way(temperature):
    layer = InBatchNegativeSoftmax(temperature=temperature)
    with pytest.raises(ValueError, match="temperature=keras.Variable"):
        layer.temperature = 0.1


@pytest.mark.parametrize("variable", ["shape", "dtype", "value"])
def test_variables_that_are_no_temperature(variable):
    wrong = {
        "shape": lambda: keras.Variable([0.1, 0.2]),
        "dtype": lambda: keras.Variable(1, dtype="int32", trainable=False),
        "value": lambda: keras.Variable(-0.1),
    }[variable]()
    with pytest.raises(ValueError, match="`temperature` must be"):
        InBatchNegativeSoftmax(temperature=wrong)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_bad_values(value):
    layer = InBatchNegativeSoftmax(temperature=keras.Variable(0.5))
    with pytest.raises(ValueError, match="finite number above 0"):
        layer.temperature = value
    assert to_numpy(layer.temperature) == 0.5


@pytest.mark.backends("jax")  # where the weights leave the model
def test_between_the_steps_of_an_epoch(model):
    rows = np.arange(16, dtype="int32") % 9
    data = inbatch_neg.full_batches({"user": rows, "item": rows}, 8)

    class Late(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            layer = self.model.get_layer("softmax")
            try:
                layer.temperature = 0.1
            except RuntimeError as error:
                assert "on_epoch_begin" in str(error)
                self.model.jax_state_sync()
                layer.temperature = 0.1

    model.fit(data, verbose=0, callbacks=[Late()])
    assert to_numpy(model.non_trainable_weights[0]) == np.float32(0.1)

"""The layer: its directions, temperature, dtypes and config."""

import inspect

import keras
import numpy as np
import pytest

from inbatch_neg import InBatchNegativeLoss, InBatchNegativeSoftmax
from tests import helpers, models, oracle
from tests.helpers import BACKEND, assert_close, losses_and_gradients, to_numpy


@pytest.mark.parametrize("upstream", [None, np.arange(1, 11) / 5])
def test_symmetric(each_path, upstream):
    batch = helpers.batch_of(10, 13)
    layer = InBatchNegativeSoftmax(symmetric=True, temperature=0.5)
    value, gradients = losses_and_gradients(layer, batch, upstream)
    there, d_there = oracle.softmax_loss(
        **batch, temperature=0.5, upstream=upstream
    )
    back, d_back = oracle.softmax_loss(
        query=batch["candidate"][:10],
        candidate=batch["query"],
        candidate_ids=batch["query_ids"],
        query_ids=batch["candidate_ids"][:10],
        sample_weight=batch["sample_weight"],
        temperature=0.5,
        upstream=upstream,
    )
    assert_close(value, (there + back) / 2)
    assert_close(
        gradients["query"], (d_there["query"] + d_back["candidate"]) / 2
    )
    expected = d_there["candidate"]
    expected[:10] += d_back["query"]
    assert_close(gradients["candidate"], expected / 2)


def test_symmetric_of_equal_towers_changes_nothing():
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    once = InBatchNegativeSoftmax()(vectors, vectors)
    both = InBatchNegativeSoftmax(symmetric=True)(vectors, vectors)
    assert_close(to_numpy(both), to_numpy(once))


@pytest.mark.parametrize("sampling", ["rotation", "hardest"])
def test_symmetric_of_sampled_negatives(sampling):
    batch = helpers.batch_of(8)
    layer = InBatchNegativeSoftmax(
        7, sampling=sampling, symmetric=True, temperature=0.5
    )
    every = InBatchNegativeSoftmax(symmetric=True, temperature=0.5)
    assert_close(to_numpy(layer(**batch)), to_numpy(every(**batch)))


def two_towers(layer, rows=64):
    """Returns a model of unit towers, and pairs that it can learn."""
    keras.utils.set_random_seed(1)
    normal = keras.layers.UnitNormalization()
    model = models.two_towers(layer, between=normal)
    model.compile(keras.optimizers.Adam(0.05), InBatchNegativeLoss())
    number = np.random.default_rng(0).integers(0, 20, rows).astype("int32")
    return model, {"user": number, "item": (number + 1) % 20}


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_negatives": 5, "sampling": "hardest", "temperature": 0.2},
        {"symmetric": True, "temperature": "learned"},
        {"temperature": "learned", "num_negatives": 4, "seed": 1},
    ],
)
def test_training_saving_and_going_on(tmp_path, arguments):
    layer = InBatchNegativeSoftmax(batch_size=32, **arguments)
    model, pairs = two_towers(layer)
    losses = model.fit(
        pairs, batch_size=32, epochs=15, verbose=0, shuffle=False
    ).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for name, value in arguments.items():
        assert again.layers[-1].get_config()[name] == value
    for one in (model, again):
        one.fit(pairs, batch_size=32, verbose=0, shuffle=False)
    helpers.assert_all_equal(
        helpers.weights_of(model), helpers.weights_of(again)
    )


def test_the_learned_temperature():
    layer = InBatchNegativeSoftmax(temperature="learned")
    (log_scale,) = layer.trainable_weights
    batch = helpers.batch_of(6)
    temperature = float(to_numpy(layer.temperature))
    assert temperature == pytest.approx(0.07)
    losses = to_numpy(layer(**batch))
    expected, _ = oracle.softmax_loss(**batch, temperature=temperature)
    assert_close(losses, expected)
    log_scale.assign(0.5)
    assert float(to_numpy(layer.temperature)) == pytest.approx(np.exp(-0.5))
    log_scale.assign(7.0)
    assert float(to_numpy(layer.temperature)) == pytest.approx(0.01)


def test_the_gradient_of_the_learned_temperature():
    """One step of SGD against the oracle, inside and beyond the limit."""
    batch = helpers.batch_of(6)
    vectors = {k: batch.pop(k) for k in ("query", "candidate")}
    del batch["candidate_mask"], batch["sample_weight"]
    layer = InBatchNegativeSoftmax(temperature="learned")
    inputs = {
        name: keras.Input(value.shape[1:], dtype=str(value.dtype), name=name)
        for name, value in {**vectors, **batch}.items()
    }
    model = keras.Model(inputs, layer(**inputs))
    rate, limit = 1e-3, np.log(100.0)
    model.compile(keras.optimizers.SGD(rate), InBatchNegativeLoss())
    (log_scale,) = layer.trainable_weights
    for start in (0.5, 5.0):
        log_scale.assign(start)
        temperature = max(np.exp(-start), 0.01)
        _, expected = oracle.softmax_loss(
            **vectors, **batch, temperature=temperature
        )
        # d loss / d log_scale = -temperature d loss / d temperature.
        slope = -temperature * expected["temperature"] / 6
        model.fit({**vectors, **batch}, batch_size=6, verbose=0)
        assert float(to_numpy(log_scale)) == pytest.approx(
            min(start - rate * slope, limit), abs=1e-5
        )


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"sampling": "hardest"}, ValueError, "num_negatives"),
        ({"symmetric": True, "return_logits": True}, ValueError, "symmetric"),
        ({"temperature": "learnt"}, TypeError, "temperature"),
        (
            {"num_negatives": 8, "sampling": "hardest", "batch_size": 8},
            ValueError,
            "num_negatives",
        ),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        layer = InBatchNegativeSoftmax(**arguments)
        vectors = np.ones((8, 2), "float32")
        layer(vectors, vectors)


FULL_CONFIG = {
    "num_negatives": 5,
    "sampling": "rotation",
    "temperature": 0.25,
    "batch_size": 16,
    "return_logits": True,
    "seed": 3,
    "name": "mine",
}


@pytest.mark.parametrize(
    "arguments", [{}, FULL_CONFIG, {"batch_size": "any"}], ids=len
)
def test_config_of_the_layer(arguments):
    layer = InBatchNegativeSoftmax(**arguments)
    config = layer.get_config()
    for name, value in arguments.items():
        assert config[name] == value
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(again) is InBatchNegativeSoftmax
    assert again.get_config() == config
    # Every argument of the constructor is in the config.
    names = inspect.signature(InBatchNegativeSoftmax).parameters
    assert set(names) - {"kwargs"} <= set(config)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_small_probabilities_in_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    layer = InBatchNegativeSoftmax()
    q = np.array([1e-6, 1e-8], "float32")
    zeros = np.zeros((2, 3), "float16")
    loss = layer(zeros, zeros, candidate_sampling_probability=q)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    np.testing.assert_allclose(to_numpy(loss), np.log([101, 1.01]), rtol=1e-4)


def test_float64_policy():
    layer = InBatchNegativeSoftmax(dtype="float64", temperature=0.5)
    batch = helpers.batch_of(5, 7)
    batch["query"] = batch["query"].astype("float64")
    loss = to_numpy(layer(**batch))
    # JAX turns float64 into float32 unless it is told otherwise.
    exact = BACKEND != "jax"
    assert loss.dtype == ("float64" if exact else "float32")
    expected, _ = oracle.softmax_loss(**batch, temperature=0.5)
    assert_close(loss, expected, 1e-12 if exact else 2e-5)
    symbol = keras.KerasTensor((5, 3))
    assert layer(symbol, symbol).dtype == "float64"


def test_float64_inputs_of_a_float32_layer():
    batch = helpers.batch_of(5, 7)
    batch["query"] = batch["query"].astype("float64")
    loss = to_numpy(InBatchNegativeSoftmax()(**batch))
    assert loss.dtype == "float32"
    assert_close(loss, oracle.softmax_loss(**batch)[0])


@pytest.mark.parametrize("training", [None, False, True])
def test_layer_equals_the_loss_function(each_path, training):
    batch = helpers.batch_of(5, 7)
    layer = InBatchNegativeSoftmax(temperature=0.5)
    value, gradients = helpers.value_and_gradients(
        lambda **t: layer(**{**batch, **t}, training=training),
        {n: batch[n] for n in ("query", "candidate", "sample_weight")},
        np.arange(5.0),
        compiled=True,
    )
    expected, d_expected = oracle.softmax_loss(
        **batch, temperature=0.5, upstream=np.arange(5.0)
    )
    assert_close(value, expected)
    for name, gradient in gradients.items():
        assert_close(gradient, d_expected[name], name=name)


def test_the_mixture_of_two_sources_gives_the_sum_over_the_catalogue():
    """The probability that the docs derive for uniform extra rows.

    Of B + M candidates, B are rows of the data, drawn by frequency p, and M
    are drawn uniformly from V items: q_j = (B p_j + M / V) / (B + M). Here
    every item comes exactly as often as expected, so the denominator is the
    sum of exp(score) over the catalogue but for the row's own item.
    """
    rows, uniform, items = 40, 24, 8
    frequency = np.array([0.4, 0.25, 0.15, 0.1, 0.05, 0.05, 0.0, 0.0])
    scores = np.array([0.3, -0.5, 1.0, 0.2, -1.0, 0.8, 1.5, -0.2])
    mixture = (rows * frequency + uniform / items) / (rows + uniform)
    assert mixture.sum() == pytest.approx(1.0)
    counts = np.rint(rows * frequency).astype(int)
    own = np.repeat(np.arange(items), counts)
    ids = np.concatenate([own, np.repeat(np.arange(items), uniform // items)])
    losses = InBatchNegativeSoftmax()(
        np.ones((rows, 1), "float32"),
        scores[ids][:, None].astype("float32"),
        candidate_ids=ids.astype("int32"),
        candidate_sampling_probability=mixture[ids].astype("float32"),
    )
    positive = np.exp(scores[own]) / mixture[own]
    catalogue = np.exp(scores).sum()
    others = (rows + uniform) * (catalogue - np.exp(scores[own]))
    expected = np.log(positive + others) - np.log(positive)
    np.testing.assert_allclose(to_numpy(losses), expected, rtol=1e-5)

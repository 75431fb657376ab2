"""Dropping in: `fit`, custom loops, saving, precision, weights, labels."""

import helpers
import keras
import numpy as np
import oracle
import pytest
from helpers import BACKEND, assert_all_equal, assert_close, to_numpy

import inbatch_neg
from inbatch_neg import InBatchNegativeLoss, InBatchNegativeSoftmax

ROWS = 48


def interactions(rows=ROWS):
    rng = np.random.default_rng(0)
    return {
        "user": rng.integers(0, 20, rows).astype("int32"),
        "item": rng.integers(0, 30, rows).astype("int32"),
    }


def functional(compiled=True, jit_compile="auto", loss=None, **arguments):
    keras.utils.set_random_seed(1)
    user = keras.Input((), dtype="int32", name="user")
    item = keras.Input((), dtype="int32", name="item")
    out = InBatchNegativeSoftmax(**{"temperature": 0.5, **arguments})(
        keras.layers.Embedding(20, 6, name="users")(user),
        keras.layers.Embedding(30, 6, name="items")(item),
        candidate_ids=item,
        query_ids=user,
    )
    model = keras.Model({"user": user, "item": item}, out)
    if compiled:
        model.compile(
            keras.optimizers.Adam(0.05),
            loss=loss or InBatchNegativeLoss(),
            jit_compile=jit_compile,
        )
    return model


def full(data, size=16, **arguments):
    return inbatch_neg.full_batches(data, size, **arguments)


def vectors_of(weights, data):
    return {
        "query": weights[0][data["user"]],
        "candidate": weights[1][data["item"]],
        "candidate_ids": data["item"],
        "query_ids": data["user"],
        "temperature": 0.5,
    }


def expected_sgd(weights, batches, rate):
    """Trains two embedding tables by the oracle's gradients."""
    users, items = (w.astype("float64") for w in weights)
    for data in batches:
        rows = len(data["user"])
        _, gradients = oracle.softmax_loss(
            **vectors_of((users, items), data), upstream=np.ones(rows) / rows
        )
        np.subtract.at(users, data["user"], rate * gradients["query"])
        np.subtract.at(items, data["item"], rate * gradients["candidate"])
    return users, items


def batches_of(data, size=16):
    return [
        {name: array[start : start + size] for name, array in data.items()}
        for start in range(0, len(data["user"]), size)
    ]


JITS = (True, False) if BACKEND != "torch" else (False,)


@pytest.mark.parametrize("jit", JITS)
def test_fit_takes_the_steps_of_the_definition(jit):
    model = functional(compiled=False)
    model.compile(
        keras.optimizers.SGD(2.0), loss=InBatchNegativeLoss(), jit_compile=jit
    )
    data = interactions()
    expected = expected_sgd(model.get_weights(), batches_of(data), 2.0)
    before = model.get_weights()
    history = model.fit(full(data), verbose=0).history["loss"]
    assert len(history) == 1
    for one, other, start in zip(model.get_weights(), expected, before):
        assert np.abs(other - start).max() > 1e-2
        assert_close(one, other)
    losses = [
        oracle.softmax_loss(**vectors_of(model.get_weights(), b))[0]
        for b in batches_of(data)
    ]
    evaluated = model.evaluate(full(data), verbose=0)
    np.testing.assert_allclose(evaluated, np.mean(losses), rtol=1e-5)
    predicted = model.predict(full(data), verbose=0)
    np.testing.assert_allclose(predicted, np.concatenate(losses), rtol=2e-4)


class Subclassed(keras.Model):
    """Computes its loss by itself, as the two-tower examples do."""

    def __init__(self):
        super().__init__()
        self.users = keras.layers.Embedding(20, 6)
        self.items = keras.layers.Embedding(30, 6)
        self.softmax = InBatchNegativeSoftmax(temperature=0.5)
        self.reduce = InBatchNegativeLoss()

    def call(self, inputs):
        return self.users(inputs["user"]), self.items(inputs["item"])

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        losses = self.softmax(
            *y_pred,
            candidate_ids=x["item"],
            query_ids=x["user"],
            training=training,
        )
        return self.reduce(y, losses, sample_weight)


def test_compute_loss_of_a_subclassed_model():
    model, same = Subclassed(), functional(compiled=False)
    model({k: v[:2] for k, v in interactions().items()})
    model.set_weights(same.get_weights())
    data = interactions()
    expected = expected_sgd(model.get_weights(), batches_of(data), 2.0)
    model.compile(keras.optimizers.SGD(2.0))
    model.fit(full(data), verbose=0)
    for one, other in zip(model.get_weights(), expected):
        assert_close(one, other)
    assert np.isfinite(model.evaluate(full(data), verbose=0))


def step_of_a_custom_loop(model, data):
    """Returns the loss and the gradients by the model's variables."""
    loss_fn = InBatchNegativeLoss()
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step(data):
            with tf.GradientTape() as tape:
                loss = loss_fn(None, model(data, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            return loss, [tf.convert_to_tensor(g) for g in gradients]

        return step({k: tf.constant(v) for k, v in data.items()})
    if BACKEND == "jax":
        import jax

        def loss_of(trainable, fixed, data):
            losses, fixed = model.stateless_call(
                trainable, fixed, data, training=True
            )
            return loss_fn(None, losses), fixed

        step = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
        (loss, _), gradients = step(
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
            data,
        )
        return loss, gradients
    model.zero_grad()
    loss = loss_fn(None, model(data, training=True))
    loss.backward()
    return loss, [v.value.grad for v in model.trainable_variables]


def test_custom_loop():
    model = functional(compiled=False)
    data = batches_of(interactions())[0]
    weights = model.get_weights()
    loss, gradients = step_of_a_custom_loop(model, data)
    expected, d_expected = oracle.softmax_loss(
        **vectors_of(weights, data), upstream=np.full(16, 1 / 16)
    )
    assert_close(to_numpy(loss), expected.mean())
    tables = [np.zeros(w.shape) for w in weights]
    np.add.at(tables[0], data["user"], d_expected["query"])
    np.add.at(tables[1], data["item"], d_expected["candidate"])
    for one, other in zip(gradients, tables):
        assert_close(to_numpy(one), other)


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
    import inspect

    names = inspect.signature(InBatchNegativeSoftmax).parameters
    assert set(names) - {"kwargs"} <= set(config)


def test_config_of_the_loss():
    loss = InBatchNegativeLoss(reduction="sum", name="mine")
    again = InBatchNegativeLoss.from_config(loss.get_config())
    assert again.get_config() == loss.get_config()
    assert (again.reduction, again.name) == ("sum", "mine")


@pytest.mark.parametrize("num_negatives", [None, 3])
def test_save_and_train_on(tmp_path, num_negatives):
    model = functional(num_negatives=num_negatives, seed=4)
    data = interactions()
    model.fit(full(data), verbose=0)
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    assert_all_equal(model.get_weights(), again.get_weights())
    model.optimizer.learning_rate = again.optimizer.learning_rate = 0.1
    losses = [
        m.fit(full(data), epochs=2, verbose=0).history["loss"]
        for m in (model, again)
    ]
    # With the state of the optimizer and of the shifts.
    np.testing.assert_allclose(*losses, rtol=1e-6)
    for one, other in zip(model.get_weights(), again.get_weights()):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


LABELS = {
    "none": None,
    "ints": np.arange(ROWS),
    "floats": np.ones((ROWS, 3), "float32"),
    "bools": np.ones(ROWS, bool),
}
if BACKEND == "tensorflow":
    LABELS["strings"] = np.array(["a"] * ROWS)


@pytest.mark.parametrize("return_logits", [False, True])
def test_labels_are_ignored(return_logits):
    def weights(labels):
        model = functional(return_logits=return_logits)
        data = interactions()
        data = data if labels is None else (data, labels)
        model.fit(full(data), verbose=0)
        return model.get_weights()

    without = weights(None)
    for name, labels in LABELS.items():
        for one, other in zip(weights(labels), without):
            np.testing.assert_allclose(one, other, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("return_logits", [False, True])
def test_sample_weight_of_fit_equals_that_of_the_layer(return_logits):
    data = interactions(16)
    weight = np.random.default_rng(3).uniform(0, 2, 16).astype("float32")
    model = functional(return_logits=return_logits)
    labels = np.zeros(16, "float32")
    losses = oracle.softmax_loss(**vectors_of(model.get_weights(), data))[0]
    history = model.fit(full((data, labels, weight)), verbose=0).history
    by_fit = model.get_weights()

    keras.utils.set_random_seed(1)
    inputs = {
        name: keras.Input((), dtype=dtype, name=name)
        for name, dtype in (
            ("user", "int32"),
            ("item", "int32"),
            ("weight", "float32"),
        )
    }
    out = InBatchNegativeSoftmax(temperature=0.5)(
        keras.layers.Embedding(20, 6)(inputs["user"]),
        keras.layers.Embedding(30, 6)(inputs["item"]),
        candidate_ids=inputs["item"],
        query_ids=inputs["user"],
        sample_weight=inputs["weight"],
    )
    other = keras.Model(inputs, out)
    other.set_weights(functional(compiled=False).get_weights())
    other.compile(keras.optimizers.Adam(0.05), loss=InBatchNegativeLoss())
    history_of_layer = other.fit(
        full({**data, "weight": weight}), verbose=0
    ).history
    for one, two in zip(by_fit, other.get_weights()):
        np.testing.assert_allclose(one, two, atol=1e-5)
    np.testing.assert_allclose(
        history_of_layer["loss"][0], (weight * losses).mean(), rtol=1e-5
    )
    # What is printed: Keras divides a weighted metric by the weights.
    assert np.isfinite(history["loss"][0])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("return_logits", [False, True])
def test_mixed_precision_fit(policy, return_logits):
    keras.config.set_dtype_policy(policy)
    model = functional(return_logits=return_logits)
    assert model.output.dtype == "float32"
    losses = model.fit(full(interactions()), epochs=4, verbose=0).history[
        "loss"
    ]
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]
    assert model.predict(full(interactions()), verbose=0).dtype == "float32"


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
def test_layer_equals_the_loss_function(training):
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


PER_ROW = np.array([1.0, 2.0, 6.0], "float32")


@pytest.mark.parametrize(
    "reduction, expected",
    [("sum_over_batch_size", 3.0), ("sum", 9.0), ("none", PER_ROW)],
)
def test_reductions(reduction, expected):
    loss = InBatchNegativeLoss(reduction=reduction)
    np.testing.assert_allclose(to_numpy(loss(None, PER_ROW)), expected)
    weight = np.array([0.0, 1.0, 2.0], "float32")
    weighted = {"sum_over_batch_size": 14 / 3, "sum": 14.0}.get(
        reduction, PER_ROW * weight
    )
    got = to_numpy(loss(None, PER_ROW, sample_weight=weight))
    np.testing.assert_allclose(got, weighted, rtol=1e-6)


def test_loss_of_logits():
    logits = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    logits[1, 2:] = -1e30
    logits[2] = [300, 200, 0, 0, 0, 0]
    loss = InBatchNegativeLoss(reduction="none")
    np.testing.assert_allclose(
        to_numpy(loss(np.zeros(4), logits)),
        oracle.first_column_loss(logits),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_of_the_loss(dtype):
    loss = InBatchNegativeLoss(dtype=dtype)
    # What the losses of Keras give, which is not float64 on all backends.
    column = PER_ROW[:, None]
    expected = keras.losses.MeanAbsoluteError(dtype=dtype)(column, column)
    assert loss(None, PER_ROW).dtype == expected.dtype


if BACKEND == "tensorflow":

    def test_string_ids_through_fit():
        model_inputs = {
            name: keras.Input((), dtype="string", name=name)
            for name in ("user", "item")
        }
        towers = [
            keras.layers.Embedding(64, 4)(
                keras.layers.Hashing(64)(model_inputs[name])
            )
            for name in ("user", "item")
        ]
        out = InBatchNegativeSoftmax()(
            *towers, candidate_ids=model_inputs["item"]
        )
        model = keras.Model(model_inputs, out)
        model.compile("adam", loss=InBatchNegativeLoss(), jit_compile=False)
        data = {
            name: np.array([str(n) for n in array])
            for name, array in interactions().items()
        }
        losses = model.fit(full(data), epochs=2, verbose=0).history["loss"]
        assert losses[-1] < losses[0]

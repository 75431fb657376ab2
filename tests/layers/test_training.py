"""Dropping in: `fit`, custom loops, saving, mixed precision, labels."""

import keras
import numpy as np
import pytest

import inbatch_neg
from inbatch_neg import InBatchNegativeLoss, InBatchNegativeSoftmax
from tests import models, oracle
from tests.helpers import BACKEND, assert_all_equal, assert_close, to_numpy
from tests.models import fit, interactions

ROWS = 48


def functional(optimizer=None, jit_compile="auto", **arguments):
    keras.utils.set_random_seed(1)
    model = models.two_towers(
        InBatchNegativeSoftmax(**{"temperature": 0.5, **arguments})
    )
    model.compile(
        optimizer or keras.optimizers.Adam(0.05),
        loss=InBatchNegativeLoss(),
        jit_compile=jit_compile,
    )
    return model


def full(data, size=16):
    return inbatch_neg.full_batches(data, size)


def vectors_of(weights, data):
    return {
        "query": weights[0][data["user"]],
        "candidate": weights[1][data["item"]],
        "candidate_ids": data["item"],
        "query_ids": data["user"],
        "temperature": 0.5,
    }


def expected_sgd(weights, batches, rate, sample_weight=1.0):
    """Trains two embedding tables by the oracle's gradients."""
    users, items = (w.astype("float64") for w in weights)
    for data in batches:
        rows = len(data["user"])
        _, gradients = oracle.softmax_loss(
            **vectors_of((users, items), data),
            upstream=np.ones(rows) * sample_weight / rows,
        )
        np.subtract.at(users, data["user"], rate * gradients["query"])
        np.subtract.at(items, data["item"], rate * gradients["candidate"])
    return users, items


def batches_of(data, size=16):
    return [
        {name: array[start : start + size] for name, array in data.items()}
        for start in range(0, len(data["user"]), size)
    ]


def assert_trained(model, before, expected):
    for one, other, start in zip(model.get_weights(), expected, before):
        assert np.abs(other - start).max() > 1e-2
        assert_close(one, other)


JITS = (
    # PyTorch's compiler would need a C++ one.
    pytest.param(True, marks=pytest.mark.backends("tensorflow", "jax")),
    # JAX would compile each operation.
    pytest.param(False, marks=pytest.mark.backends("tensorflow", "torch")),
)


@pytest.mark.parametrize("jit", JITS)
def test_fit_takes_the_steps_of_the_definition(each_path, jit):
    model = functional(keras.optimizers.SGD(2.0), jit_compile=jit)
    data = interactions(ROWS)
    expected = expected_sgd(model.get_weights(), batches_of(data), 2.0)
    before = model.get_weights()
    history = fit(model, full(data))["loss"]
    assert len(history) == 1
    assert_trained(model, before, expected)
    losses = [
        oracle.softmax_loss(**vectors_of(model.get_weights(), b))[0]
        for b in batches_of(data)
    ]
    evaluated = model.evaluate(full(data), verbose=0)
    np.testing.assert_allclose(evaluated, np.mean(losses), rtol=1e-5)
    predicted = model.predict(full(data), verbose=0)
    np.testing.assert_allclose(predicted, np.concatenate(losses), rtol=2e-4)


class WithComputeLoss(models.Subclassed):
    """Computes its loss by itself, as the two-tower examples do."""

    def call(self, inputs):
        return self.users(inputs["user"]), self.items(inputs["item"])

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        losses = self.softmax(
            *y_pred,
            candidate_ids=x["item"],
            query_ids=x["user"],
            training=training,
        )
        return InBatchNegativeLoss()(y, losses, sample_weight)


def test_compute_loss_of_a_subclassed_model():
    model = WithComputeLoss(InBatchNegativeSoftmax(temperature=0.5))
    data = interactions(ROWS)
    model({name: ids[:2] for name, ids in data.items()})
    model.set_weights(functional().get_weights())
    before = model.get_weights()
    expected = expected_sgd(before, batches_of(data), 2.0)
    model.compile(keras.optimizers.SGD(2.0))
    fit(model, full(data))
    assert_trained(model, before, expected)
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
    model = functional()
    data = batches_of(interactions(ROWS))[0]
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


@pytest.mark.parametrize("num_negatives", [None, 3])
def test_save_and_train_on(tmp_path, num_negatives):
    model = functional(num_negatives=num_negatives, seed=4)
    data = interactions(ROWS)
    fit(model, full(data))
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    assert_all_equal(model.get_weights(), again.get_weights())
    model.optimizer.learning_rate = again.optimizer.learning_rate = 0.1
    losses = [fit(m, full(data), epochs=2)["loss"] for m in (model, again)]
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
    model = functional(keras.optimizers.SGD(2.0), return_logits=return_logits)
    data, before = interactions(ROWS), model.get_weights()
    expected = expected_sgd(before, batches_of(data), 2.0)
    for labels in LABELS.values():
        model.set_weights(before)
        fit(model, full(data if labels is None else (data, labels)))
        assert_trained(model, before, expected)


WEIGHT = np.random.default_rng(3).uniform(0, 2, 16).astype("float32")


@pytest.mark.parametrize("return_logits", [False, True])
def test_sample_weight_of_fit(return_logits):
    model = functional(keras.optimizers.SGD(2.0), return_logits=return_logits)
    data, before = interactions(16), model.get_weights()
    labels = np.zeros(16, "float32")
    history = fit(model, full((data, labels, WEIGHT)))
    assert_trained(model, before, expected_sgd(before, [data], 2.0, WEIGHT))
    # What is printed: Keras divides a weighted metric by the weights.
    assert np.isfinite(history["loss"][0])


def test_sample_weight_of_the_layer():
    towers = functional()
    weight = keras.Input((), name="weight")
    user, item = towers.input["user"], towers.input["item"]
    losses = InBatchNegativeSoftmax(temperature=0.5)(
        towers.get_layer("users").output,
        towers.get_layer("items").output,
        candidate_ids=item,
        query_ids=user,
        sample_weight=weight,
    )
    model = keras.Model({"user": user, "item": item, "weight": weight}, losses)
    model.compile(keras.optimizers.SGD(2.0), loss=InBatchNegativeLoss())
    data, before = interactions(16), model.get_weights()
    expected = expected_sgd(before, [data], 2.0, WEIGHT)
    losses, _ = oracle.softmax_loss(**vectors_of(before, data))
    history = fit(model, full({**data, "weight": WEIGHT}))
    assert_trained(model, before, expected)
    np.testing.assert_allclose(
        history["loss"][0], (WEIGHT * losses).mean(), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("policy", "return_logits"),
    [("mixed_float16", False), ("mixed_bfloat16", True)],
)
def test_mixed_precision_fit(policy, return_logits):
    keras.config.set_dtype_policy(policy)
    model = functional(return_logits=return_logits)
    assert model.output.dtype == "float32"
    losses = fit(model, full(interactions(ROWS)), epochs=4)["loss"]
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]
    assert model.predict(full(interactions(ROWS)), verbose=0).dtype == "float32"


@pytest.mark.backends("tensorflow")
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
    out = InBatchNegativeSoftmax()(*towers, candidate_ids=model_inputs["item"])
    model = keras.Model(model_inputs, out)
    model.compile("adam", loss=InBatchNegativeLoss(), jit_compile=False)
    data = {
        name: np.array([str(n) for n in array])
        for name, array in interactions(ROWS).items()
    }
    losses = fit(model, full(data), epochs=2)["loss"]
    assert losses[-1] < losses[0]

"""The hardest negatives, both directions, and the learned temperature."""

import keras
import numpy as np
import pytest
from keras import ops

from inbatch_neg import InBatchNegativeLoss, InBatchNegativeSoftmax
from tests import helpers, oracle
from tests.helpers import assert_close

BACKEND = keras.backend.backend()


def run(layer, batch, upstream=None, by=("query", "candidate")):
    rest = {name: value for name, value in batch.items() if name not in by}
    return helpers.value_and_gradients(
        lambda **tensors: layer(**tensors, **rest, training=True),
        {name: batch[name] for name in by},
        upstream,
        compiled=True,
    )


@pytest.mark.parametrize("count", [1, 4, 12])
@pytest.mark.parametrize("rules", [False, True])
def test_hardest_equals_a_full_sort(monkeypatch, count, rules):
    helpers.small_chunks(monkeypatch, rows=4)
    batch = helpers.batch_of(10, 13)
    if not rules:
        batch = {name: batch[name] for name in ("query", "candidate")}
    layer = InBatchNegativeSoftmax(
        count, sampling="hardest", temperature=0.5, batch_size="any"
    )
    upstream = np.linspace(0.5, 2.0, 10).astype("float32")
    for weights in (None, upstream):
        value, gradients = run(layer, batch, weights)
        expected, d_expected = oracle.softmax_loss(
            **batch, temperature=0.5, hardest=count, upstream=weights
        )
        assert_close(value, expected, name="loss")
        for name in gradients:
            assert_close(gradients[name], d_expected[name], name=name)


def test_hardest_of_equal_scores_are_the_first():
    query = np.ones((6, 2), "float32")
    candidate = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [1, 0], [2, 0]])
    batch = {"query": query, "candidate": candidate.astype("float32")}
    layer = InBatchNegativeSoftmax(2, sampling="hardest")
    _, gradients = run(layer, batch)
    _, expected = oracle.softmax_loss(**batch, hardest=2)
    assert_close(gradients["candidate"], expected["candidate"])
    # Candidate 4 ties with 0 to 3, which come first.
    only_row_4 = np.array([0, 0, 0, 0, 1, 0], "float32")
    _, gradients = run(layer, batch, only_row_4)
    used = np.abs(gradients["candidate"]).sum(axis=1) > 0
    assert used.tolist() == [True, False, False, False, True, True]


def test_hardest_logits():
    batch = helpers.batch_of(10)
    batch.pop("sample_weight")
    layer = InBatchNegativeSoftmax(5, sampling="hardest", return_logits=True)
    logits = helpers.to_numpy(layer(**batch))
    assert logits.shape == (10, 6)
    assert np.all(np.diff(logits[:, 1:], axis=1) <= 0)
    expected, _ = oracle.softmax_loss(**batch, hardest=5)
    assert_close(oracle.first_column_loss(logits), expected)


def test_hardest_where_too_few_are_left():
    ids = np.zeros(5, "int32")
    query = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    layer = InBatchNegativeSoftmax(3, sampling="hardest")
    value, gradients = run(
        layer, {"query": query, "candidate": query, "candidate_ids": ids}
    )
    assert_close(value, np.zeros(5))
    for gradient in gradients.values():
        assert_close(gradient, np.zeros((5, 3)))


@pytest.mark.parametrize("upstream", [None, np.arange(1, 11) / 5])
def test_symmetric(upstream):
    batch = helpers.batch_of(10, 13)
    layer = InBatchNegativeSoftmax(symmetric=True, temperature=0.5)
    value, gradients = run(layer, batch, upstream)
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
    assert_close(helpers.to_numpy(both), helpers.to_numpy(once))


@pytest.mark.parametrize("sampling", ["rotation", "hardest"])
def test_symmetric_of_sampled_negatives(sampling):
    batch = helpers.batch_of(8)
    layer = InBatchNegativeSoftmax(
        7, sampling=sampling, symmetric=True, temperature=0.5
    )
    every = InBatchNegativeSoftmax(symmetric=True, temperature=0.5)
    assert_close(
        helpers.to_numpy(layer(**batch)), helpers.to_numpy(every(**batch))
    )


def two_towers(layer, rows=64):
    keras.utils.set_random_seed(1)
    user = keras.Input((), dtype="int32", name="user")
    item = keras.Input((), dtype="int32", name="item")
    normal = keras.layers.UnitNormalization()
    user_vec = normal(keras.layers.Embedding(20, 8)(user))
    item_vec = normal(keras.layers.Embedding(20, 8)(item))
    losses = layer(user_vec, item_vec, candidate_ids=item, query_ids=user)
    model = keras.Model([user, item], losses)
    model.compile(keras.optimizers.Adam(0.05), InBatchNegativeLoss())
    rng = np.random.default_rng(0)
    number = rng.integers(0, 20, rows).astype("int32")
    return model, [number, (number + 1) % 20]


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_negatives": 5, "sampling": "hardest", "temperature": 0.2},
        {"symmetric": True, "temperature": 0.2},
        {"temperature": "learned"},
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
    temperature = float(layer.temperature)
    assert temperature == pytest.approx(0.07)
    losses = helpers.to_numpy(layer(**batch))
    expected, d_expected = oracle.softmax_loss(**batch, temperature=temperature)
    assert_close(losses, expected)
    # d loss / d log_scale = -temperature d loss / d temperature.
    model, pairs = two_towers(InBatchNegativeSoftmax(temperature="learned"))
    model.optimizer.learning_rate = 0.0
    model.fit(pairs, batch_size=32, verbose=0)
    assert float(model.layers[-1].temperature) == pytest.approx(0.07)

    assert d_expected["temperature"] != 0.0
    log_scale.assign(0.5)
    assert float(layer.temperature) == pytest.approx(np.exp(-0.5))
    log_scale.assign(7.0)
    assert float(layer.temperature) == pytest.approx(0.01)


def test_the_gradient_of_the_learned_temperature():
    """One step of SGD against the oracle, inside and beyond the limit."""
    batch = helpers.batch_of(6)
    vectors = {k: batch.pop(k) for k in ("query", "candidate")}
    del batch["candidate_mask"], batch["sample_weight"]
    for start in (0.5, 5.0):
        layer = InBatchNegativeSoftmax(temperature="learned")
        query = keras.Input((8,), name="query")
        candidate = keras.Input((8,), name="candidate")
        rules = {
            name: keras.Input((), dtype=str(value.dtype), name=name)
            for name, value in batch.items()
        }
        inputs = {"query": query, "candidate": candidate, **rules}
        model = keras.Model(inputs, layer(**inputs))
        layer.trainable_weights[0].assign(start)
        rate = 1e-3
        model.compile(keras.optimizers.SGD(rate), InBatchNegativeLoss())
        temperature = max(np.exp(-start), 0.01)
        _, expected = oracle.softmax_loss(
            **vectors, **batch, temperature=temperature
        )
        slope = -temperature * expected["temperature"] / 6
        model.fit({**vectors, **batch}, batch_size=6, verbose=0)
        moved = float(ops.convert_to_numpy(layer.trainable_weights[0]))
        limit = np.log(100.0)
        assert moved == pytest.approx(
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


def test_hardest_may_be_more_than_the_rows():
    vectors = np.random.default_rng(0).normal(size=(9, 2)).astype("float32")
    layer = InBatchNegativeSoftmax(7, sampling="hardest")
    expected, _ = oracle.softmax_loss(vectors[:4], vectors, hardest=7)
    assert_close(helpers.to_numpy(layer(vectors[:4], vectors)), expected)
    with pytest.raises(ValueError, match="num_negatives"):
        InBatchNegativeSoftmax(9, sampling="hardest")(vectors[:4], vectors)

"""The memory against a list of rows, and what the softmax makes of it."""

import keras
import numpy as np
import pytest

import inbatch_neg
from inbatch_neg import CrossBatchMemory, InBatchNegativeSoftmax
from tests import internals, models, oracle
from tests.helpers import (
    BACKEND,
    assert_all_equal,
    assert_close,
    to_numpy,
    value_and_gradients,
)


def weights(layer):
    return [to_numpy(weight) for weight in layer.weights]


def batches(*sizes, dimensions=3, seed=0):
    """Yields batches of these sizes, ids are distinct over all of them."""
    random = np.random.default_rng(seed)
    start = 1
    for rows in sizes:
        yield {
            "candidate": random.normal(size=(rows, dimensions)).astype(
                "float32"
            ),
            "candidate_ids": np.arange(start, start + rows, dtype="int32"),
            "candidate_sampling_probability": random.uniform(
                0.1, 1, rows
            ).astype("float32"),
        }
        start += rows


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (3, 5, 4, 7, 2)])
def test_keeps_the_last_rows(sizes):
    memory = CrossBatchMemory(7)
    expected = {}  # newest batch first
    for batch in batches(*sizes):
        got = memory(**batch, training=True)
        assert set(got) == {*batch, "candidate_mask"}
        rows = len(batch["candidate_ids"])
        stored = len(expected.get("candidate_ids", []))
        mask = [True] * (rows + stored) + [False] * (7 - stored)
        assert to_numpy(got["candidate_mask"]).tolist() == mask
        for name, own in batch.items():
            every = np.concatenate([own, expected.get(name, own[:0])])
            result = to_numpy(got[name])
            assert result.shape == (rows + 7, *own.shape[1:])
            np.testing.assert_array_equal(result[: rows + stored], every)
            expected[name] = every[:7]
    assert len(expected["candidate"]) == 7


def test_an_empty_memory_changes_nothing():
    (batch,) = batches(5)
    query = np.random.default_rng(1).normal(size=(5, 3)).astype("float32")
    softmax = InBatchNegativeSoftmax()
    memory = CrossBatchMemory(8)
    np.testing.assert_allclose(
        to_numpy(softmax(query, **memory(**batch, training=True))),
        to_numpy(softmax(query, **batch)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("with_probability", [True, False])
def test_losses_equal_the_definition(with_ids, with_probability):
    softmax = InBatchNegativeSoftmax(temperature=0.5)
    memory = CrossBatchMemory(8)
    query = np.random.default_rng(1).normal(size=(5, 3)).astype("float32")
    stored = None
    for batch in batches(5, 5, 5):
        # Some own ids are in the memory, other stored ids are not.
        batch["candidate_ids"] = np.array([1, 2, 3, 4, 4], "int32") + len(
            [] if stored is None else stored["candidate_ids"]
        )
        if not with_ids:
            del batch["candidate_ids"]
        if not with_probability:
            del batch["candidate_sampling_probability"]
        loss = to_numpy(softmax(query, **memory(**batch, training=True)))
        every = dict(batch)
        if stored is not None:
            every = {k: np.concatenate([batch[k], stored[k]]) for k in batch}
        expected, _ = oracle.softmax_loss(query, **every, temperature=0.5)
        np.testing.assert_allclose(loss, expected, rtol=2e-5)
        stored = {k: v[:8] for k, v in every.items()}
        stored.setdefault("candidate_ids", [])


def test_the_same_batch_again_meets_no_stale_copy_of_its_own():
    batch = next(batches(5))
    query = np.ones((5, 3), "float32")
    for ids in (True, False):
        memory = CrossBatchMemory(8)
        given = dict(batch)
        if not ids:
            del given["candidate_ids"]
        for _ in range(2):
            result = memory(**given, training=True)
        loss = to_numpy(InBatchNegativeSoftmax()(query, **result))
        expected, _ = oracle.softmax_loss(
            query, **{k: np.concatenate([v, v]) for k, v in given.items()}
        )
        np.testing.assert_allclose(loss, expected, rtol=2e-5)


def test_warm_up():
    memory = CrossBatchMemory(4, warmup_steps=2)
    used = []
    for batch in batches(2, 2, 2, 2):
        memory(**batch)  # evaluation does not count
        result = memory(**batch, training=True)
        used.append(int(to_numpy(result["candidate_mask"])[2:].sum()))
    # Filled during the warm-up, so full when it ends.
    assert used == [0, 0, 4, 4]


def test_inference_uses_and_does_not_store():
    memory = CrossBatchMemory(4)
    first, second, third = batches(2, 2, 3)
    memory(**first, training=True)
    before = weights(memory)
    for training in (False, None):
        result = memory(**second, training=training)
        assert to_numpy(result["candidate_ids"])[:4].tolist() == [3, 4, 1, 2]
        assert to_numpy(result["candidate_mask"])[:4].all()
        memory(**third, training=training)  # of another size
    assert_all_equal(before, weights(memory))
    assert memory.trainable_weights == []


def test_gradients_reach_the_batch_and_not_the_memory():
    first, second = batches(4, 4)
    query = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
    ids = second["candidate_ids"]

    memory = CrossBatchMemory(4)
    memory(
        first["candidate"],
        candidate_ids=first["candidate_ids"],
        training=True,
    )

    def loss(candidate):
        return InBatchNegativeSoftmax()(
            query, **memory(candidate, candidate_ids=ids), training=True
        )

    vectors = {"candidate": second["candidate"]}
    value, gradients = value_and_gradients(loss, vectors)
    every = np.concatenate([second["candidate"], first["candidate"]])
    expected, d_expected = oracle.softmax_loss(query, every)
    assert_close(value, expected)
    assert_close(gradients["candidate"], d_expected["candidate"][:4])

    def stored_alone(candidate):
        return memory(candidate, candidate_ids=ids)["candidate"][4:]

    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([w.value for w in memory.weights[2:3]])
            value = stored_alone(second["candidate"])
        assert (
            tape.gradient(value, [w.value for w in memory.weights[2:3]])[0]
            is None
        )
    elif BACKEND == "torch":
        assert not stored_alone(keras.ops.ones((4, 3))).requires_grad
    else:
        _, gradients = value_and_gradients(stored_alone, vectors)
        assert not gradients["candidate"].any()


def test_a_row_of_weight_0_is_still_a_negative():
    first, second = batches(5, 5)
    query = np.ones((5, 3), "float32")
    weight = np.array([1.0, 0.0, 2.0, 1.0, 1.0], "float32")
    memory, softmax = CrossBatchMemory(8), InBatchNegativeSoftmax()
    plain, weighted = [], []
    for batch in (first, second):
        result = memory(**batch, training=True)
        plain.append(to_numpy(softmax(query, **result)))
        weighted.append(
            to_numpy(softmax(query, **result, sample_weight=weight))
        )
    # Weights scale the losses of their rows, of no stored ones.
    np.testing.assert_allclose(weighted, plain * weight, rtol=1e-6)
    result = memory(**second)
    np.testing.assert_array_equal(
        to_numpy(result["candidate"])[5:10], second["candidate"]
    )


def two_towers(memory, **arguments):
    softmax = InBatchNegativeSoftmax(batch_size="any")
    return models.two_towers(softmax, memory=memory, **arguments)


def test_stores_in_fit_not_in_evaluate_and_is_saved(tmp_path):
    memory = CrossBatchMemory(24, warmup_steps=1, name="memory")
    estimate = inbatch_neg.StreamingSamplingProbability(1009)
    model = two_towers(memory, estimate=estimate)
    model.compile("sgd", loss=inbatch_neg.InBatchNegativeLoss())
    rows = {"user": np.arange(32), "item": np.arange(32) + 5}
    data = inbatch_neg.full_batches(rows, 16)
    models.fit(model, data, epochs=2)
    stored = {w.name: to_numpy(w) for w in memory.weights}
    assert stored["filled"] == 24 and stored["steps"] == 1
    assert stored["candidate_ids"].tolist() == [*range(21, 37), *range(5, 13)]
    assert stored["candidate"].any(axis=1).all()
    before = weights(memory)
    loss = model.evaluate(data, verbose=0)
    model.predict(inbatch_neg.full_batches(rows, 8), verbose=0)
    assert_all_equal(before, weights(memory))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_layer("memory").get_config() == memory.get_config()
    assert_all_equal(before, weights(again.get_layer("memory")))
    assert again.evaluate(data, verbose=0) == pytest.approx(loss, rel=1e-5)


def test_another_batch_size_in_training():
    memory = CrossBatchMemory(24)
    model = two_towers(memory)
    rows = {"user": np.arange(32), "item": np.arange(32) + 5}
    for batch_size in (16, 8):
        model.compile("sgd", loss=inbatch_neg.InBatchNegativeLoss())
        models.fit(model, inbatch_neg.full_batches(rows, batch_size))
    ids = {w.name: to_numpy(w) for w in memory.weights}["candidate_ids"]
    assert ids.tolist() == [
        *range(29, 37),
        *range(21, 29),
        *range(13, 21),
    ]


def test_in_a_subclassed_model():
    """Keras builds it with made-up sizes, larger than this memory."""
    model = models.Subclassed(InBatchNegativeSoftmax(), CrossBatchMemory(16))
    model.compile("sgd", loss=inbatch_neg.InBatchNegativeLoss())
    rows = {"user": np.arange(32), "item": np.arange(32) + 5}
    models.fit(model, inbatch_neg.full_batches(rows, 16))
    stored = {w.name: to_numpy(w) for w in model.memory.weights}
    assert stored["filled"] == 16
    assert stored["candidate_ids"].tolist() == list(range(21, 37))


def test_symbolic_shapes():
    for rows, total in ((None, None), (5, 13)):
        memory = CrossBatchMemory(8)
        result = memory(
            keras.Input((3,), batch_size=rows),
            candidate_ids=keras.Input((), batch_size=rows, dtype="int32"),
        )
        assert result["candidate"].shape == (total, 3)
        assert result["candidate_ids"].shape == (total,)
        assert result["candidate_mask"].shape == (total,)
        assert result["candidate_mask"].dtype == "bool"
        assert "candidate_sampling_probability" not in result


def test_half_precision_towers():
    keras.config.set_dtype_policy("mixed_float16")
    memory = CrossBatchMemory(4)
    batch = next(batches(2))
    batch["candidate_sampling_probability"] = np.array([1e-6, 1e-8], "float32")
    half = {**batch, "candidate": batch["candidate"].astype("float16")}
    for _ in range(2):
        result = memory(**half, training=True)
    for name in ("candidate", "candidate_sampling_probability"):
        dtype = keras.backend.standardize_dtype(result[name].dtype)
        assert dtype == "float32"
        np.testing.assert_array_equal(
            to_numpy(result[name])[:4], np.concatenate([half[name]] * 2)
        )


@pytest.mark.backends("tensorflow")
def test_unknown_number_of_rows_and_xla():
    import tensorflow as tf

    def run(memory, **options):
        @tf.function(**options)
        def call(candidate, ids):
            return memory(candidate, candidate_ids=ids, training=True)

        return call

    memories = [CrossBatchMemory(6) for _ in range(3)]
    for memory in memories:
        memory.build((None, 3), candidate_ids_shape=(None,))
    eager, unknown, xla = memories
    unknown = run(
        unknown,
        input_signature=[
            tf.TensorSpec([None, 3], tf.float32),
            tf.TensorSpec([None], tf.int32),
        ],
    )
    xla = run(xla, jit_compile=True)
    for batch in batches(4, 4):
        candidate, ids = batch["candidate"], batch["candidate_ids"]
        expected = eager(candidate, candidate_ids=ids, training=True)
        for call in (unknown, xla):
            result = call(candidate, ids)
            for name, value in expected.items():
                np.testing.assert_array_equal(result[name], value)
    with pytest.raises(tf.errors.InvalidArgumentError, match="capacity"):
        unknown(np.zeros((7, 3), "float32"), np.arange(7, dtype="int32"))


@pytest.mark.backends("tensorflow")
def test_string_ids():
    memory = CrossBatchMemory(3)
    query = candidate = np.eye(3, dtype="float32")
    for _ in range(2):
        result = memory(
            candidate, candidate_ids=np.array(["a", "b", "c"]), training=True
        )
    np.testing.assert_allclose(
        to_numpy(InBatchNegativeSoftmax()(query, **result)),
        oracle.softmax_loss(
            query, np.tile(candidate, (2, 1)), [0, 1, 2, 0, 1, 2]
        )[0],
        rtol=1e-5,
    )


def test_probabilities_of_zero_stay_finite():
    memory = CrossBatchMemory(8)
    query = np.ones((5, 3), "float32")
    batch = next(batches(5))
    batch["candidate_sampling_probability"][:4] = 0.0
    for _ in range(2):
        result = memory(**batch, training=True)
    assert np.isfinite(
        to_numpy(InBatchNegativeSoftmax()(query, **result))
    ).all()


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"capacity": 0}, ValueError, "capacity"),
        ({"capacity": -3}, ValueError, "capacity"),
        ({"capacity": 3.0}, TypeError, "capacity"),
        ({"capacity": True}, TypeError, "capacity"),
        ({"capacity": 3, "warmup_steps": -1}, ValueError, "warmup_steps"),
        ({"capacity": 3, "warmup_steps": 0.5}, TypeError, "warmup_steps"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        CrossBatchMemory(**arguments)


ROWS = np.ones((3, 2), "float32")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"candidate": np.ones((5, 2), "float32")}, ValueError, "capacity"),
        ({"candidate": np.ones(3, "float32")}, ValueError, "dimensions"),
        ({"candidate": np.ones((3, 2), "int32")}, TypeError, "floats"),
        ({"candidate_ids": np.ones(3, "float32")}, TypeError, "integers"),
        ({"candidate_ids": np.ones((3, 1), "int32")}, ValueError, "squeeze"),
        ({"candidate_ids": np.ones(2, "int32")}, ValueError, "one entry"),
        (
            {"candidate_sampling_probability": np.ones(3, "int32")},
            TypeError,
            "floats",
        ),
        (
            {"candidate_sampling_probability": np.ones(2, "float32")},
            ValueError,
            "one entry",
        ),
    ],
)
def test_bad_input(given, error, message):
    given = {"candidate": ROWS, **given}
    with pytest.raises(error, match=message):
        CrossBatchMemory(4)(**given)
    symbolic = {
        name: keras.KerasTensor(value.shape, dtype=str(value.dtype))
        for name, value in given.items()
    }
    with pytest.raises(error, match=message):
        CrossBatchMemory(4)(**symbolic)


def test_given_in_one_call_and_not_in_another():
    (batch,) = batches(3)
    for missing in ("candidate_ids", "candidate_sampling_probability"):
        less = {k: v for k, v in batch.items() if k != missing}
        memory = CrossBatchMemory(4)
        memory(**batch)
        with pytest.raises(ValueError, match="built with it"):
            memory(**less)
        memory = CrossBatchMemory(4)
        memory(**less)
        with pytest.raises(ValueError, match="built without it"):
            memory(**batch)


def test_capacity_and_replicas(monkeypatch):
    # The other replicas themselves are in tests/replicas.
    internals.pretend_replicas(monkeypatch, 2)
    with pytest.raises(ValueError, match="multiple of the number of replicas"):
        CrossBatchMemory(7)(ROWS)
    with pytest.raises(ValueError, match="of the global one"):
        CrossBatchMemory(2 * len(ROWS) - 2)(ROWS)

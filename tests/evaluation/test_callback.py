"""The evaluation against its oracle, in `fit`, and what it refuses."""

import keras
import numpy as np
import pytest

import inbatch_neg
from tests import models
from tests.evaluation import oracle

RetrievalEvaluation = inbatch_neg.RetrievalEvaluation


def draw(seed, queries=24, candidates=30, dimensions=4):
    """Returns vectors of small integers: many ties, no rounding."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(-2, 3, (queries, dimensions)).astype("float32"),
        rng.integers(-2, 3, (candidates, dimensions)).astype("float32"),
        [
            rng.choice(candidates, rng.integers(0, 5), replace=False).tolist()
            for _ in range(queries)
        ],
        [
            rng.choice(candidates, rng.integers(0, 12), replace=False).tolist()
            for _ in range(queries)
        ],
    )


def compare(query, candidate, targets, seen, ids=None, k=(1, 3, 10), **given):
    found = RetrievalEvaluation(
        None, None, query, targets, candidate, candidate_ids=ids, seen=seen,
        k=k, **given,
    )()  # fmt: skip
    names = list(range(len(candidate))) if ids is None else list(ids)
    expected = oracle.evaluate(
        query,
        candidate,
        names,
        targets,
        seen or [[]] * len(query),
        k,
        given.get("sample_weight"),
    )
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    return found


def test_oracle_by_hand():
    query, candidates = [[1.0]], [[4.0], [3.0], [3.0], [2.0]]
    found = oracle.evaluate(query, candidates, "abcd", ["bd"], ["a"], (1, 2))
    assert found == {
        "recall@1": 0.0, "hit_rate@1": 0.0, "ndcg@1": 0.0,
        "recall@2": 0.5, "hit_rate@2": 1.0,
        "ndcg@2": pytest.approx(0.63093 / 1.63093, abs=1e-5), "mrr": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_random_cases(seed):
    query, candidate, targets, seen = draw(seed)
    weights = np.random.default_rng(seed).uniform(0, 2, len(query))
    compare(query, candidate, targets, seen, sample_weight=weights)


def test_duplicate_candidates():
    query, candidate, targets, seen = draw(0)
    compare(query, np.repeat(candidate[:6], 5, axis=0), targets, seen)


def test_a_collapsed_model_is_last():
    ones = np.ones((30, 64), "float32") / 3
    targets = np.arange(30)
    figures = RetrievalEvaluation(None, None, ones, targets, ones, k=(1, 29))()
    assert figures["recall@29"] == figures["ndcg@29"] == 0.0
    assert figures["mrr"] == pytest.approx(1 / 30)


def test_a_model_of_nan_is_last():
    query, candidate, *_ = draw(0)
    targets = np.zeros(len(query), int)
    figures = RetrievalEvaluation(
        None, None, query * np.nan, targets, candidate, k=29, coverage=True
    )()
    assert figures["recall@29"] == figures["coverage@29"] == 0.0


def test_everything_seen():
    query, candidate, targets, _ = draw(1)
    everything = [list(range(len(candidate)))] * len(query)
    figures = compare(query, candidate, targets, everything)
    # Only the targets, which stay, are left.
    assert figures["recall@10"] == figures["mrr"] == 1.0


def test_a_target_among_the_seen_stays():
    query, candidate, targets, seen = draw(2)
    compare(query, candidate, targets, [s + t for s, t in zip(seen, targets)])


def test_k_beyond_the_catalogue():
    query, candidate, targets, seen = draw(3)
    figures = compare(query, candidate, targets, seen, k=(31, 1000))
    assert figures["recall@31"] == figures["recall@1000"] == 1.0


@pytest.mark.parametrize(
    "ids",
    (
        [f"item {i}" for i in range(30)],
        np.arange(30) + 2**53,
        np.arange(30, dtype="uint64") + np.uint64(2**63),
        np.arange(30)[::-1].copy(),
    ),
    ids=("strings", "int64", "uint64", "reversed"),
)
def test_ids(ids):
    query, candidate, targets, seen = draw(4)
    targets, seen = (
        [[ids[place] for place in row] for row in lists]
        for lists in (targets, seen)
    )
    compare(query, candidate, targets, seen, ids=ids)


def test_ids_of_different_signs_are_not_merged():
    vectors = np.eye(3, dtype="float32")
    ids = np.array([2**63 + 2**10, 2**62, 2**62 + 1], "uint64")
    figures = RetrievalEvaluation(
        None, None, vectors, np.array([-(2**63) + 2**10, 2**62, 2**62 + 1]),
        vectors, candidate_ids=ids, k=1,
    )()  # fmt: skip
    assert figures["recall@1"] == pytest.approx(2 / 3)


def test_bytes_are_strings():
    vectors = np.eye(2, dtype="float32")
    figures = RetrievalEvaluation(
        None, None, vectors, ["é", "b"], vectors,
        candidate_ids=np.array(["é".encode(), b"b"], object), k=1,
    )()  # fmt: skip
    assert figures["recall@1"] == 1.0


def test_a_target_that_is_not_in_the_catalogue(caplog):
    query, candidate, targets, seen = draw(5)
    targets = [row + [1000] for row in targets]
    seen = [row + [2000] for row in seen]
    compare(query, candidate, targets, seen)
    assert "24 of" in caplog.text


def test_forms_of_lists():
    import tensorflow as tf
    from scipy import sparse

    query, candidate, targets, seen = draw(6)
    expected = compare(query, candidate, targets, seen)

    def matrix(lists):
        dense = np.zeros((len(query), len(candidate)))
        for row, columns in enumerate(lists):
            dense[row, columns] = 1
        return sparse.csr_matrix(dense)

    def ragged(lists):
        return tf.ragged.constant(lists, dtype=tf.int64)

    twice = [row + row for row in targets]
    for these, those in (
        (matrix(targets), matrix(seen)),
        (ragged(targets), ragged(seen)),
        (twice, [np.array(row, int) for row in seen]),
    ):
        found = RetrievalEvaluation(
            None, None, query, these, candidate, seen=those, k=(1, 3, 10)
        )()
        assert found == pytest.approx(expected)


def test_one_target_per_query_in_every_form():
    query, candidate, *_ = draw(7)
    one = np.arange(len(query)) % 30
    expected = RetrievalEvaluation(None, None, query, one, candidate)()
    for form in (
        one.tolist(),
        one[:, None],
        keras.ops.convert_to_tensor(one.astype("int32")),
        [[t] for t in one],
    ):
        assert (
            RetrievalEvaluation(None, None, query, form, candidate)()
            == expected
        )


def several(query, seed=3):
    """Returns queries (rows, 3, D), the first vectors of which are these."""
    shape = (2, *query.shape)
    others = np.random.default_rng(seed).integers(-2, 3, shape)
    return np.stack([query, *others.astype("float32")], axis=1)


@pytest.mark.parametrize("seed", range(4))
def test_queries_of_several_vectors(seed):
    query, candidate, targets, seen = draw(seed)
    compare(several(query), candidate, targets, seen)
    one = compare(query[:, None], candidate, targets, seen)
    assert one == compare(query, candidate, targets, seen)


@pytest.mark.parametrize("place", [0, 2])
def test_a_nan_vector_of_several_is_last(place):
    query, candidate, targets, _ = draw(1)
    query = several(query)
    query[:, place] = np.nan
    found = compare(query, candidate, targets, None, k=(1,))
    assert found["recall@1"] == 0


def test_a_model_of_several_vectors_and_its_lists():
    query, candidate, targets, seen = draw(0)
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, keras.layers.Identity()(inputs))
    evaluation = RetrievalEvaluation(
        model, None, several(query), targets, candidate, seen=seen, verbose=0
    )
    found = evaluation()
    names = list(range(30))
    expected = oracle.evaluate(
        several(query), candidate, names, targets, seen, (10, 100)
    )
    assert found == pytest.approx(expected)
    scores, places = evaluation.top_k(several(query), 30)
    table = (several(query) @ candidate.T).max(axis=1)
    np.testing.assert_array_equal(scores, -np.sort(-table))
    np.testing.assert_array_equal(
        np.take_along_axis(table, places, axis=1), scores
    )


@pytest.mark.parametrize("vectors", [1, 3])
def test_cosine_and_coverage(vectors):
    rng = np.random.default_rng(0)
    query = rng.normal(size=(5, 4)).astype("float32")
    candidate = rng.normal(size=(40, 4)).astype("float32")
    candidate *= rng.uniform(0.1, 10, (40, 1))
    _, _, targets, seen = draw(8, 5, 40)
    unit_query = query
    if vectors > 1:
        query = rng.normal(size=(5, vectors, 4)).astype("float32")
        length = np.linalg.norm(query, axis=2, keepdims=True)
        unit_query = query / length
    unit = candidate / np.linalg.norm(candidate, axis=1, keepdims=True)
    given = {"targets": targets, "candidates": candidate, "seen": seen}
    found = RetrievalEvaluation(
        None, None, query, k=(2, 5), similarity="cosine", coverage=True, **given
    )()
    names = list(range(40))
    expected = oracle.evaluate(unit_query, unit, names, targets, seen, (2, 5))
    for k in (2, 5):
        expected[f"coverage@{k}"] = oracle.coverage(
            unit_query, unit, names, targets, seen, k
        )
    assert found == pytest.approx(expected)


def test_top_k():
    query, candidate, _, seen = draw(0)
    ids = np.array([f"item {i}" for i in range(30)])
    evaluation = RetrievalEvaluation(
        None, None, query, ids[:24], candidate, candidate_ids=ids
    )
    scores, found = evaluation.top_k(query, 1000)
    assert scores.shape == found.shape == (24, 30)
    np.testing.assert_array_equal(scores, -np.sort(-query @ candidate.T))
    named = [[ids[place] for place in row] for row in seen]
    scores, found = evaluation.top_k(query, 10, seen=named)
    assert np.all(np.isfinite(scores))
    assert not any(set(one) & set(row) for one, row in zip(named, found))


def towers(dtype="float32"):
    """Returns a model that is to be trained, and its two towers."""
    keras.utils.set_random_seed(0)
    unit = keras.layers.UnitNormalization(dtype=dtype)
    softmax = inbatch_neg.InBatchNegativeSoftmax(temperature=0.2)
    model = models.two_towers(softmax, between=unit, mask=False, dtype=dtype)
    model.compile("adam", loss=inbatch_neg.InBatchNegativeLoss())
    user, item = (
        keras.Model(model.input[name], unit(model.get_layer(f"{name}s").output))
        for name in ("user", "item")
    )
    return model, user, item


def fit(evaluation, model, callbacks=(), epochs=2):
    callbacks = [evaluation, *callbacks]
    return models.fit(
        model, models.full(256, 64), epochs=epochs, callbacks=callbacks
    )


def test_callback_feeds_the_others(tmp_path):
    model, user, item = towers()
    users, items = np.arange(60, dtype="int32"), np.arange(50, dtype="int32")
    # Corpus and queries of different sizes, last batches partial.
    evaluation = RetrievalEvaluation(
        user, item, users, users % 50, items, k=10, batch_size=32
    )
    before = evaluation()
    history = fit(
        evaluation,
        model,
        [
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.ModelCheckpoint(
                str(tmp_path / "best.weights.h5"),
                monitor="val_recall@10",
                mode="max",
                save_best_only=True,
                save_weights_only=True,
            ),
            keras.callbacks.EarlyStopping(
                "val_recall@10", mode="max", patience=0, min_delta=2.0
            ),
        ],
        epochs=4,
    )
    assert len(history["val_recall@10"]) == 2  # stopped
    assert (tmp_path / "best.weights.h5").exists()
    assert "val_mrr" in (tmp_path / "log.csv").read_text().splitlines()[0]
    # The figures of the last epoch are those of the trained towers.
    after = evaluation()
    assert {f"val_{name}": value for name, value in after.items()} == {
        name: values[-1]
        for name, values in history.items()
        if name.startswith("val_")
    }
    assert after != before
    vectors = user.predict(users, verbose=0), item.predict(items, verbose=0)
    expected = oracle.evaluate(
        *vectors, list(items), [[u % 50] for u in users], [[]] * 60, (10,)
    )
    assert after == pytest.approx(expected)


def test_evaluating_does_not_change_the_training():
    model, user, item = towers()
    users, items = np.arange(60, dtype="int32"), np.arange(50, dtype="int32")
    evaluation = RetrievalEvaluation(user, item, users, users % 50, items)
    losses = fit(evaluation, model)["loss"]
    model, *_ = towers()
    assert fit(keras.callbacks.Callback(), model)["loss"] == losses


def test_after_a_batch_of_an_epoch():
    """On JAX the towers have no weights there, and the error says so."""
    model, user, item = towers()
    users, items = np.arange(60, dtype="int32"), np.arange(50, dtype="int32")
    evaluation = RetrievalEvaluation(
        user, item, users, users % 50, items, k=10, verbose=0
    )
    found = []

    def evaluate(batch, logs):
        try:
            found.append(evaluation())
        except RuntimeError as error:
            assert "`model.jax_state_sync()`" in str(error)
            model.jax_state_sync()
            found.append(evaluation())

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=evaluate)
    models.fit(model, models.full(256, 64), epochs=1, callbacks=[callback])
    assert len(found) == 4
    assert found[-1] == evaluation()


def test_datasets_and_dicts_and_mixed_precision(capsys):
    import tensorflow as tf

    _, user, item = towers("mixed_float16")
    users, items = np.arange(60, dtype="int32"), np.arange(50, dtype="int32")
    from_arrays = RetrievalEvaluation(
        user, item, users, users % 50, items, k=10, verbose=0
    )
    expected = from_arrays()
    assert not capsys.readouterr().out
    scores, _ = from_arrays.top_k(users, 10)
    assert scores.dtype == np.float32
    name = "id"
    by_name = keras.Input((), dtype="int32", name=name)
    named = keras.Model({name: by_name}, user(by_name))
    found = RetrievalEvaluation(
        named,
        item,
        {name: users},
        users % 50,
        tf.data.Dataset.from_tensor_slices(items).batch(32),
        k=10,
        verbose=1,
    )()
    assert found == expected
    assert "━" in capsys.readouterr().out
    ready = tf.data.Dataset.from_tensor_slices(
        item.predict(items, verbose=0)
    ).batch(32)
    found = RetrievalEvaluation(user, None, users, users % 50, ready, k=10)()
    assert found == expected


VECTORS = np.eye(3, dtype="float32")


@pytest.mark.parametrize(
    "change, error, message",
    (
        ({"query_model": keras.ops.abs}, TypeError, "`query_model` must be a"),
        ({"targets": [0.5, 1.0, 2.0]}, TypeError, "integers or strings"),
        ({"targets": np.zeros((3, 1, 1), int)}, ValueError, "one id per"),
        ({"targets": np.eye(3, dtype=int)}, ValueError, "not zeros and ones"),
        ({"seen": np.eye(3, 9, dtype=bool)}, ValueError, "csr_matrix"),
        ({"seen": [[0], None, [1]]}, ValueError, "None for query 1"),
        ({"seen": [np.nan, [1], [0]]}, ValueError, "nan for query 0"),
        ({"targets": [0, 1]}, ValueError, "`targets` must have one entry"),
        ({"targets": [[], [], []]}, ValueError, "at least one target"),
        ({"seen": [[0]]}, ValueError, "`seen` must have one entry"),
        ({"k": 0}, ValueError, "`k` must be an integer of 1"),
        ({"k": ()}, ValueError, "`k` must not be empty"),
        ({"k": True}, TypeError, "`k` must be an integer"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be"),
        ({"prefix": None}, TypeError, "`prefix` must be a string"),
        ({"verbose": "no"}, ValueError, "`verbose` must be"),
        ({"similarity": "l2"}, ValueError, "`similarity` must be"),
        ({"coverage": 1}, TypeError, "`coverage` must be"),
        ({"candidate_ids": [1, 2]}, ValueError, "one id per candidate"),
        ({"candidate_ids": [1, 2, 2]}, ValueError, "all be different"),
        ({"candidate_ids": [0.0, 1.0, 2.0]}, TypeError, "integers or str"),
        ({"sample_weight": [1, 2]}, ValueError, "`sample_weight` must have"),
        ({"sample_weight": [1, -1, 1]}, ValueError, "0 or more"),
        ({"sample_weight": ["a"] * 3}, TypeError, "must hold numbers"),
    ),
)
def test_refused_at_construction(change, error, message):
    given = {
        "query_model": None, "candidate_model": None, "queries": VECTORS,
        "targets": [0, 1, 2], "candidates": VECTORS, **change,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        RetrievalEvaluation(**given)


@pytest.mark.parametrize(
    "change, error, message",
    (
        ({"targets": [7, 8, 9]}, ValueError, "ids from `candidate_ids`"),
        ({"targets": ["a", "b", "c"]}, TypeError, "the integers 0..2"),
        ({"candidate_ids": ["a", "b", "c"]}, TypeError, "must both hold"),
        ({"queries": np.ones((3, 4), "float32")}, ValueError, "dimensions"),
        ({"queries": np.ones(3, "float32")}, ValueError, "`query_model` must"),
        ({"queries": np.ones((3, 2, 4), "float32")}, ValueError, "dimensions"),
        ({"queries": np.ones((3, 0, 3), "float32")}, ValueError, "vectors, d"),
        ({"queries": np.ones((3, 1, 1, 3))}, ValueError, "`query_model` must"),
        ({"candidates": VECTORS[:, None]}, ValueError, "`candidate_model` mu"),
        ({"queries": {"a": VECTORS}}, TypeError, "must be a model"),
        ({"sample_weight": [0, 0, 0]}, ValueError, "must not be 0"),
    ),
)
def test_refused_in_the_call(change, error, message):
    given = {
        "query_model": None, "candidate_model": None, "queries": VECTORS,
        "targets": [0, 1, 2], "candidates": VECTORS, **change,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        RetrievalEvaluation(**given)()

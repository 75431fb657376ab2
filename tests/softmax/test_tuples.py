"""N-tuples: a positive and K hard negatives in each row of candidates."""

import logging

import keras
import numpy as np
import pytest

from inbatch_neg import (
    CrossBatchMemory,
    InBatchNegativeLoss,
    InBatchNegativeSoftmax,
    batch_checks,
    ops,
)
from inbatch_neg.softmax.batch import CANDIDATE_FIELDS
from inbatch_neg.softmax.log_q_and_masks import cross_entropy_with_first
from tests import helpers, internals, oracle
from tests.helpers import (
    BACKEND,
    HALVES,
    RULES,
    assert_close,
    to_numpy,
    value_and_gradients,
)

ROWS, NEGATIVES = 9, 2


def tuples_and_flat(rows=ROWS, negatives=NEGATIVES):
    """Returns a batch of n-tuples, and the same one with (C, D) candidates."""
    flat = helpers.batch_of(rows, rows * (1 + negatives))
    tuples = dict(flat)
    for name in CANDIDATE_FIELDS:
        one = flat[name]
        own, rest = one[:rows], one[rows:]
        rest = rest.reshape(rows, negatives, *one.shape[1:])
        tuples[name] = np.concatenate([own[:, None], rest], axis=1)
    return tuples, flat


def check(function, tuples, flat, upstream, **options):
    """Compares a function of n-tuples with the oracle of (C, D)."""
    by = {name: tuples[name] for name in ("query", "candidate")}
    rest = {name: value for name, value in tuples.items() if name not in by}
    value, gradients = value_and_gradients(
        lambda **vectors: function(**vectors, **rest), by, upstream
    )
    expected, d_expected = oracle.softmax_loss(
        **flat, upstream=upstream, **options
    )
    assert_close(value, expected)
    assert_close(gradients["query"], d_expected["query"])
    d_candidate = gradients["candidate"]
    rest = d_candidate[:, 1:].reshape(-1, d_candidate.shape[-1])
    d_candidate = np.concatenate([d_candidate[:, 0], rest])
    assert_close(d_candidate, d_expected["candidate"])


@pytest.mark.parametrize(
    "chunked, names", [(False, RULES), *[(True, names) for names in HALVES]]
)
def test_each_rule(monkeypatch, chunked, names):
    if chunked:
        internals.small_chunks(monkeypatch)
    batches = [
        {name: batch[name] for name in ("query", "candidate", *names)}
        for batch in tuples_and_flat()
    ]
    upstream = np.linspace(0.5, 2.0, ROWS)
    check(ops.in_batch_softmax_loss, *batches, upstream)


@pytest.mark.parametrize(
    "arguments, hardest",
    [
        ({}, None),
        ({"num_negatives": 8}, None),
        ({"num_negatives": 4, "sampling": "hardest"}, 4),
    ],
    ids=["all", "rotation", "hardest"],
)
@pytest.mark.parametrize("logits", [False, True])
def test_layer(chunked, arguments, hardest, logits):
    layer = InBatchNegativeSoftmax(
        **arguments, temperature=0.5, return_logits=logits
    )

    def losses(**tensors):
        found = layer(**tensors, training=True)
        return cross_entropy_with_first(found) if logits else found

    batches = tuples_and_flat()
    if logits:
        for batch in batches:
            batch.pop("sample_weight")
    upstream = np.linspace(0.5, 2.0, ROWS).astype("float32")
    check(losses, *batches, upstream, temperature=0.5, hardest=hardest)


def test_the_order_of_logits_and_both_directions():
    for arguments in ({"return_logits": True}, {"symmetric": True}):
        layer = InBatchNegativeSoftmax(**arguments)
        tuples, flat = tuples_and_flat()
        if "return_logits" in arguments:
            del tuples["sample_weight"], flat["sample_weight"]
        np.testing.assert_array_equal(
            to_numpy(layer(**tuples)), to_numpy(layer(**flat))
        )


def test_without_negatives_and_strings():
    tuples, flat = tuples_and_flat(negatives=0)
    if BACKEND == "tensorflow":
        for batch in (tuples, flat):
            batch["candidate_ids"] = batch["candidate_ids"].astype(str)
    np.testing.assert_array_equal(
        to_numpy(ops.in_batch_softmax_loss(**tuples)),
        to_numpy(ops.in_batch_softmax_loss(**flat)),
    )


@pytest.mark.parametrize("rows", [ROWS, None])
def test_functional_model_of_towers(tmp_path, rows):
    """The tokens of an n-tuple go through the tower as rows of their own."""
    tokens = keras.Input((1 + NEGATIVES, 4), rows, dtype="int32")
    query = keras.Input((8,), rows)
    tower = keras.Sequential(
        [keras.layers.Embedding(20, 8), keras.layers.GlobalAveragePooling1D()]
    )
    vectors = tower(keras.ops.reshape(tokens, (-1, 4)))
    candidate = keras.ops.reshape(vectors, (-1, 1 + NEGATIVES, 8))
    layer = InBatchNegativeSoftmax(batch_size=ROWS)
    output = layer(query, candidate, candidate_ids=tokens[:, :, 0])
    assert output.shape == (rows,)
    logits = InBatchNegativeSoftmax(return_logits=True)(query, candidate)
    columns = None if rows is None else rows * (1 + NEGATIVES)
    assert logits.shape == (rows, columns)
    model = keras.Model([query, tokens], output)
    model.compile("sgd", InBatchNegativeLoss())
    rng = np.random.default_rng(0)
    x = [
        rng.normal(size=(2 * ROWS, 8)).astype("float32"),
        rng.integers(0, 20, (2 * ROWS, 1 + NEGATIVES, 4)).astype("int32"),
    ]
    model.fit(x, np.zeros(2 * ROWS), batch_size=ROWS, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    one, other = (m.predict(x, ROWS, verbose=0) for m in (model, again))
    np.testing.assert_array_equal(one, other)


def test_what_looks_like_a_sequence_is_logged_once(caplog):
    batch_checks._log_many_negatives.cache_clear()
    layer = InBatchNegativeSoftmax()
    rng = np.random.default_rng(0)
    query = rng.normal(size=(4, 2)).astype("float32")
    with caplog.at_level(logging.WARNING, "inbatch_neg"):
        for vectors in (65, 66, 66):
            layer(query, rng.normal(size=(4, vectors, 2)).astype("float32"))
    (message,) = [record.getMessage() for record in caplog.records]
    assert "65 hard negatives" in message
    assert "GlobalAveragePooling1D" in message


def test_a_memory_takes_the_positives():
    words = r"`candidate` must .*n-tuples: .*candidate\[:, 0\].*\(4, 3, 2\)"
    memory = CrossBatchMemory(8)
    tuples = np.ones((4, 3, 2), "float32")
    with pytest.raises(ValueError, match=words):
        memory(tuples)
    memory.build((None, 2))
    with pytest.raises(ValueError, match=words):
        memory(tuples)

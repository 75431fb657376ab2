"""The hardest negatives: a full sort, ties, chunks, logits."""

import numpy as np
import pytest

from inbatch_neg import InBatchNegativeSoftmax
from tests import helpers, internals, oracle
from tests.helpers import assert_close, losses_and_gradients, to_numpy


@pytest.mark.parametrize(
    "count, rules, weighted",
    [(4, False, False), (1, True, True), (4, True, True), (12, True, False)],
)
def test_hardest_equals_a_full_sort(monkeypatch, count, rules, weighted):
    internals.small_chunks(monkeypatch, rows=4)
    batch = helpers.batch_of(10, 13)
    if not rules:
        batch = {name: batch[name] for name in ("query", "candidate")}
    layer = InBatchNegativeSoftmax(
        count, sampling="hardest", temperature=0.5, batch_size="any"
    )
    upstream = np.linspace(0.5, 2.0, 10) if weighted else None
    value, gradients = losses_and_gradients(layer, batch, upstream)
    expected, d_expected = oracle.softmax_loss(
        **batch, temperature=0.5, hardest=count, upstream=upstream
    )
    assert_close(value, expected, name="loss")
    for name in gradients:
        assert_close(gradients[name], d_expected[name], name=name)


def test_hardest_of_equal_scores_are_the_first():
    query = np.ones((6, 2), "float32")
    candidate = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [1, 0], [2, 0]])
    batch = {"query": query, "candidate": candidate.astype("float32")}
    layer = InBatchNegativeSoftmax(2, sampling="hardest")
    _, gradients = losses_and_gradients(layer, batch)
    _, expected = oracle.softmax_loss(**batch, hardest=2)
    assert_close(gradients["candidate"], expected["candidate"])
    # Candidate 4 ties with 0 to 3, which come first.
    only_row_4 = np.array([0, 0, 0, 0, 1, 0], "float32")
    _, gradients = losses_and_gradients(layer, batch, only_row_4)
    used = np.abs(gradients["candidate"]).sum(axis=1) > 0
    assert used.tolist() == [True, False, False, False, True, True]


def test_hardest_logits():
    batch = helpers.batch_of(10)
    batch.pop("sample_weight")
    layer = InBatchNegativeSoftmax(5, sampling="hardest", return_logits=True)
    logits = to_numpy(layer(**batch))
    assert logits.shape == (10, 6)
    assert np.all(np.diff(logits[:, 1:], axis=1) <= 0)
    expected, _ = oracle.softmax_loss(**batch, hardest=5)
    assert_close(oracle.first_column_loss(logits), expected)


def test_hardest_where_too_few_are_left():
    ids = np.zeros(5, "int32")
    query = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    layer = InBatchNegativeSoftmax(3, sampling="hardest")
    value, gradients = losses_and_gradients(
        layer, {"query": query, "candidate": query, "candidate_ids": ids}
    )
    assert_close(value, np.zeros(5))
    for gradient in gradients.values():
        assert_close(gradient, np.zeros((5, 3)))


def test_hardest_may_be_more_than_the_rows():
    vectors = np.random.default_rng(0).normal(size=(9, 2)).astype("float32")
    layer = InBatchNegativeSoftmax(7, sampling="hardest")
    expected, _ = oracle.softmax_loss(vectors[:4], vectors, hardest=7)
    assert_close(to_numpy(layer(vectors[:4], vectors)), expected)
    with pytest.raises(ValueError, match="num_negatives"):
        InBatchNegativeSoftmax(9, sampling="hardest")(vectors[:4], vectors)

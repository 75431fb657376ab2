"""Properties of the loss, for values that hypothesis draws."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from inbatch_neg import ops
from tests import helpers, internals
from tests.helpers import assert_close, batch_of, to_numpy

ROWS, CANDIDATES = 6, 8
SEEDS = strategies.integers(0, 2**31)


def few_examples(test):
    settings = hypothesis.settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        database=None,
        # All examples of a test take the same path.
        suppress_health_check=[
            hypothesis.HealthCheck.function_scoped_fixture,
        ],
    )
    return settings(hypothesis.given(seed=SEEDS)(test))


# Compiled once for each path and set of arguments, not at every example.
COMPILED = {
    path: helpers.compiled(lambda batch: ops.in_batch_softmax_loss(**batch))
    for path in ("chunked", "dense")
}


@pytest.fixture
def loss_of(each_path):
    return lambda **batch: to_numpy(COMPILED[each_path](batch))


@few_examples
def test_permuting_the_rows_permutes_the_losses(loss_of, seed):
    batch = batch_of(ROWS, CANDIDATES, seed=seed)
    order = np.random.default_rng(seed).permutation(ROWS)
    candidate_order = np.concatenate([order, np.arange(ROWS, CANDIDATES)])
    permuted = {
        name: array[order if len(array) == ROWS else candidate_order]
        for name, array in batch.items()
    }
    assert_close(loss_of(**permuted), loss_of(**batch)[order])


@few_examples
def test_a_constant_added_to_the_scores_changes_nothing(loss_of, seed):
    batch = batch_of(ROWS, CANDIDATES, seed=seed)
    # One dimension in which all candidates are 1 adds a constant to a row.
    shifts = np.random.default_rng(seed).normal(size=(ROWS, 1)) * 5
    ones = np.ones((CANDIDATES, 1))
    shifted = dict(batch)
    for name, column in (("query", shifts), ("candidate", ones)):
        column = column.astype("float32")
        shifted[name] = np.concatenate([batch[name], column], axis=1)
    assert_close(loss_of(**shifted), loss_of(**batch))


@few_examples
def test_equal_probabilities_correct_nothing(loss_of, seed):
    batch = batch_of(ROWS, CANDIDATES, seed=seed)
    q = np.random.default_rng(seed).uniform(1e-9, 1)
    batch["candidate_sampling_probability"] = np.full(CANDIDATES, q, "float32")
    corrected = loss_of(**batch)
    del batch["candidate_sampling_probability"]
    assert_close(corrected, loss_of(**batch))


@few_examples
def test_masking_equals_deleting(loss_of, seed):
    batch = batch_of(ROWS, CANDIDATES, seed=seed)
    batch["candidate_mask"][ROWS:] = False
    deleted = {
        name: array[:ROWS] if name.startswith("candidate") else array
        for name, array in batch.items()
    }
    assert_close(loss_of(**batch), loss_of(**deleted), 1e-6)


@few_examples
def test_equal_embeddings_give_log_k(loss_of, seed):
    rng = np.random.default_rng(seed)
    one = rng.normal(size=(1, 4)).astype("float32")
    taking_part = rng.random(CANDIDATES) < 0.5
    loss = loss_of(
        query=np.repeat(one, ROWS, 0),
        candidate=np.repeat(one, CANDIDATES, 0),
        candidate_mask=taking_part,
    )
    # A row's own positive takes part in any case.
    counts = taking_part.sum() + ~taking_part[:ROWS]
    assert_close(loss, np.log(counts), 1e-5)


@pytest.mark.parametrize("chunk", [4, 512])
def test_rows_of_weight_0_do_not_leak(monkeypatch, chunk):
    internals.small_chunks(monkeypatch, chunk)
    batch = batch_of(ROWS, CANDIDATES)
    batch["sample_weight"] = np.array([1, 0, 2, 0, 0, 3], "float32")
    silent = batch["sample_weight"] == 0

    def run(query):
        rest = {k: v for k, v in batch.items() if k != "query"}
        candidate = rest.pop("candidate")
        return helpers.value_and_gradients(
            lambda **t: ops.in_batch_softmax_loss(**t, **rest),
            {"query": query, "candidate": candidate},
        )

    loss, gradients = run(batch["query"])
    np.testing.assert_array_equal(loss[silent], 0)
    np.testing.assert_array_equal(gradients["query"][silent], 0)
    changed = batch["query"].copy()
    changed[silent] *= -3
    other_loss, other_gradients = run(changed)
    np.testing.assert_array_equal(loss, other_loss)
    for name in gradients:
        assert_close(other_gradients[name], gradients[name], 1e-6, name)

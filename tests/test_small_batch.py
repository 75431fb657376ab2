"""Batches whose table of scores is kept: the same losses, by the oracle."""

import helpers
import numpy as np
import oracle
import pytest
from helpers import (
    ALONE,
    BACKEND,
    assert_close,
    batch_of,
    check_loss,
    to_numpy,
)

from inbatch_neg import InBatchNegativeSoftmax, ops
from inbatch_neg.backends import backend
from inbatch_neg.softmax import exact

TUNING = backend.tuning  # before the fixtures change it


@pytest.fixture(autouse=True)
def _tables_are_kept(_walk, monkeypatch):
    monkeypatch.setattr(backend, "tuning", TUNING)

    def fail(*args):
        raise AssertionError("walked over a small batch")

    monkeypatch.setattr(exact, "_over_chunks", fail)


@pytest.mark.parametrize("names", ALONE, ids="+".join)
@pytest.mark.parametrize("candidates", [11, 14])
def test_losses_and_gradients(names, candidates):
    batch = batch_of(11, candidates)
    batch = {n: batch[n] for n in ("query", "candidate", *names)}
    batch["temperature"] = np.float32(0.5)
    upstream = np.random.default_rng(1).normal(size=11)
    check_loss(batch, upstream, compiled=BACKEND == "jax")


def test_float64():
    batch = {k: batch_of(5, 9)[k] for k in ("query", "candidate")}
    batch = {name: array.astype("float64") for name, array in batch.items()}
    loss = to_numpy(ops.in_batch_softmax_loss(**batch, temperature=0.1))
    if BACKEND == "jax":  # has no float64 unless it is told to
        assert loss.dtype == "float32"
    else:
        assert loss.dtype == "float64"
        expected, _ = oracle.softmax_loss(**batch, temperature=0.1)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_without_negatives_loss_and_gradient_are_0():
    batch = {k: batch_of(5)[k] for k in ("query", "candidate")}
    value, gradients = helpers.value_and_gradients(
        lambda **tensors: ops.in_batch_softmax_loss(
            **tensors, candidate_ids=np.zeros(5, "int32"), temperature=0.05
        ),
        batch,
    )
    assert (value == 0).all() and not np.signbit(value).any()
    for gradient in gradients.values():
        assert (gradient == 0).all()


def test_large_scores():
    query = np.array([[1e4], [1.0], [-1e4]], "float32")
    candidate = np.array([[1.0], [2.0], [3.0]], "float32")
    expected, _ = oracle.softmax_loss(query, candidate)
    assert_close(ops.in_batch_softmax_loss(query, candidate), expected)


def test_the_layer_in_training_and_inference():
    batch = batch_of(11)
    expected, _ = oracle.softmax_loss(**batch, temperature=0.3)
    layer = InBatchNegativeSoftmax(temperature=0.3)
    for training in (True, False):
        assert_close(layer(**batch, training=training), expected)


@pytest.mark.parametrize("rows", [256, 257])
def test_up_to_which_size(rows):
    largest = 512 if BACKEND == "torch" else 256
    rows += largest - 256
    vectors = np.random.default_rng(0).normal(size=(rows, 2)).astype("float32")
    if rows <= largest:
        ops.in_batch_softmax_loss(vectors, vectors)
        return
    with pytest.raises(AssertionError, match="small batch"):
        ops.in_batch_softmax_loss(vectors, vectors)

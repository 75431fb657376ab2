"""The losses in chunks: their sizes, and shares too small for a float32."""

import keras
import numpy as np
import pytest

from inbatch_neg import ops
from inbatch_neg.softmax import chunks, log_q_and_masks
from tests import internals
from tests.helpers import BACKEND, batch_of, check_loss


@pytest.mark.parametrize("chunk", [1, 5, 6, 10, 11, 12])
def test_chunks_of_every_remainder(monkeypatch, chunk):
    internals.small_chunks(monkeypatch, chunk)
    check_loss(
        batch_of(11, 13),
        np.arange(11.0),
        compiled=chunk == 5 or BACKEND == "jax",
    )


@pytest.mark.parametrize("dimensions, rows", [(64, 256), (256, 512)])
def test_chunks_of_wide_vectors(dimensions, rows):
    vectors = keras.ops.zeros((8192, dimensions))
    chunk = chunks.Chunks(vectors, vectors, log_q_and_masks.Scoring())
    assert chunk.size == rows


@pytest.mark.parametrize("rows", [256, 257, 512, 513])
def test_up_to_which_size_the_scores_are_kept(monkeypatch, rows):
    internals.refuse_chunks(monkeypatch)
    vectors = np.random.default_rng(0).normal(size=(rows, 2)).astype("float32")
    if rows <= (512 if BACKEND == "torch" else 256):
        ops.in_batch_softmax_loss(vectors, vectors)
        return
    with pytest.raises(AssertionError, match="computed in chunks"):
        ops.in_batch_softmax_loss(vectors, vectors)


# exp(-loss) is the share of the positive: at 87.3 it leaves the normal
# float32 numbers, at 88.7 its inverse overflows, and at 104 it is 0.
LOSSES = [60.0, 80.0, 87.0, 87.5, 88.5, 89.0, 95.0, 102.5, 103.5, 105.0, 300.0]


@pytest.mark.parametrize(
    "loss, compiled",
    [(x, False) for x in LOSSES] + [(x, True) for x in (87.5, 88.5, 103.5)],
)
def test_shares_that_underflow(each_path, loss, compiled):
    # Scores of row 0: 0 of its own, `loss` of the negative.
    batch = {
        "query": np.ones((3, 1), "float32"),
        "candidate": np.array([[0.0], [loss], [loss - 1]], "float32"),
        "candidate_ids": np.array([1, 2, 2], "int32"),
    }
    check_loss(batch, np.array([1.0, 2.0, 3.0]), compiled, tolerance=3e-5)

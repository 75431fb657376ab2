"""Logarithms or NaN in the place of probabilities never pass in silence."""

import keras
import numpy as np
import pytest

from inbatch_neg import CrossBatchMemory, InBatchNegativeSoftmax, ops
from tests.helpers import assert_close, batch_of, compiled, to_numpy

NAME = "candidate_sampling_probability"
ROWS = 6


def vectors():
    return {name: batch_of(ROWS)[name] for name in ("query", "candidate")}


def shares():
    return np.linspace(0.05, 0.3, ROWS).astype("float32")


WRONG = {
    "logarithms": np.log(shares()),
    "nan": np.where(np.arange(ROWS) == 2, np.nan, shares()).astype("float32"),
    "one negative": np.where(np.arange(ROWS) == 4, -0.1, shares()).astype(
        "float32"
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_error_where_values_can_be_read(kind):
    given = {NAME: WRONG[kind]}
    memory = CrossBatchMemory(8)
    for call in (
        lambda: ops.in_batch_softmax_loss(**vectors(), **given),
        lambda: InBatchNegativeSoftmax()(**vectors(), **given),
        lambda: memory(vectors()["candidate"], **given),
    ):
        with pytest.raises(ValueError, match="not their logarithms") as caught:
            call()
        assert "of 6 values below 0 or NaN" in str(caught.value)
        assert f"keras.ops.exp({NAME})" in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"return_logits": True}])
@pytest.mark.parametrize("kind", WRONG)
def test_nan_in_a_compiled_step(kind, options, monkeypatch):
    from inbatch_neg.backends import backend

    # Where the backend has no compiled step, as on its GPU.
    monkeypatch.setattr(backend, "is_readable", lambda tensor: False)
    layer = InBatchNegativeSoftmax(**options)
    step = compiled(
        lambda query, candidate, q: layer(
            query, candidate, candidate_sampling_probability=q
        )
    )
    arrays = [*vectors().values(), WRONG[kind]]
    found = to_numpy(step(*map(keras.ops.convert_to_tensor, arrays)))
    assert np.isnan(found).any()
    if not options:
        # A NaN score is among the candidates of every row.
        assert np.isnan(found).all()


def test_counts_are_right_up_to_a_constant():
    expected = ops.in_batch_softmax_loss(**vectors(), **{NAME: shares()})
    found = ops.in_batch_softmax_loss(**vectors(), **{NAME: 1e4 * shares()})
    assert_close(to_numpy(found), to_numpy(expected))


def test_zero_counts_as_the_smallest_normal_float():
    zero, smallest = shares(), shares()
    zero[1], smallest[1] = 0.0, np.finfo("float32").tiny
    assert_close(
        to_numpy(ops.in_batch_softmax_loss(**vectors(), **{NAME: zero})),
        to_numpy(ops.in_batch_softmax_loss(**vectors(), **{NAME: smallest})),
    )

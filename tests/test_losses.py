"""`InBatchNegativeLoss`: reductions, logits, dtypes, errors."""

import keras
import numpy as np
import pytest

from inbatch_neg import InBatchNegativeLoss
from tests import oracle
from tests.helpers import to_numpy

PER_ROW = np.array([1.0, 2.0, 6.0], "float32")


@pytest.mark.parametrize(
    "reduction, expected",
    [("sum_over_batch_size", 3.0), ("sum", 9.0), ("none", PER_ROW)],
)
def test_reductions(reduction, expected):
    loss = InBatchNegativeLoss(reduction=reduction)
    np.testing.assert_allclose(to_numpy(loss(None, PER_ROW)), expected)
    weight = np.array([0.0, 1.0, 2.0], "float32")
    weighted = {"sum_over_batch_size": 14 / 3, "sum": 14.0}.get(
        reduction, PER_ROW * weight
    )
    got = to_numpy(loss(None, PER_ROW, sample_weight=weight))
    np.testing.assert_allclose(got, weighted, rtol=1e-6)


def test_loss_of_logits():
    logits = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    logits[1, 2:] = -1e30
    logits[2] = [300, 200, 0, 0, 0, 0]
    loss = InBatchNegativeLoss(reduction="none")
    np.testing.assert_allclose(
        to_numpy(loss(np.zeros(4), logits)),
        oracle.first_column_loss(logits),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_of_the_loss(dtype):
    loss = InBatchNegativeLoss(dtype=dtype)
    # What the losses of Keras give, which is not float64 on all backends.
    column = PER_ROW[:, None]
    expected = keras.losses.MeanAbsoluteError(dtype=dtype)(column, column)
    assert loss(None, PER_ROW).dtype == expected.dtype


def test_config_of_the_loss():
    loss = InBatchNegativeLoss(reduction="sum", name="mine")
    again = InBatchNegativeLoss.from_config(loss.get_config())
    assert again.get_config() == loss.get_config()
    assert (again.reduction, again.name) == ("sum", "mine")


@pytest.mark.parametrize("shape", [(), (4, 1), (4, 3, 2)])
def test_loss_of_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"`y_pred`.*Received"):
        InBatchNegativeLoss()(None, np.ones(shape, "float32"))


def test_loss_of_another_reduction():
    with pytest.raises(ValueError, match="reduction"):
        InBatchNegativeLoss(reduction="median")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16"])
@pytest.mark.parametrize("by", ["floatx", "dtype"])
def test_the_sum_has_32_bits(by, dtype):
    if by == "floatx":
        keras.config.set_floatx(dtype.removeprefix("mixed_"))
    try:
        loss = InBatchNegativeLoss(dtype=dtype if by == "dtype" else None)
        found = loss(None, np.full(8192, 9.0, "float32"))
        again = InBatchNegativeLoss.from_config(loss.get_config())
    finally:
        keras.config.set_floatx("float32")
    assert float(found) == 9.0
    assert loss.dtype == again.dtype == "float32"
    assert InBatchNegativeLoss(dtype="float64").dtype == "float64"


def test_scores_are_no_losses():
    """The product of two towers, (B,), would fall without an end."""
    loss = InBatchNegativeLoss(reduction="none")
    with pytest.raises(ValueError, match="`InBatchNegativeSoftmax`.*-0.7"):
        loss(None, np.array([0.2, -0.7, 0.5], "float32"))
    # A loss of 0 may be rounded, and a weight may be large.
    for good in ([-1e-6, 2.0], [-0.1, 1e6], [np.nan, 1.0], [np.inf, 0.0], []):
        found = to_numpy(loss(None, np.array(good, "float32")))
        np.testing.assert_array_equal(found, np.array(good, "float32"))


@pytest.mark.backends("torch")
def test_loss_in_a_transform_of_torch():
    import torch

    loss = InBatchNegativeLoss()
    gradient = torch.func.grad(lambda x: loss(None, x * x))(torch.ones(4))
    assert gradient.tolist() == [0.5] * 4

"""The loss of a model that ends in `InBatchNegativeSoftmax`."""

import keras

from inbatch_neg import keras_private
from inbatch_neg.backends import backend
from inbatch_neg.softmax.log_q_and_masks import (
    at_least_float32,
    cross_entropy_with_first,
)
from inbatch_neg.types import Tensor


@keras.saving.register_keras_serializable(package="inbatch_neg")
class InBatchNegativeLoss(keras.losses.Loss):
    """Reduces the output of `InBatchNegativeSoftmax` to a training loss.

    Losses (B,) are only reduced. For logits (B, 1 + K) with the positive in
    column 0, the loss is the softmax cross-entropy with that column:

    ```
    loss_i = logsumexp(logits_i) - logits_i[0]
    ```

    `y_true` is ignored and may be missing, so that a dataset needs no labels.
    The reduction is Keras' own, and so correct under a distribution strategy.

    Args:
        reduction: As in every Keras loss. Defaults to
            `"sum_over_batch_size"`, the mean over the rows.
        name: Name of the loss.
        dtype: Dtype of the reduction; float32 in place of half precision.
            (The mean over the steps that Keras logs stays in half precision.)
            Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: in the call, if the output is neither (B,) nor (B, 1 + K)
            with K of 1 or more; outside of a compiled step also if a loss is
            below 0, as scores may be.

    Example:
    >>> import numpy as np
    >>> loss = InBatchNegativeLoss()
    >>> round(float(loss(None, np.array([1.0, 2.0, 3.0]))), 4)
    2.0
    >>> round(float(loss(None, np.array([[0.0, 0.0], [5.0, 5.0]]))), 4)
    0.6931

    Differs from: `tfrs.tasks.Retrieval`, which sums over the batch by
    default, so that the right learning rate depends on the batch size. This
    loss averages.
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "in_batch_negative_loss",
        dtype: str | None = None,
    ) -> None:
        super().__init__(
            name=name,
            reduction=reduction,
            dtype=at_least_float32(dtype),
        )

    def __call__(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None
    ) -> Tensor:
        """Returns the reduced, weighted loss; `y_true` may be None."""
        # Keras casts `y_true` to float, which fails for None and strings. It
        # is ignored here, so the predictions take its place.
        return super().__call__(y_pred, y_pred, sample_weight)

    @keras_private.restore_model_state
    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns the (B,) losses before the reduction.

        Args:
            y_true: Ignored.
            y_pred: (B,) losses or (B, 1 + K) logits, positive first.
        """
        shape = y_pred.shape
        received = f"y_pred.shape={tuple(shape)}"
        if len(shape) == 1:
            least = _least(y_pred)
            if not least < 0:
                return y_pred
            received = f"losses below 0, such as {least:.3g}"
        elif len(shape) == 2 and shape[1] != 1:
            return cross_entropy_with_first(y_pred)
        raise ValueError(
            "`y_pred` must be the output of `InBatchNegativeSoftmax`: "
            "losses of shape (rows,), or logits of shape (rows, 1 + "
            "negatives) with the positive in column 0. "
            f"Received: {received}"
        )


def _least(losses: Tensor) -> float:
    """Returns the least loss; 0 in a trace, or if rounding explains it."""
    if not backend.is_readable(losses):
        return 0.0
    values = keras.ops.convert_to_numpy(losses)
    least = float(values.min(initial=0))
    return least if least < -1e-3 * abs(values).max(initial=1) else 0.0

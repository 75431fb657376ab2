"""The loss at the end of a model that ends in `InBatchNegativeSoftmax`."""

import keras

from inbatch_neg.backends import Tensor, backend
from inbatch_neg.softmax.scoring import cross_entropy_with_first


@keras.saving.register_keras_serializable(package="inbatch_neg")
class InBatchNegativeLoss(keras.losses.Loss):
    """Reduces the output of `InBatchNegativeSoftmax` to a training loss.

    For per-row losses (B,) it only reduces; for logits (B, 1 + K) with the
    positive in column 0 it takes the softmax cross-entropy with that column:

    ```
    loss_i = logsumexp(logits_i) - logits_i[0]
    ```

    `y_true` is ignored and may be missing, so a dataset of positive pairs
    alone trains. The reduction is Keras' own, so it is also right under a
    distribution strategy.

    Args:
        reduction: As in every Keras loss. Defaults to
            `"sum_over_batch_size"`, the mean over the rows.
        name: Name of the loss.
        dtype: Dtype of the reduction. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: in the call, if the output is neither (B,) nor (B, 1 + K)
            with K of 1 or more.

    Example:
    >>> import numpy as np
    >>> loss = InBatchNegativeLoss()
    >>> round(float(loss(None, np.array([1.0, 2.0, 3.0]))), 4)
    2.0
    >>> round(float(loss(None, np.array([[0.0, 0.0], [5.0, 5.0]]))), 4)
    0.6931

    Differs from: `tfrs.tasks.Retrieval` sums over the batch by default, so
    its learning rate depends on the batch size; this one averages.
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "in_batch_negative_loss",
        dtype: str | None = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def __call__(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None
    ) -> Tensor:
        """Returns the reduced, weighted loss; `y_true` may be None."""
        # Keras casts `y_true` to float, which fails on None and on strings.
        # It is ignored here, so the predictions stand in for it.
        return super().__call__(y_pred, y_pred, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns the (B,) losses before the reduction.

        Args:
            y_true: Ignored.
            y_pred: (B,) losses or (B, 1 + K) logits, positive first.
        """
        shape = y_pred.shape
        if len(shape) == 1:
            return y_pred
        if len(shape) == 2 and shape[1] != 1:
            return cross_entropy_with_first(y_pred)
        with backend.restore_model_state():
            raise ValueError(
                "`y_pred` must be the output of `InBatchNegativeSoftmax`: "
                "losses of shape (rows,), or logits of shape (rows, 1 + "
                "negatives) with the positive in column 0. Received: "
                f"y_pred.shape={tuple(shape)}"
            )

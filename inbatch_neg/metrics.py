"""In-batch metrics, for models that return logits."""

from typing import Any

import keras
from keras import ops

from inbatch_neg import keras_private
from inbatch_neg.arguments import check_integer
from inbatch_neg.backends import backend
from inbatch_neg.softmax.log_q_and_masks import at_least_float32
from inbatch_neg.types import Tensor


class _InBatchMetric(keras.metrics.Mean):
    """The mean of a figure of each row's logits; `y_true` is ignored."""

    def __init__(self, name: str, dtype: str | None) -> None:
        super().__init__(name=name, dtype=at_least_float32(dtype))

    @keras_private.restore_model_state
    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None
    ) -> None:
        """Adds a batch to the mean.

        Args:
            y_true: Ignored, may be None.
            y_pred: (B, 1 + K) logits, the positive in column 0.
            sample_weight: (B,) weights of the rows, or None.
        """
        y_pred = ops.convert_to_tensor(y_pred)
        shape = tuple(y_pred.shape)
        if len(shape) != 2 or shape[1] == 1:
            raise ValueError(
                "`y_pred` must be logits (rows, 1 + negatives) with the "
                "positive in column 0: construct the layer with "
                "`InBatchNegativeSoftmax(return_logits=True)`. Received: "
                f"y_pred.shape={shape}"
            )
        positive = y_pred[:, :1]
        # Ties and NaN count as ahead of the positive.
        below = ops.less(y_pred[:, 1:], positive)
        ahead = ops.sum(ops.cast(ops.logical_not(below), "int32"), axis=1)
        with backend.after([y_pred]):
            super().update_state(self._of_ranks(ahead), sample_weight)

    def _of_ranks(self, ahead: Tensor) -> Tensor:
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="inbatch_neg")
class InBatchTopKAccuracy(_InBatchMetric):
    """Share of rows whose positive is among the k best logits.

    ```
    value = mean over the rows of (1 + #{negatives >= positive} <= k)
    ```

    For a model that ends in `InBatchNegativeSoftmax(return_logits=True)`.
    Shows whether the model learns at all. Needs no labels.

    Do not choose a model, an epoch or a batch size by it. The negatives are a
    few popular items, so the value rises when the batch shrinks, and a model
    with 0.9 here may find one target in three among the best 100 of the whole
    catalogue. Use `RetrievalEvaluation` for that.

    Args:
        k: Length of the list, an integer of 1 or more. Defaults to 1.
        name: Defaults to `"in_batch_top_{k}_accuracy"`.
        dtype: Dtype of the mean; float32 in place of half precision. Defaults
            to `keras.config.floatx()`.

    Raises:
        ValueError, TypeError: for another `k`; in the call, if `y_pred` does
            not hold logits.

    Example:
    >>> import keras
    >>> import numpy as np
    >>> from inbatch_neg import InBatchNegativeLoss, InBatchNegativeSoftmax
    >>> user, item = keras.Input((8,)), keras.Input((8,))
    >>> logits = InBatchNegativeSoftmax(return_logits=True)(user, item)
    >>> model = keras.Model([user, item], logits)
    >>> metric = InBatchTopKAccuracy(k=1)
    >>> model.compile("sgd", InBatchNegativeLoss(), metrics=[metric])
    >>> float(metric(None, np.array([[2.0, 1.0], [1.0, 1.0]])))  # a tie
    0.5

    Differs from: `tfrs.metrics.FactorizedTopK`, which ranks a catalogue; and
    `keras.metrics.TopKCategoricalAccuracy`, which needs labels and counts a
    model that gives every item the same score as perfect.
    """

    def __init__(
        self, k: int = 1, name: str | None = None, dtype: str | None = None
    ) -> None:
        self.k = check_integer("k", k, minimum=1)
        super().__init__(
            name=name or f"in_batch_top_{self.k}_accuracy", dtype=dtype
        )

    def _of_ranks(self, ahead: Tensor) -> Tensor:
        return ops.cast(ops.less(ahead, self.k), self.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "k": self.k}


@keras.saving.register_keras_serializable(package="inbatch_neg")
class InBatchMeanReciprocalRank(_InBatchMetric):
    """Mean reciprocal rank of the positive among the logits of its row.

    ```
    value = mean over the rows of 1 / (1 + #{negatives >= positive})
    ```

    For a model that ends in `InBatchNegativeSoftmax(return_logits=True)`.
    Shows whether the model learns at all. Needs no labels.

    Do not choose a model, an epoch or a batch size by it, for the reasons
    that `InBatchTopKAccuracy` gives. Use `RetrievalEvaluation`.

    Args:
        name: Defaults to `"in_batch_mean_reciprocal_rank"`.
        dtype: Dtype of the mean; float32 in place of half precision. Defaults
            to `keras.config.floatx()`.

    Raises:
        ValueError: in the call, if `y_pred` does not hold logits.

    Example:
    >>> import keras
    >>> import numpy as np
    >>> from inbatch_neg import InBatchNegativeLoss, InBatchNegativeSoftmax
    >>> user, item = keras.Input((8,)), keras.Input((8,))
    >>> logits = InBatchNegativeSoftmax(return_logits=True)(user, item)
    >>> model = keras.Model([user, item], logits)
    >>> metric = InBatchMeanReciprocalRank()
    >>> model.compile("sgd", InBatchNegativeLoss(), metrics=[metric])
    >>> float(metric(None, np.array([[2.0, 1.0], [1.0, 1.0]])))  # a tie
    0.75

    Differs from: the figure `mrr` of `RetrievalEvaluation`, which ranks the
    whole catalogue.
    """

    def __init__(
        self,
        name: str = "in_batch_mean_reciprocal_rank",
        dtype: str | None = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)

    def _of_ranks(self, ahead: Tensor) -> Tensor:
        return 1.0 / (1.0 + ops.cast(ahead, self.dtype))

"""How often an id occurs, estimated from the stream of batches itself."""

import functools
import math
from typing import Any

import keras
from keras import ops

from inbatch_neg import batch_checks, keras_private
from inbatch_neg.arguments import (
    check_integer,
    check_positive_number,
    to_tensor,
)
from inbatch_neg.backends import backend
from inbatch_neg.layers import global_batch, hashing
from inbatch_neg.replicas.current import replicas
from inbatch_neg.softmax.batch import Batch
from inbatch_neg.types import Size, Tensor

# Keeps log1p finite for a learning rate of 1; the weight of the past is then 0.
_BELOW_ONE = 1.0 - 1e-16


@keras.saving.register_keras_serializable(package="inbatch_neg")
class StreamingSamplingProbability(keras.layers.Layer):
    """Estimates the probability that a row of the stream holds an id.

    ```
    interval[b] <- (1 - w) interval[b] + w (clock - last[b]) / n
    last[b]     <- clock
    probability  = 1 / interval[b],    b = hash(id),  w = 1 - (1 - a)^n
    ```

    where `clock` counts the rows so far, n is how often bucket b occurs in
    this batch, and a is the learning rate. The layer provides the
    `candidate_sampling_probability` of `InBatchNegativeSoftmax` without a
    vocabulary or a pass over the data, and follows the stream when it
    changes. It learns in training calls only; `evaluate` and `predict` do not
    change the estimates. With several replicas, each learns from the rows of
    all of them.

    Yi et al. count time in batches: an id that occurs in every batch has the
    probability 1, however often it occurs in each. Here time is counted in
    rows, and the n occurrences in a batch share the rows since the last batch
    with the id. So the estimate is a probability per row, can be above 1 / B,
    and does not depend on the batch size. Until an id has occurred about
    1 / a times, w is larger and gives all its occurrences the same weight: the
    estimate starts as an exact count, not as a guess.

    Args:
        num_buckets: Integer of 1 or more. Ids that share a bucket count as
            one. Use at least as many buckets as there are ids.
        learning_rate: Number in (0, 1], the weight of one occurrence. A
            smaller one is more precise, a larger one follows changes faster:
            the relative error of a frequent id settles at the square root of
            half the learning rate. Defaults to 0.01, an error of 7 %.
        num_hashes: Integer of 1 or more, the number of hashes, each with its
            own buckets. The longest of their intervals counts, since its
            bucket holds the fewest other ids. Defaults to 1.

    Raises:
        ValueError, TypeError: for an argument outside of the above; in the
            call, for ids that are not a tensor (B,) of integers.

    Example:
    >>> import numpy as np
    >>> estimate = StreamingSamplingProbability(num_buckets=1000)
    >>> for _ in range(5):
    ...     probability = estimate(np.array([7, 7, 7, 8]), training=True)
    >>> print(np.asarray(probability).round(2))
    [0.75 0.75 0.75 0.25]
    >>> print(np.asarray(estimate(np.array([9]))).round(2))  # never seen
    [0.05]

    References: Yi et al. 2019, "Sampling-bias-corrected neural modeling for
    large corpus item recommendations" (RecSys, doi 10.1145/3298689.3346996),
    Algorithm 2 and Section 3.2.

    Differs from: `tfrs.tasks.Retrieval` and the `keras_rs` layers, which take
    the probabilities as an input and do not estimate them.
    """

    def __init__(
        self,
        num_buckets: int,
        *,
        learning_rate: float = 0.01,
        num_hashes: int = 1,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.num_buckets = check_integer("num_buckets", num_buckets, minimum=1)
        self.num_hashes = check_integer("num_hashes", num_hashes, minimum=1)
        if self.num_buckets * self.num_hashes >= 2**31:
            raise ValueError(
                "`num_buckets` times `num_hashes` must be below 2^31. "
                f"Received: num_buckets={num_buckets!r}, "
                f"num_hashes={num_hashes!r}"
            )
        self.learning_rate = check_positive_number(
            "learning_rate", learning_rate
        )
        if self.learning_rate > 1.0:
            raise ValueError(
                "`learning_rate` must be in (0, 1]. Received: "
                f"learning_rate={learning_rate!r}"
            )
        self._create_buckets()
        keras_private.set_built(self, StreamingSamplingProbability)

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: the buckets do not depend on the input."""
        self.built = True

    def _create_buckets(self) -> None:
        """Creates the buckets, all of them empty."""
        # Every replica learns from the global batch, so all are equal.
        add = functools.partial(global_batch.add_state, self)
        size = (self.num_hashes * self.num_buckets,)
        time = backend.widest_integer()
        self._clock = add("clock", (), time)
        self._last = add("last", size, time)
        self._interval = add("interval", size, "float32")
        # The sum of the weights of all occurrences: from 0, never seen, to 1.
        self._weight = add("weight", size, "float32")

    @keras_private.restore_model_state
    def call(
        self, candidate_ids: Tensor, training: bool | None = None
    ) -> Tensor:
        """Returns the probabilities of a batch of ids, and may learn from it.

        Args:
            candidate_ids: (B,) integers (strings too on TensorFlow). On JAX
                64-bit ids are cut to 32 bits before the layer sees them.
            training: Whether to learn from the ids before estimating. `fit`
                sets it; a subclassed model must take `training` and pass it
                on.

        Returns:
            (B,) float32 probabilities in (0, 1], without gradient. An id that
            was never seen gets 1 / (rows so far + 1), as if it came once, in
            the next row. So before any training all ids get 1.
        """
        if candidate_ids is None:
            raise ValueError(
                "`candidate_ids` must be passed: there is nothing else to "
                "count. Received: candidate_ids=None"
            )
        if keras_private.in_symbolic_call():
            if not replicas.averages_shapes_of_symbolic_calls():
                _check_ids(candidate_ids)
            return ops.zeros(ops.shape(candidate_ids), "float32")
        ids = to_tensor("candidate_ids", candidate_ids)
        if training:
            same = global_batch.check_same_shapes(Batch(candidate_ids=ids))
            ids = same.candidate_ids
        _check_ids(ids)
        return self._estimate(ids, training)

    def _estimate(self, ids: Tensor, training: bool | None) -> Tensor:
        """Returns the probabilities of checked ids, and may learn from them."""
        places = hashing.buckets(ids, self.num_buckets, self.num_hashes)
        if self.num_hashes > 1:
            first = ops.arange(self.num_hashes, dtype="int32")
            places = places + first[:, None] * self.num_buckets
        if training:
            by_row = global_batch.gather(ops.transpose(places))
            with backend.after([ids]):
                self._learn(ops.reshape(by_row, (-1,)), ops.shape(by_row)[0])
        seen = ops.take(self._weight, places) > 0.0
        rows = _rows(self._clock)
        interval = ops.where(seen, ops.take(self._interval, places), rows + 1.0)
        # Ids that share a bucket make an interval too short, never too long.
        interval = ops.max(interval, axis=0)
        return 1.0 / ops.maximum(interval, 1.0)

    def _learn(self, places: Tensor, rows: Size) -> None:
        """Updates the buckets at `places`, (num_hashes * B,) with repeats."""
        self._clock.assign_add(ops.cast(rows, self._clock.dtype))
        counts = ops.segment_sum(
            ops.ones_like(places, dtype="float32"),
            places,
            num_segments=self.num_hashes * self.num_buckets,
        )
        count = ops.take(counts, places)
        gap = _rows(self._clock - ops.take(self._last, places)) / count
        # 1 - (1 - a)^n, the weight of n occurrences in an average in which
        # each has the weight a. So repeats do not bias the mean interval: a
        # long gap before one row and a short gap before many rows have the
        # weight of their rows.
        keep = math.log1p(-min(self.learning_rate, _BELOW_ONE))
        weight = -ops.expm1(count * keep)
        before = ops.take(self._weight, places)
        after = before + weight * (1.0 - before)
        interval = ops.take(self._interval, places)
        # Divided by the weights so far, as in Adam: the first interval of a
        # bucket, which starts with the stream, replaces the initial 0.
        interval = interval + weight / after * (gap - interval)
        # A bucket that occurs several times gets the same values each time,
        # so it does not matter which of them is written last.
        where = places[:, None]
        time = ops.broadcast_to(self._clock, ops.shape(places))
        for variable, values in (
            (self._last, time),
            (self._interval, interval),
            (self._weight, after),
        ):
            variable.assign(ops.scatter_update(variable.value, where, values))

    def compute_output_spec(
        self, candidate_ids: Tensor, training: bool | None = None
    ) -> keras.KerasTensor:
        """Returns the symbolic output."""
        _check_ids(candidate_ids)
        return keras.KerasTensor((candidate_ids.shape[0],), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "num_buckets": self.num_buckets,
            "learning_rate": self.learning_rate,
            "num_hashes": self.num_hashes,
        }


def _check_ids(candidate_ids: Tensor) -> None:
    batch = Batch(candidate_ids=candidate_ids)
    batch_checks.check_field(batch, "candidate_ids")


def _rows(times: Tensor) -> Tensor:
    """Returns the clock, or differences of it, as float32 numbers of rows.

    On JAX without 64-bit integers, the clock wraps after 2^31 rows and is
    negative up to 2^32. It is read as unsigned here, so only an interval of
    more than 2^32 rows is taken for a shorter one.
    """
    rows = ops.cast(times, "float32")
    return ops.where(rows < 0.0, rows + 2.0**32, rows)

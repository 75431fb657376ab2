"""Candidates of earlier batches as extra negatives for the current one."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from inbatch_neg import batch_checks, keras_private
from inbatch_neg.arguments import check_integer
from inbatch_neg.backends import backend
from inbatch_neg.layers import global_batch
from inbatch_neg.replicas.current import replicas
from inbatch_neg.softmax.batch import Batch
from inbatch_neg.softmax.log_q_and_masks import constant
from inbatch_neg.types import Size, Tensor

Shape = Sequence[int | None]


@keras.saving.register_keras_serializable(package="inbatch_neg")
class CrossBatchMemory(keras.layers.Layer):
    """Appends the last `capacity` candidates to those of the batch.

    ```
    candidate = [this batch (B, D); stored (capacity, D)]
    stored   <- the first `capacity` rows of it, in training
    ```

    This gives more negatives than the batch has, and costs only their scores:
    the stored rows are the tower's outputs for earlier batches, and get no
    gradient. Try it where the batch cannot be larger and the tower changes
    slowly. It goes between the candidate tower and the softmax:
    `softmax(query, **memory(candidate, candidate_ids=ids))`.

    With the ids, the softmax masks stale copies of a row's own item. Without
    them, these copies count as negatives.

    With several replicas, the memory is the same on each and holds the global
    batches. Each replica appends its own share, `capacity` divided by the
    number of replicas. `InBatchNegativeSoftmax(cross_replica=True)` joins the
    shares, so that every row is stored and counted once.

    Args:
        capacity: Integer, the number of rows to store: at least the number of
            rows of a batch (of the global batch, with replicas), and a
            multiple of the number of replicas.
        warmup_steps: Integer of 0 or more. The stored rows are masked for
            that many training steps, while the tower still changes fast.
            Defaults to 0.

    The first call makes the slots, since their width is that of the candidates.
    To load a `state_dict` of PyTorch before it, make them by
    `memory.build((None, D), candidate_ids_shape=(None,))`.

    Raises:
        ValueError, TypeError: for an argument outside of the above; in the
            call, for wrong tensors, and for tensors that are passed in one
            call and not in another.

    Example:
    >>> import numpy as np
    >>> memory = CrossBatchMemory(capacity=4)
    >>> batch = np.eye(2, dtype="float32")
    >>> for ids in np.array([[1, 2], [3, 4]]):
    ...     kept = memory(batch, candidate_ids=ids, training=True)
    >>> np.asarray(kept["candidate_ids"]).tolist()
    [3, 4, 1, 2, 0, 0]
    >>> np.asarray(kept["candidate_mask"]).tolist()  # two slots are empty
    [True, True, True, True, False, False]

    References: Wang et al. 2020, "Cross-batch memory for embedding learning"
    (arXiv 1912.06798); Wang et al. 2021, "Cross-batch negative sampling for
    training two-tower recommenders" (arXiv 2110.15154).

    Differs from: the queue of MoCo, which starts with random vectors and uses
    them as negatives. Here empty slots are masked.
    """

    def __init__(
        self, capacity: int, *, warmup_steps: int = 0, **kwargs: Any
    ) -> None:
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.capacity = check_integer("capacity", capacity, minimum=1)
        self.warmup_steps = check_integer(
            "warmup_steps", warmup_steps, minimum=0
        )

    @keras_private.restore_model_state
    def build(
        self,
        candidate_shape: Shape,
        candidate_ids_shape: Shape | None = None,
        candidate_sampling_probability_shape: Shape | None = None,
    ) -> None:
        """Creates the slots, all of them empty."""
        _check_shape(candidate_shape)
        self._filled = global_batch.add_state(self, "filled", (), "int32")
        self._steps = global_batch.add_state(self, "steps", (), "int32")
        slots = {"candidate": (candidate_shape[1:], self.variable_dtype)}
        if candidate_ids_shape is not None:
            slots["candidate_ids"] = ((), backend.widest_integer())
        if candidate_sampling_probability_shape is not None:
            slots["candidate_sampling_probability"] = ((), "float32")
        self._stored = {
            name: global_batch.add_state(
                self,
                name,
                (self.capacity, *rest),
                dtype,
                # Empty slots are masked, but their logarithm must be finite.
                "ones" if "probability" in name else "zeros",
            )
            for name, (rest, dtype) in slots.items()
        }
        self.built = True

    @keras_private.restore_model_state
    def call(
        self,
        candidate: Tensor,
        candidate_ids: Tensor = None,
        candidate_sampling_probability: Tensor = None,
        candidate_mask: Tensor = None,
        training: bool | None = None,
    ) -> dict[str, Tensor]:
        """Returns the candidates of the batch and of the memory.

        Args:
            candidate: (B, D) floats, B at most `capacity`. B may change.
            candidate_ids: (B,) integers (strings too on TensorFlow), in every
                call or in none.
            candidate_sampling_probability: (B,) floats, as the softmax takes
                them, in every call or in none.
            candidate_mask: (B,) bools. False: a negative neither in this batch
                nor later, as padding is.
            training: Whether to store the batch, after the stored rows have
                been returned. `fit` sets it; a subclassed model must take
                `training` and pass it on. Other calls return the stored rows
                too, so that losses are comparable, but store nothing.

        Returns:
            A dict of arguments of `InBatchNegativeSoftmax`, with the rows of
            the batch first, then those of the memory, newest batch first:
            C = B + capacity, or B + capacity / R with R replicas.
            `candidate`: (C, D), in the layer's variable dtype.
            `candidate_ids` and `candidate_sampling_probability`: (C,), if
            passed; ids as the widest integers of the backend, strings as
            their hashes. `candidate_mask`: (C,) bools, False for empty slots,
            for all slots during the warm-up, and where it was passed so.
        """
        batch = Batch(
            candidate=candidate,
            candidate_ids=candidate_ids,
            candidate_sampling_probability=candidate_sampling_probability,
            candidate_mask=candidate_mask,
        )
        if keras_private.in_symbolic_call():
            if not replicas.averages_shapes_of_symbolic_calls():
                self._check(batch)
            return self._outputs(ops.zeros, batch.candidates + self._share())
        batch = batch_checks.to_tensors(batch)
        if training:
            batch = global_batch.check_same_shapes(batch)
        self._check(batch)
        batch = batch._replace(candidate=self._fitting(batch.candidate))
        return self._with_memory(batch, training)

    def _with_memory(
        self, batch: Batch, training: bool | None
    ) -> dict[str, Tensor]:
        """Returns the candidates of a checked batch and of the memory."""
        own, result = {}, {}
        for name, stored in self._stored.items():
            tensor = getattr(batch, name)
            if name == "candidate_ids":
                tensor = backend.hash_strings(tensor)
            own[name] = ops.cast(tensor, stored.dtype)
            shard = global_batch.local_shard(ops.stop_gradient(stored))
            result[name] = ops.concatenate([own[name], shard])
        slots = ops.arange(self.capacity, dtype="int32")
        used = ops.logical_and(
            slots < self._filled,
            ops.convert_to_tensor(self._steps) >= self.warmup_steps,
        )
        mask = batch.candidate_mask
        if mask is None:
            mask = ops.ones((batch.candidates,), "bool")
        else:
            # Stored as NaN, which `InBatchNegativeSoftmax` clears where the
            # mask is False.
            own["candidate"] = ops.where(
                mask[:, None], own["candidate"], float("nan")
            )
        shard = result["candidate"][batch.candidates :]
        used = global_batch.local_shard(used) & ~ops.isnan(shard[:, 0])
        result["candidate_mask"] = ops.concatenate([mask, used])
        if training:
            with backend.after(batch):
                self._store({k: global_batch.gather(own[k]) for k in own})
        return result

    def _store(self, batch: dict[str, Tensor]) -> None:
        for name, stored in self._stored.items():
            newest = ops.slice(
                ops.concatenate([batch[name], stored]),
                [0] * len(stored.shape),
                stored.shape,
            )
            stored.assign(ops.stop_gradient(newest))
        rows = ops.cast(ops.shape(batch["candidate"])[0], "int32")
        filled = self._filled + rows
        capacity = constant(self.capacity, "int32")
        self._filled.assign(ops.minimum(filled, capacity))
        # Does not grow after the warm-up, so it cannot overflow.
        steps = ops.convert_to_tensor(self._steps) + 1
        warmup_steps = constant(self.warmup_steps, "int32")
        self._steps.assign(ops.minimum(steps, warmup_steps))

    def _check(self, batch: Batch) -> None:
        _check_shape(batch.candidate.shape)
        batch_checks.check_vectors(batch.candidate, batch.candidate)
        batch_checks.check_field(batch, "candidate_mask")
        for name in ("candidate_ids", "candidate_sampling_probability"):
            batch_checks.check_field(batch, name)
            value = getattr(batch, name)
            if (value is None) == (name in self._stored):
                first, now = ("with", "without")[:: 1 if value is None else -1]
                raise ValueError(
                    f"`{name}` must be passed in every call or in none: the "
                    f"memory of `{self.name}` was built {first} it. Received: "
                    f"a call {now} it"
                )

    def _fitting(self, candidate: Tensor) -> Tensor:
        """Returns the candidates; refuses more than the memory can hold."""
        rule = (
            "`capacity` must be at least the number of rows of a batch (with "
            "replicas, of the global one): make it a multiple of that number. "
            f"Received: capacity={self.capacity}"
        )
        share = self._share()
        rows = candidate.shape[0]
        if isinstance(rows, int) and rows > share:
            raise ValueError(
                f"{rule}, candidate.shape={tuple(candidate.shape)}, "
                f"replicas: {self.capacity // share}"
            )
        return backend.ensure_at_most_rows(candidate, share, rule)

    def _share(self) -> int:
        """Returns how many stored rows each replica appends."""
        count = replicas.count()
        if self.capacity % count:
            raise ValueError(
                "`capacity` must be a multiple of the number of replicas. "
                f"Received: capacity={self.capacity}, replicas: {count}"
            )
        return self.capacity // count

    def _outputs(
        self, make: Callable[..., Tensor], rows: Size
    ) -> dict[str, Tensor]:
        """Returns every output as `make(shape, dtype=dtype)`, with C rows."""
        outputs = {
            name: make((rows, *stored.shape[1:]), dtype=stored.dtype)
            for name, stored in self._stored.items()
        }
        return {**outputs, "candidate_mask": make((rows,), dtype="bool")}

    def compute_output_spec(
        self, *args: Any, **kwargs: Any
    ) -> dict[str, keras.KerasTensor]:
        """Returns the dict of symbolic outputs."""
        batch = batch_checks.bind(self.call, args, kwargs)
        self._check(batch)
        rows = batch.candidate.shape[0]
        if rows is not None:
            with keras.SymbolicScope():  # so that a strategy's replicas count
                self._fitting(batch.candidate)
                rows += self._share()
        return self._outputs(keras.KerasTensor, rows)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "capacity": self.capacity,
            "warmup_steps": self.warmup_steps,
        }


def _check_shape(shape: Shape) -> None:
    if len(shape) == 2 and shape[1] is not None:
        return
    tuples = ""
    if len(shape) == 3:
        tuples = " Fix for n-tuples: store the positives, `candidate[:, 0]`."
    raise ValueError(
        "`candidate` must have shape (rows, dimensions), with known "
        f"dimensions.{tuples} Received: candidate.shape={tuple(shape)}"
    )

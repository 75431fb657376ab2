"""Candidates of earlier batches, as further negatives for this one."""

import keras
from keras import ops

from inbatch_neg import arguments, engines, replicas

_TENSORS = ("candidate", "candidate_ids", "candidate_sampling_probability")


@keras.saving.register_keras_serializable(package="inbatch_neg")
class CrossBatchMemory(keras.layers.Layer):
    """Appends the last `capacity` candidates to those of the batch.

    ```
    candidate = [this batch (B, D); stored (capacity, D)]
    stored   <- the first `capacity` rows of it, in training
    ```

    More negatives than the batch has, at the cost of their scores alone: the
    stored rows are what the tower gave them when their batch came, and get no
    gradient. Worth it where a batch cannot be larger, and once the tower
    changes slowly. Goes between the candidate tower and the softmax:
    `softmax(query, **memory(candidate, candidate_ids=ids))`.

    Give the ids, and the softmax leaves out the stale copies of a row's own
    item. Without them they stay in, as negatives of their own item.

    With several replicas the memory is the same on each and holds the global
    batches. Each replica appends its own share of it, `capacity` divided by
    the number of replicas: `InBatchNegativeSoftmax(cross_replica=True)` joins
    these again, so that every row is stored and counted once.

    Args:
        capacity: Integer, the rows to store: at least those of a batch, the
            global one if there are replicas, and a multiple of their number.
        warmup_steps: Integer of 0 or more. For that many training steps the
            stored rows are masked, while the tower still changes fast.
            Defaults to 0.

    Raises:
        ValueError, TypeError: for an argument outside of the above, and in
            the call for tensors that do not fit, or that are given in one
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

    Differs from: the queue of MoCo, which starts as random vectors and serves
    these as negatives; here empty slots take no part.
    """

    def __init__(self, capacity, *, warmup_steps=0, **kwargs):
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.capacity = arguments.integer("capacity", capacity, minimum=1)
        self.warmup_steps = arguments.integer(
            "warmup_steps", warmup_steps, minimum=0
        )

    def build(
        self,
        candidate_shape,
        candidate_ids_shape=None,
        candidate_sampling_probability_shape=None,
    ):
        """Creates the slots, all of them empty."""
        if len(candidate_shape) != 2 or candidate_shape[1] is None:
            raise ValueError(
                "`candidate` must have shape (rows, dimensions), with known "
                "dimensions. Received: "
                f"candidate.shape={tuple(candidate_shape)}"
            )
        options = {
            "trainable": False,
            "autocast": False,
            "aggregation": "only_first_replica",
        }
        for name in ("filled", "steps"):
            count = self.add_weight(
                name=name,
                shape=(),
                dtype="int32",
                initializer="zeros",
                **options,
            )
            setattr(self, f"_{name}", count)
        slots = {"candidate": (candidate_shape[1:], self.variable_dtype)}
        if candidate_ids_shape is not None:
            slots["candidate_ids"] = ((), engines.widest_integer())
        if candidate_sampling_probability_shape is not None:
            slots["candidate_sampling_probability"] = ((), "float32")
        self._stored = {
            name: self.add_weight(
                name=name,
                shape=(self.capacity, *rest),
                dtype=dtype,
                # Empty slots are masked, but a probability is never 0.
                initializer="ones" if "probability" in name else "zeros",
                **options,
            )
            for name, (rest, dtype) in slots.items()
        }
        self.built = True

    def call(
        self,
        candidate,
        candidate_ids=None,
        candidate_sampling_probability=None,
        training=None,
    ):
        """Returns the candidates of the batch and of the memory.

        Args:
            candidate: (B, D) floats, B at most `capacity`. B may change.
            candidate_ids: (B,) integers (strings too on TensorFlow), in every
                call or in none.
            candidate_sampling_probability: (B,) floats in (0, 1], in every
                call or in none. The softmax says what becomes of others.
            training: Whether the batch enters the memory, after having met
                it. `fit` says so by itself; a subclassed model must take
                `training` and pass it on. Other calls see the stored rows,
                so that losses compare, and store nothing.

        Returns:
            A dict of arguments of `InBatchNegativeSoftmax`, with the C = B +
            capacity rows of the batch, then of the memory, newest batch
            first; with R replicas, of capacity / R rows of the memory.
            `candidate`: (C, D), in the layer's variable dtype.
            `candidate_ids` and `candidate_sampling_probability`: (C,), where
            given; ids as the widest integers there are, strings as their
            hashes. `candidate_mask`: (C,) bools, False where a slot is empty,
            and for all slots during the warm-up.
        """
        given = (candidate, candidate_ids, candidate_sampling_probability)
        given = dict(zip(_TENSORS, given))
        if engines.in_symbolic_call():
            if not replicas.shown_a_mean():
                self._check(given)
            return self._shapes_alone(given)
        given = arguments.to_tensors(**given)
        if training:
            # Before a replica may refuse its own rows, and the others wait.
            given = replicas.require_alike(given)
        self._check(given)
        given["candidate"] = self._fitting(given["candidate"])
        batch, result = {}, {}
        for name, stored in self._stored.items():
            own = given[name]
            if name == "candidate_ids":
                own = engines.integer_ids(own)
            batch[name] = ops.cast(own, stored.dtype)
            share = replicas.own_share(ops.stop_gradient(stored))
            result[name] = ops.concatenate([batch[name], share])
        slots = ops.arange(self.capacity, dtype="int32")
        used = ops.logical_and(
            slots < self._filled, self._steps >= self.warmup_steps
        )
        own = ops.ones((ops.shape(candidate)[0],), "bool")
        result["candidate_mask"] = ops.concatenate(
            [own, replicas.own_share(used)]
        )
        if training:
            self._store(replicas.gather(batch))
        return result

    def _store(self, batch):
        for name, stored in self._stored.items():
            newest = ops.slice(
                ops.concatenate([batch[name], stored]),
                [0] * len(stored.shape),
                stored.shape,
            )
            stored.assign(ops.stop_gradient(newest))
        rows = ops.cast(ops.shape(batch["candidate"])[0], "int32")
        filled = self._filled + rows
        self._filled.assign(ops.minimum(filled, self.capacity))
        # Stays where it is after the warm-up, and cannot overflow.
        self._steps.assign(ops.minimum(self._steps + 1, self.warmup_steps))

    def _check(self, given):
        candidate = given["candidate"]
        arguments.vectors(candidate, candidate)
        rows = candidate.shape[0]
        arguments.ids(
            "candidate_ids", given["candidate_ids"], rows, "candidate"
        )
        arguments.probability(
            "candidate_sampling_probability",
            given["candidate_sampling_probability"],
            rows,
            "candidate",
        )
        for name, value in given.items():
            if (value is None) == (name in self._stored):
                engines.give_back_weights()
                first, now = ("with", "without")[:: 1 if value is None else -1]
                raise ValueError(
                    f"`{name}` must be given in every call or in none: the "
                    f"memory of `{self.name}` was built {first} it. Received: "
                    f"a call {now} it"
                )

    def _fitting(self, candidate):
        """Returns the candidates, refused if the memory cannot hold them."""
        rule = (
            "`capacity` must be at least the number of rows of a batch, the "
            "global one if there are replicas, or its own rows would not fit. "
            "Make it a multiple of them."
        )
        received = f"Received: capacity={self.capacity}"
        share = self._share()
        rows = candidate.shape[0]
        if rows is not None and rows > share:
            engines.give_back_weights()
            raise ValueError(
                f"{rule} {received}, "
                f"candidate.shape={tuple(candidate.shape)}, "
                f"replicas: {self.capacity // share}"
            )
        return engines.require_at_most_rows(
            candidate, share, f"{rule} {received}"
        )

    def _share(self):
        """Returns how many stored rows each replica appends."""
        count = replicas.count()
        if self.capacity % count:
            raise ValueError(
                "`capacity` must be a multiple of the number of replicas, "
                "each of which serves its part of the memory. "
                f"Received: capacity={self.capacity}, replicas: {count}"
            )
        return self.capacity // count

    def _shapes_alone(self, given):
        """Returns zeros of the outputs' shapes, while only they are asked."""
        rows = ops.shape(given["candidate"])[0] + self._share()
        return {
            name: ops.zeros((rows, *rest), dtype)
            for name, (rest, dtype) in self._outputs().items()
        }

    def _outputs(self):
        outputs = {
            name: (tuple(stored.shape[1:]), stored.dtype)
            for name, stored in self._stored.items()
        }
        return {**outputs, "candidate_mask": ((), "bool")}

    def compute_output_spec(
        self,
        candidate,
        candidate_ids=None,
        candidate_sampling_probability=None,
        training=None,
    ):
        """Returns the dict of symbolic outputs."""
        given = (candidate, candidate_ids, candidate_sampling_probability)
        self._check(dict(zip(_TENSORS, given)))
        rows = candidate.shape[0]
        if rows is not None:
            with keras.SymbolicScope():  # in which a strategy's replicas count
                self._fitting(candidate)
                rows += self._share()
        return {
            name: keras.KerasTensor((rows, *rest), dtype=dtype)
            for name, (rest, dtype) in self._outputs().items()
        }

    def get_config(self):
        """Returns the arguments of the constructor."""
        config = super().get_config()
        config.update(capacity=self.capacity, warmup_steps=self.warmup_steps)
        return config

"""The layer: checks the batch, chooses the negatives, calls the maths."""

import functools
import math

import keras
from keras import ops

from inbatch_neg import arguments, engines, logits, replicas, walk
from inbatch_neg import scoring as scoring_lib
from inbatch_neg.partial_batch import BatchSize, PartialBatchError

_TENSORS = (
    "query",
    "candidate",
    "candidate_ids",
    "query_ids",
    "candidate_sampling_probability",
    "candidate_mask",
    "sample_weight",
)

LEARNED = "learned"

# The scale is 1 / temperature. Radford et al. 2021 begin at 1 / 0.07 and
# clip at 100.
_FIRST_LOG_SCALE = math.log(1.0 / 0.07)
_MOST_LOG_SCALE = math.log(100.0)


@keras.saving.register_keras_serializable(package="inbatch_neg")
class InBatchNegativeSoftmax(keras.layers.Layer):
    """Softmax of each row's positive among the other rows' candidates.

    ```
    s_ij   = <query_i, candidate_j> / temperature - log q_j
    loss_i = weight_i * (logsumexp over j of s_ij - s_ii)
    ```

    Ends a two-tower model that is trained on positive pairs alone: row i of
    the candidates is the positive of query i, the other rows are its
    negatives. Losses and gradients are exact and the B x C matrix of scores is
    never kept, so a batch of tens of thousands fits. Train with
    `InBatchNegativeLoss`.

    Args:
        num_negatives: How many of the B - 1 in-batch negatives of a row take
            part, an integer below B. `None` (the default): all.
        sampling: How `num_negatives` are chosen. `"rotation"` (the default):
            that many distinct shifts of the batch, the same for all rows,
            drawn afresh at every step; the extra candidates all take part.
            `"hardest"`: the highest-scoring of all negatives of the row that
            are not left out, of equal ones the first.
        temperature: Number above 0, divides the scores. Below 1 for
            normalised towers (0.05 to 0.2). Defaults to 1.0. `"learned"`: a
            weight, stored as the logarithm of its inverse, that begins at
            0.07 and stays at 0.01 or above.
        symmetric: Whether the loss is the mean of the above and of the
            softmax of each candidate's query among the other queries. Masks
            by ids go with both directions, probabilities, `candidate_mask`
            and extra candidates with the first alone. Takes twice the time.
        cross_replica: Whether a row's negatives are the candidates of the
            global batch, those of every replica under a `tf.distribute`
            strategy, `keras.distribution` on JAX, or `torch.distributed`.
            The result is then that of one device with the global batch.
            Without any of these it changes nothing.
        batch_size: The number of rows of every batch, 2 or more. `None` (the
            default): that of the first batch, training and inference counted
            apart. `"any"`: not checked, every size of 2 or more works.
        return_logits: Whether to return the logits, (B, 1 + K), instead of
            the losses, (B,). Takes O(BK) memory.
        seed: Integer that makes the shifts reproducible. `None` (the
            default): different ones at every run.

    Raises:
        ValueError, TypeError: for an argument outside of the above.
        PartialBatchError: (a `ValueError`) in the call, for a batch of another
            size, of unknown size on TensorFlow, or of one row.

    Example:
    >>> import numpy as np
    >>> user_vec = item_vec = np.eye(3, dtype="float32")
    >>> softmax = InBatchNegativeSoftmax(temperature=0.5)
    >>> print(np.asarray(softmax(user_vec, item_vec)).round(4))
    [0.2395 0.2395 0.2395]
    >>> same_item = np.array([7, 7, 8])  # row 0's item is no negative of row 1
    >>> loss = softmax(user_vec, item_vec, candidate_ids=same_item)
    >>> print(np.asarray(loss).round(4))
    [0.1269 0.1269 0.2395]

    References: Yi et al. 2019, "Sampling-bias-corrected neural modeling for
    large corpus item recommendations" (RecSys, doi 10.1145/3298689.3346996);
    for the symmetric loss and the learned temperature, Radford et al. 2021,
    "Learning transferable visual models from natural language supervision"
    (arXiv 2103.00020).

    Differs from: `tfrs.tasks.Retrieval` and the `keras_rs` retrieval layers
    keep the B x C matrix, clip q at 1e-6 and take a partial batch as it
    comes.
    """

    def __init__(
        self,
        num_negatives=None,
        *,
        sampling="rotation",
        temperature=1.0,
        symmetric=False,
        cross_replica=False,
        batch_size=None,
        return_logits=False,
        seed=None,
        **kwargs,
    ):
        # Autocasting would round probabilities to half precision.
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        if num_negatives is not None:
            num_negatives = arguments.integer(
                "num_negatives", num_negatives, minimum=1, otherwise=" or None"
            )
        self.num_negatives = num_negatives
        self.sampling = arguments.choice(
            "sampling", sampling, ("rotation", "hardest")
        )
        self._log_scale = None
        if isinstance(temperature, str) and temperature == LEARNED:
            self._log_scale = self.add_weight(
                name="log_scale",
                shape=(),
                dtype=self._maths_dtype,
                initializer=keras.initializers.Constant(_FIRST_LOG_SCALE),
                constraint=_AtMostLogScale(),
            )
        else:
            temperature = arguments.positive_number("temperature", temperature)
        self._temperature = temperature
        self.symmetric = arguments.flag("symmetric", symmetric)
        self.cross_replica = arguments.flag("cross_replica", cross_replica)
        self.return_logits = arguments.flag("return_logits", return_logits)
        if self.sampling == "hardest" and num_negatives is None:
            raise ValueError(
                '`sampling="hardest"` needs `num_negatives`, how many of the '
                "highest-scoring negatives take part. Received: "
                "num_negatives=None"
            )
        if self.symmetric and self.return_logits:
            raise ValueError(
                "`symmetric=True` has two tables of logits, so it cannot go "
                "with `return_logits=True`. Use two layers, or the losses."
            )
        self._batch_size = BatchSize(batch_size)
        if self.sampling == "rotation" and not self.cross_replica:
            self._check_count(self._batch_size.rows)
        if seed is not None:
            seed = arguments.integer(
                "seed", seed, minimum=0, otherwise=" or None"
            )
        self.seed = seed
        if self._draws:
            self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def batch_size(self):
        """The `batch_size` that the layer was constructed with."""
        return self._batch_size.declared

    @property
    def temperature(self):
        """What divides the scores: a float, or a scalar tensor if learned."""
        if self._log_scale is None:
            return self._temperature
        log_scale = ops.convert_to_tensor(self._log_scale)
        # Straight through: a weight beyond the limit still has a gradient,
        # and can come back.
        beyond = ops.stop_gradient(ops.maximum(log_scale - _MOST_LOG_SCALE, 0))
        return ops.exp(beyond - log_scale)

    @property
    def _draws(self):
        """Whether the layer draws random numbers."""
        return self.num_negatives is not None and self.sampling == "rotation"

    def call(
        self,
        query,
        candidate,
        candidate_ids=None,
        query_ids=None,
        candidate_sampling_probability=None,
        candidate_mask=None,
        sample_weight=None,
        training=None,
    ):
        """Returns the losses, or the logits, of a batch.

        Args:
            query: (B, D) floats.
            candidate: (C, D) floats, C of B or more. Row i is the positive
                of query i; rows B and up are extra negatives for every row.
            candidate_ids: (C,) integers (strings too on TensorFlow). A
                negative with the id of the row's positive is left out.
            query_ids: (B,) integers or strings. A negative that is the
                positive of a row with the same query id is left out.
            candidate_sampling_probability: (C,) floats in (0, 1], how likely
                the candidate is in a given row; a probability, no logarithm.
                Values below 1.2e-38, zero included, count as 1.2e-38.
            candidate_mask: (C,) bools. False leaves that candidate out of
                everybody's negatives. A row's own positive always stays.
            sample_weight: (B,) numbers, multiply the losses. With
                `return_logits=True` give them to `fit` instead.
            training: Whether gradients will be wanted. `fit` says so by
                itself; in a loop of your own pass `training=True`, or the
                gradients cost a second walk.

        Returns:
            (B,) losses, float32 (float64 if that is the layer's dtype). A row
            without any negative left has loss 0. Or, with
            `return_logits=True`, (B, 1 + K): the positive, the in-batch
            negatives in rotation order (all of them: column j is candidate
            (i + j) mod B), the extra candidates; or the positive and the
            hardest negatives in falling order. -1e30 where left out.
        """
        given = {
            "query": query,
            "candidate": candidate,
            "candidate_ids": candidate_ids,
            "query_ids": query_ids,
            "candidate_sampling_probability": candidate_sampling_probability,
            "candidate_mask": candidate_mask,
            "sample_weight": sample_weight,
        }
        if engines.in_symbolic_call():
            if not replicas.shown_a_mean():
                self._check(given)
            return self._shape_alone(query, candidate)
        given = arguments.to_tensors(**given)
        if self.cross_replica:
            # Before a replica may refuse its own rows, and the others wait.
            given = replicas.require_alike(given)
        self._check(given)
        given = self._full(given, training)
        for name in ("query", "candidate"):
            given[name] = ops.cast(given[name], self._maths_dtype)
        losses = self._one_direction(given, training)
        if self.symmetric:
            losses = 0.5 * (
                losses + self._one_direction(_reversed(given), training)
            )
        return losses

    def _one_direction(self, given, training):
        """Returns the losses, or the logits, of the queries in `given`."""
        uniform = None
        if self._draws:
            uniform = keras.random.uniform(
                (self.num_negatives,), seed=self.seed_generator
            )
        maths = self._from_logits
        if self.num_negatives is None and not self.return_logits:
            maths = functools.partial(self._from_walk, bool(training))
        if self.cross_replica:
            return replicas.run(maths, given, uniform)
        return maths(given, ops.shape(given["query"])[0], uniform)

    def _from_walk(self, with_gradients, given, in_batch, uniform):
        return walk.batch_loss(
            temperature=self.temperature,
            with_gradients=with_gradients,
            **given,
        )

    def _from_logits(self, given, in_batch, uniform):
        """Returns the logits, or the losses that are computed from them.

        Args:
            given: The arguments of the call.
            in_batch: How many candidates are in-batch ones: one per row, and
                with `cross_replica=True` per row of the global batch.
            uniform: (N,) random numbers that choose the negatives, or None.
        """
        given = dict(given)
        query, candidate = given.pop("query"), given.pop("candidate")
        sample_weight = given.pop("sample_weight")
        scoring = scoring_lib.make(
            ops.shape(query)[0], ops.shape(candidate)[0], query.dtype, **given
        )
        query = query / self.temperature
        if self.num_negatives is None:
            result = logits.all_logits(query, candidate, scoring, in_batch)
        elif self.sampling == "hardest":
            result = logits.hardest_logits(
                query, candidate, scoring, self.num_negatives
            )
        else:
            shifts = logits.draw_shifts(self.num_negatives, in_batch, uniform)
            result = logits.sampled_logits(
                query, candidate, scoring, shifts, in_batch
            )
        if self.return_logits:
            return result
        losses = scoring_lib.cross_entropy_with_first(result)
        if sample_weight is not None:
            losses = losses * ops.cast(sample_weight, losses.dtype)
        return losses

    def _check(self, given):
        arguments.batch(**given)
        if self.return_logits and given["sample_weight"] is not None:
            raise ValueError(
                "`sample_weight` cannot be given to the layer with "
                "`return_logits=True`, since logits have no weight. Give it "
                "to `fit`, or to the loss."
            )
        # The hardest negatives may be extra ones, rotation is in the batch;
        # in the other direction there are no extra ones.
        of = "candidate" if self.sampling == "hardest" else "query"
        rows = given["query" if self.symmetric else of].shape[0]
        if isinstance(rows, int):
            rows *= self._replicas
        self._check_count(rows)

    def _check_count(self, rows):
        if (
            self.num_negatives is not None
            and isinstance(rows, int)
            and rows > 1
            and self.num_negatives >= rows
        ):
            raise ValueError(
                "`num_negatives` must be smaller than the batch: a row has "
                f"{rows - 1} negatives to choose from. "
                f"Received: num_negatives={self.num_negatives}"
            )

    def _full(self, given, training):
        """Returns the tensors of the batch if it is full."""
        shape = tuple(given["query"].shape)
        try:
            self._batch_size.check(self.name, shape, training)
        except PartialBatchError:
            engines.give_back_weights()
            raise
        return engines.require_rows(
            given,
            self._batch_size.rows,
            self._batch_size.message(self.name),
            self._batch_size.label,
        )

    @property
    def _maths_dtype(self):
        # Also of a half-precision policy, scores and losses have 32 bits.
        return "float64" if self.variable_dtype == "float64" else "float32"

    def _shape_alone(self, query, candidate):
        """Returns zeros of the output's shape, while only that is asked."""
        rows, candidates = ops.shape(query)[0], ops.shape(candidate)[0]
        shape = (rows,)
        if self.return_logits:
            shape = (rows, self._columns(rows, candidates))
        return ops.zeros(shape, self._maths_dtype)

    def compute_output_spec(self, query, candidate, **kwargs):
        """Returns the symbolic output; unknown rows are no error yet."""
        rows, candidates = query.shape[0], candidate.shape[0]
        kwargs.pop("training", None)
        given = {"query": query, "candidate": candidate, **kwargs}
        shape = (rows,)
        with keras.SymbolicScope():  # in which a strategy's replicas count
            self._check({**dict.fromkeys(_TENSORS), **given})
            if self.return_logits:
                shape = (rows, self._columns(rows, candidates))
        self._batch_size.check_symbolic(self.name, query.shape)
        return keras.KerasTensor(shape, dtype=self._maths_dtype)

    @property
    def _replicas(self):
        """How many replicas' candidates a row is scored against."""
        return replicas.count() if self.cross_replica else 1

    def _columns(self, rows, candidates):
        """Returns 1 + K, or None where it depends on an unknown size."""
        if self.sampling == "hardest":
            return 1 + self.num_negatives
        if candidates is None:
            return None
        if self.num_negatives is None:
            return candidates * self._replicas
        if rows is None:
            return None
        extra = (candidates - rows) * self._replicas
        return 1 + self.num_negatives + extra

    def save_own_variables(self, store):
        """Saves where the random shifts are, which Keras would not."""
        super().save_own_variables(store)
        if self._draws:
            store["shifts"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store):
        """Loads it, so that training goes on as if it had not stopped."""
        stored = {name: store[name] for name in store.keys()}
        shifts = stored.pop("shifts", None)
        super().load_own_variables(stored)
        if self._draws and shifts is not None:
            self.seed_generator.state.assign(shifts)

    def get_config(self):
        """Returns the arguments of the constructor."""
        config = super().get_config()
        config.update(
            num_negatives=self.num_negatives,
            sampling=self.sampling,
            temperature=self._temperature,
            symmetric=self.symmetric,
            cross_replica=self.cross_replica,
            batch_size=self.batch_size,
            return_logits=self.return_logits,
            seed=self.seed,
        )
        return config


def _reversed(given):
    """Returns the arguments of the candidate-to-query direction.

    Row i's positive is query i, and the other queries are its negatives: not
    those of the same id, nor those whose own positive is the same candidate.
    The sampling probabilities and the mask are of candidates as negatives, so
    they have no part in it, as the extra candidates.
    """
    rows = ops.shape(given["query"])[0]
    candidate_ids = given["candidate_ids"]
    return {
        "query": given["candidate"][:rows],
        "candidate": given["query"],
        "candidate_ids": given["query_ids"],
        "query_ids": None if candidate_ids is None else candidate_ids[:rows],
        "candidate_sampling_probability": None,
        "candidate_mask": None,
        "sample_weight": given["sample_weight"],
    }


class _AtMostLogScale(keras.constraints.Constraint):
    def __call__(self, value):
        return ops.minimum(value, _MOST_LOG_SCALE)

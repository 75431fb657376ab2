"""The layer: checks the batch, chooses the negatives, calls the maths."""

from typing import Any

import keras
from keras import ops

from inbatch_neg import batch_checks, keras_private
from inbatch_neg.arguments import check_flag, check_integer
from inbatch_neg.backends import backend
from inbatch_neg.layers import global_batch
from inbatch_neg.layers.negative_sampling import NegativeSampling
from inbatch_neg.layers.partial_batch import EXPORT_TOWER, BatchSize
from inbatch_neg.layers.temperature import Temperature
from inbatch_neg.replicas.current import replicas
from inbatch_neg.softmax import loss
from inbatch_neg.softmax.batch import Batch
from inbatch_neg.softmax.log_q_and_masks import product_dtype
from inbatch_neg.types import Size, Tensor


@keras.saving.register_keras_serializable(package="inbatch_neg")
class InBatchNegativeSoftmax(keras.layers.Layer):
    """Softmax of each row's positive among the other rows' candidates.

    ```
    s_ij   = <query_i, candidate_j> / temperature - log q_j
    loss_i = weight_i * (logsumexp over j of s_ij - s_ii)
    ```

    The last layer of a two-tower model that is trained on positive pairs
    alone: row i of the candidates is the positive of query i, and the other
    rows are its negatives. Losses and gradients are exact. Only small batches
    keep the B x C matrix of scores, so tens of thousands of rows fit into
    memory. Train with `InBatchNegativeLoss`.

    Pass the ids. Without them, false negatives stay in, and no error says so:
    a row is expected to have (B - 1) times its item's share of the data. On
    MovieLens-100K with B = 1,024, about 4 of 1,023 negatives are false, and
    the recall is the same with ids and without.

    Args:
        num_negatives: Integer below B, how many of the B - 1 in-batch
            negatives of a row are used. `None` (the default): all.
        sampling: How `num_negatives` are chosen. `"rotation"` (the default):
            that many distinct shifts of the batch, the same for all rows,
            drawn anew in every step; all extra candidates are used too.
            `"hardest"`: the row's unmasked negatives with the highest scores,
            among equal ones the first.
        temperature: Number above 0 by which the scores are divided. Use less
            than 1 for normalised towers (0.05 to 0.2). Defaults to 1.0.
            `"learned"`: a weight, stored as the logarithm of its inverse,
            that starts at 0.07 and stays at 0.01 or above. A scalar
            `keras.Variable` is saved with the layer, and trains if it is
            trainable; `layer.temperature = value` sets it between two steps.
            Layers can share one, also in the loaded or cloned model.
        symmetric: Whether the loss is the mean of the above and of the
            softmax of each candidate's query among the other queries. Ids
            mask in both directions; probabilities, `candidate_mask` and extra
            candidates apply to the first direction only. Takes twice the
            time.
        cross_replica: Whether a row's negatives are the candidates of the
            global batch, those of every replica under a `tf.distribute`
            strategy, `keras.distribution` on JAX, or `torch.distributed`.
            The result is then that of one device with the global batch.
            Without replicas this has no effect.
        batch_size: The number of rows of every batch, 2 or more. `None` (the
            default): that of the first batch; training and inference are
            checked separately. `"any"`: every size of 2 or more is accepted.
        return_logits: Whether to return the logits, (B, 1 + K), instead of
            the losses, (B,). Takes O(BK) memory.
        seed: Integer that makes the shifts reproducible. `None` (the
            default): different shifts in every run.

    Raises:
        ValueError, TypeError: for an argument outside of the above.
        PartialBatchError: (a `ValueError`) in the call, for a batch with
            another number of rows, an unknown number (on TensorFlow), or one
            row.

    Example:
    >>> import numpy as np
    >>> user_vec = item_vec = np.eye(3, dtype="float32")
    >>> softmax = InBatchNegativeSoftmax(temperature=0.5)
    >>> print(np.asarray(softmax(user_vec, item_vec)).round(4))
    [0.2395 0.2395 0.2395]
    >>> same_item = np.array([7, 7, 8])  # rows 0 and 1 have the same item
    >>> loss = softmax(user_vec, item_vec, candidate_ids=same_item)
    >>> print(np.asarray(loss).round(4))
    [0.1269 0.1269 0.2395]

    References: Yi et al. 2019, "Sampling-bias-corrected neural modeling for
    large corpus item recommendations" (RecSys, doi 10.1145/3298689.3346996);
    for the symmetric loss and the learned temperature, Radford et al. 2021,
    "Learning transferable visual models from natural language supervision"
    (arXiv 2103.00020).

    Differs from: `tfrs.tasks.Retrieval` and the `keras_rs` retrieval layers
    keep the B x C matrix, clip q at 1e-6 and accept partial batches.
    """

    def __init__(
        self,
        num_negatives: int | None = None,
        *,
        sampling: str = "rotation",
        temperature: float | str | keras.Variable = 1.0,
        symmetric: bool = False,
        cross_replica: bool = False,
        batch_size: int | str | None = None,
        return_logits: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Autocasting would round probabilities to half precision.
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self._negatives = NegativeSampling(num_negatives, sampling)
        self._temperature = Temperature(self, temperature, self.compute_dtype)
        # A variable is tracked as an attribute of the layer.
        self._temperature_variable = self._temperature.variable
        self.symmetric = check_flag("symmetric", symmetric)
        self.cross_replica = check_flag("cross_replica", cross_replica)
        self.return_logits = check_flag("return_logits", return_logits)
        if self.symmetric and self.return_logits:
            raise ValueError(
                "`symmetric=True` has two matrices of logits, so it cannot be "
                "combined with `return_logits=True`. Use two layers."
            )
        self._batch_size = BatchSize(batch_size)
        if self.sampling == "rotation" and not self.cross_replica:
            self._negatives.check_rows(self._batch_size.rows)
        if seed is not None:
            seed = check_integer("seed", seed, minimum=0, otherwise=" or None")
        self.seed = seed
        if self._negatives.is_random:
            self.seed_generator = keras.random.SeedGenerator(seed)
        keras_private.set_built(self, InBatchNegativeSoftmax)

    @property
    def compute_dtype(self) -> str:
        """float32, or float64: scores and losses are never rounded further.

        With that of a mixed policy, Keras would also round a variable that is
        given as the temperature.
        """
        return "float64" if self.variable_dtype == "float64" else "float32"

    @property
    def num_negatives(self) -> int | None:
        """How many in-batch negatives a row uses, None for all."""
        return self._negatives.num_negatives

    @property
    def sampling(self) -> str:
        """How `num_negatives` are chosen."""
        return self._negatives.sampling

    @property
    def batch_size(self) -> int | str | None:
        """The `batch_size` that the layer was constructed with."""
        return self._batch_size.declared

    @property
    def temperature(self) -> float | Tensor:
        """The number that divides the scores: a float, or a scalar tensor.

        Can be set between steps, also in a compiled model, if the layer was
        constructed with a `keras.Variable`. On JAX, set it in
        `on_epoch_begin`.
        """
        return self._temperature()

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature.set(value)

    @keras_private.restore_model_state
    def call(
        self,
        query: Tensor,
        candidate: Tensor,
        candidate_ids: Tensor = None,
        query_ids: Tensor = None,
        candidate_sampling_probability: Tensor = None,
        candidate_mask: Tensor = None,
        sample_weight: Tensor = None,
        query_mask: Tensor = None,
        training: bool | None = None,
    ) -> Tensor:
        """Returns the losses, or the logits, of a batch.

        Args:
            query: (B, D) floats. Or (B, P, D), P vectors per row: the one
                with the highest score counts and gets the gradient, among
                equal ones the first.
            candidate: (C, D) floats, C of B or more. Row i is the positive
                of query i; rows B and up are extra negatives for every row.
                Or (B, 1 + K, D), n-tuples: the positive of each row, then K
                hard negatives, which are extra negatives for every row. They
                count as rows B and up, row by row; then ids, probabilities
                and mask of the candidates are (B, 1 + K) too.
            candidate_ids: (C,) integers (strings too on TensorFlow). A
                negative with the id of the row's positive is masked.
            query_ids: (B,) integers or strings. A negative that is the
                positive of a row with the same query id is masked.
            candidate_sampling_probability: (C,) floats in (0, 1], the
                probability that a given row holds the candidate, not its
                logarithm. Counts, as floats, serve as well: they are right up
                to a constant factor, which the softmax cancels. Zero and
                values below 1.2e-38 count as 1.2e-38. Negative values and NaN
                are an error if they can be read, as in eager calls, and give
                NaN losses otherwise.
            candidate_mask: (C,) bools. False: this candidate is a negative of
                no row. A row's own positive always stays.
            sample_weight: (B,) numbers that multiply the losses. With
                `return_logits=True` pass them to `fit` instead. NaN in a
                query of weight 0 has no effect, nor has NaN in a masked
                candidate whose row, if it has one, has weight 0. With
                `symmetric=True` such a query still is a negative, unless its
                candidate is masked: then the row is padding.
            query_mask: (B, P) bools, with queries (B, P, D). False: this
                vector is ignored. A row without any other is an error in an
                eager call; in a compiled step it counts as one vector of
                zeros.
            training: Whether gradients will be needed. `fit` sets it; in a
                custom loop pass `training=True`, or the gradients take a
                second pass over the scores.

        Returns:
            (B,) losses, float32 (float64 if that is the layer's dtype). A row
            without unmasked negatives has loss 0.

            With `return_logits=True`, (B, 1 + K): column 0 is the positive,
            then come the in-batch negatives in rotation order (if all are
            used, column j is candidate (i + j) mod B), then the extra
            candidates. With `sampling="hardest"`, the hardest negatives in
            descending order come after the positive. Masked entries are
            -1e30.
        """
        batch = Batch(
            query,
            candidate,
            candidate_ids,
            query_ids,
            candidate_sampling_probability,
            candidate_mask,
            sample_weight,
            query_mask,
        )
        if keras_private.in_symbolic_call():
            return self._zeros_of_output_shape(batch)
        batch = self._checked(batch, training)
        # Its values stay those of half precision in the cast.
        dtype = None
        if self.compute_dtype == "float32":
            dtype = product_dtype(batch)
        batch = batch.cast(self.compute_dtype).fill_queries()
        result = self._one_direction(batch, training, dtype)
        if self.symmetric:
            reverse = self._one_direction(batch.reverse(), training, dtype)
            result = 0.5 * (result + reverse)
        return result

    def _checked(self, batch: Batch, training: bool | None) -> Batch:
        """Returns the batch as tensors; refuses a partial or invalid one."""
        if not backend.can_export_losses and keras_private.in_export():
            raise ValueError(
                f"`{self.name}` cannot be exported on the backend "
                f"{backend.name}. Fix: {EXPORT_TOWER}"
            )
        batch = batch_checks.to_tensors(batch)
        if self.cross_replica:
            batch = global_batch.check_same_shapes(batch)
        try:
            batch = self._check(batch)
        except TypeError as error:
            if keras_private.in_export():  # Keras passes ids as floats
                message = f"{error} Fix for an export: {EXPORT_TOWER}"
                raise TypeError(message) from None
            raise
        self._batch_size.check(self.name, tuple(batch.query.shape), training)
        return Batch(*self._batch_size.ensure(self.name, batch))

    def _one_direction(
        self, batch: Batch, training: bool | None, product_dtype: str | None
    ) -> Tensor:
        """Returns the losses, or the logits, of a checked batch."""
        batch = batch.clear_uncounted()
        uniform = None
        if self._negatives.is_random:
            with backend.after(batch):
                uniform = self._negatives.draw(self.seed_generator)

        def maths(batch: Batch, in_batch: Size, uniform: Tensor) -> Tensor:
            if self.num_negatives is None and not self.return_logits:
                return loss.batch_loss(
                    batch, self.temperature, bool(training), product_dtype
                )
            compute = self._negatives.losses
            if self.return_logits:
                compute = self._negatives.logits
            return compute(batch, in_batch, uniform, self.temperature)

        if self.cross_replica:
            return global_batch.run(maths, batch, uniform)
        return maths(batch, batch.rows, uniform)

    def _check(self, batch: Batch) -> Batch:
        """Returns the batch without n-tuples; refuses an invalid one."""
        batch_checks.check_batch(batch)
        batch = batch.flatten()
        if self.return_logits and batch.sample_weight is not None:
            raise ValueError(
                "`sample_weight` cannot be passed to the layer with "
                "`return_logits=True`. Pass it to `fit`, or to the loss."
            )
        self._negatives.check_batch(batch, self.symmetric, self._replicas)
        return batch

    @property
    def _replicas(self) -> int:
        """How many replicas' candidates a row is scored against."""
        return replicas.count() if self.cross_replica else 1

    def _output_shape(self, rows: Size, candidates: Size) -> tuple[Size, ...]:
        if not self.return_logits:
            return (rows,)
        return rows, self._negatives.columns(rows, candidates, self._replicas)

    def _zeros_of_output_shape(self, batch: Batch) -> Tensor:
        """Returns zeros, while Keras only needs the shape of the output."""
        if not replicas.averages_shapes_of_symbolic_calls():
            self._check(batch)
        batch = batch.flatten()
        shape = self._output_shape(batch.rows, batch.candidates)
        return ops.zeros(shape, self.compute_dtype)

    @keras_private.restore_model_state
    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the symbolic output; the number of rows may be unknown."""
        batch = batch_checks.bind(self.call, args, kwargs)
        with keras.SymbolicScope():  # so that a strategy's replicas count
            batch = self._check(batch)
            shape = self._output_shape(
                batch.query.shape[0], batch.candidate.shape[0]
            )
        self._batch_size.check_symbolic(self.name, batch.query.shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def save_own_variables(self, store: Any) -> None:
        """Also saves the state of the random shifts, which Keras does not."""
        super().save_own_variables(store)
        if self._negatives.is_random:
            store["shifts"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        """Loads that state too, so that training continues unchanged."""
        stored = {name: store[name] for name in store.keys()}
        shifts = stored.pop("shifts", None)
        super().load_own_variables(stored)
        if self._negatives.is_random and shifts is not None:
            self.seed_generator.state.assign(shifts)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "num_negatives": self.num_negatives,
            "sampling": self.sampling,
            "temperature": self._temperature.get_config(),
            "symmetric": self.symmetric,
            "cross_replica": self.cross_replica,
            "batch_size": self.batch_size,
            "return_logits": self.return_logits,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "InBatchNegativeSoftmax":
        """Returns the layer, with a new temperature variable.

        Layers that share a variable still do after `load_model` and
        `clone_model`.
        """
        temperature = keras_private.variable_from_config(config["temperature"])
        return cls(**{**config, "temperature": temperature})

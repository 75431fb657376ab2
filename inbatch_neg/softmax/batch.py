"""The tensors of one batch, under the names of the public arguments."""

from typing import NamedTuple

from keras import ops
from keras.backend import standardize_dtype

from inbatch_neg.softmax import several_vectors
from inbatch_neg.types import Size, Tensor

# These have one entry per candidate; the other fields have one per row.
CANDIDATE_FIELDS = (
    "candidate",
    "candidate_ids",
    "candidate_sampling_probability",
    "candidate_mask",
)


class Batch(NamedTuple):
    """A batch of B rows and C candidates; None stands for a missing tensor.

    Attributes:
        query: (B, D) floats, or (B, P, D), P vectors per row.
        candidate: (C, D) floats, row i the positive of query i. Before
            `flatten` it may be (B, 1 + K, D), and the candidates' other
            tensors (B, 1 + K).
        candidate_ids: (C,) integers or strings.
        query_ids: (B,) integers or strings. More than B with replicas, where
            the candidates after the first B are positives of other replicas.
        candidate_sampling_probability: (C,) floats.
        candidate_mask: (C,) bools.
        sample_weight: (B,) numbers.
        query_mask: (B, P) bools, False where a vector is ignored.
    """

    query: Tensor = None
    candidate: Tensor = None
    candidate_ids: Tensor = None
    query_ids: Tensor = None
    candidate_sampling_probability: Tensor = None
    candidate_mask: Tensor = None
    sample_weight: Tensor = None
    query_mask: Tensor = None

    @property
    def rows(self) -> Size:
        """B, an int or a scalar tensor."""
        return ops.shape(self.query)[0]

    @property
    def candidates(self) -> Size:
        """C, an int or a scalar tensor."""
        return ops.shape(self.candidate)[0]

    def flatten(self) -> "Batch":
        """Returns the batch with n-tuples of candidates as (C, D).

        The positives come first, then the hard negatives, row by row.
        """
        if len(self.candidate.shape) == 2:
            return self
        tensors = {name: getattr(self, name) for name in CANDIDATE_FIELDS}
        return self._replace(
            **{k: _flatten(v) for k, v in tensors.items() if v is not None}
        )

    def cast(self, dtype: str) -> "Batch":
        """Returns the batch with its vectors in another dtype."""
        query, candidate = self.query, self.candidate
        dtypes = (query.dtype, candidate.dtype)
        if all(standardize_dtype(old) == dtype for old in dtypes):
            return self
        return self._replace(
            query=ops.cast(query, dtype), candidate=ops.cast(candidate, dtype)
        )

    def fill_queries(self) -> "Batch":
        """Returns the batch with `query_mask` applied; P = 1 as (B, D)."""
        query = self.query
        if self.query_mask is not None:
            query = several_vectors.fill(query, self.query_mask)
        if len(query.shape) == 3 and query.shape[1] == 1:
            query = query[:, 0]
        return self._replace(query=query, query_mask=None)

    def clear_uncounted(self) -> "Batch":
        """Returns the batch without NaN and infinity in what does not count.

        The matrix products of the gradients would multiply them by 0, which
        gives NaN. A query does not count if its row has weight 0; a candidate
        does not if it is masked and is the positive of no row, or of a row of
        weight 0. Vectors that are not finite become zeros there, and so does
        their gradient. Other vectors stay: the gradient by a weight of 0 needs
        them.

        With replicas, each clears its own rows before it sends them.
        """
        weight, mask, changed = self.sample_weight, self.candidate_mask, {}
        if weight is None and (mask is None or self._has_no_extra()):
            return self  # each candidate is the positive of a row that counts
        if weight is None:
            counted = ops.ones((self.rows,), "bool")
        else:
            counted = ops.not_equal(weight, ops.zeros_like(weight))
            kept = counted | _is_finite(self.query)
            changed["query"] = _keep(kept, self.query)
        if mask is not None:
            columns = self._kept_candidates(counted)
            changed["candidate"] = _keep(columns, self.candidate)
            probability = self.candidate_sampling_probability
            if probability is not None:
                changed["candidate_sampling_probability"] = ops.where(
                    columns, probability, ops.ones_like(probability)
                )
            if weight is not None:
                kept = kept & columns[: self.rows]
        if weight is not None:
            changed["sample_weight"] = _keep(kept, weight)
        return self._replace(**changed)

    def _has_no_extra(self) -> bool:
        """Returns whether C is known to be B."""
        extra = self.candidates - self.rows
        return isinstance(extra, int) and extra == 0

    def _kept_candidates(self, counted: Tensor) -> Tensor:
        """Returns (C,) bools, False for candidates to clear.

        Args:
            counted: (B,) bools, False for rows of weight 0.
        """
        extra = ops.zeros((self.candidates - self.rows,), "bool")
        finite = _is_finite(self.candidate)
        probability = self.candidate_sampling_probability
        if probability is not None:
            finite = finite & (probability >= 0) & ops.isfinite(probability)
        counted = ops.concatenate([counted, extra])
        return counted | self.candidate_mask | finite

    def reverse(self) -> "Batch":
        """Returns the batch of the candidate-to-query direction.

        The positive of row i is query i, and the other queries are its
        negatives, except those with the same id and those whose positive is
        the same candidate. Sampling probabilities, the mask and the extra
        candidates do not apply in this direction. If a query has several
        vectors, the best one counts here too.

        A row of weight 0 whose candidate is masked is padding: its query is a
        negative of no row.
        """
        rows = self.rows
        candidate_ids = self.candidate_ids
        weight, mask = self.sample_weight, None
        if weight is not None and self.candidate_mask is not None:
            mask = ops.not_equal(weight, ops.zeros_like(weight))
            mask = mask | self.candidate_mask[:rows]
        return Batch(
            query=self.candidate[:rows],
            candidate=self.query,
            candidate_ids=self.query_ids,
            query_ids=None if candidate_ids is None else candidate_ids[:rows],
            candidate_mask=mask,
            sample_weight=self.sample_weight,
        )


def _flatten(tensor: Tensor) -> Tensor:
    """Returns (B + BK, ...) of (B, 1 + K, ...)."""
    negatives = ops.reshape(tensor[:, 1:], (-1, *ops.shape(tensor)[2:]))
    return ops.concatenate([tensor[:, 0], negatives])


def _is_finite(vectors: Tensor) -> Tensor:
    """Returns bools, one per row: False for NaN, infinity, an infinite norm.

    Products of vectors of finite norms are finite.
    """
    values = ops.cast(ops.stop_gradient(vectors), "float32")
    axes = tuple(range(1, len(values.shape)))
    return ops.isfinite(ops.sum(values * values, axis=axes))


def _keep(rows: Tensor, tensor: Tensor) -> Tensor:
    """Returns the tensor with zeros, without gradient, in the other rows."""
    rows = rows[(slice(None), *[None] * (len(tensor.shape) - 1))]
    return ops.where(rows, tensor, ops.zeros_like(tensor))

"""The tensors of one batch, under the names of the public arguments."""

from typing import NamedTuple

from keras import ops

from inbatch_neg.backends import Size, Tensor
from inbatch_neg.softmax import vectors

# These have one entry per candidate, the others one per row.
CANDIDATE_FIELDS = (
    "candidate",
    "candidate_ids",
    "candidate_sampling_probability",
    "candidate_mask",
)


class Batch(NamedTuple):
    """A batch of B rows and C candidates; None stands for what is not given.

    Attributes:
        query: (B, D) floats, or (B, P, D), P vectors a row.
        candidate: (C, D) floats, row i the positive of query i.
        candidate_ids: (C,) integers or strings.
        query_ids: (B,) integers or strings. Or more than B, where the
            candidates after the first B are positives of rows elsewhere.
        candidate_sampling_probability: (C,) floats.
        candidate_mask: (C,) bools.
        sample_weight: (B,) numbers.
        query_mask: (B, P) bools, False where a vector is left out.
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

    def cast(self, dtype: str) -> "Batch":
        """Returns the batch with its vectors in another dtype."""
        return self._replace(
            query=ops.cast(self.query, dtype),
            candidate=ops.cast(self.candidate, dtype),
        )

    def fill_queries(self) -> "Batch":
        """Returns the batch without a `query_mask`; P = 1 as (B, D)."""
        query = self.query
        if self.query_mask is not None:
            query = vectors.fill(query, self.query_mask)
        if len(query.shape) == 3 and query.shape[1] == 1:
            query = query[:, 0]
        return self._replace(query=query, query_mask=None)

    def reverse(self) -> "Batch":
        """Returns the batch of the candidate-to-query direction.

        Row i's positive is query i, and the other queries are its negatives:
        not those of the same id, nor those whose own positive is the same
        candidate. Sampling probabilities and the mask are of candidates as
        negatives, so they are left out, as are the extra candidates. Where a
        query has several vectors, the best one scores here too.
        """
        rows = self.rows
        candidate_ids = self.candidate_ids
        return Batch(
            query=self.candidate[:rows],
            candidate=self.query,
            candidate_ids=self.query_ids,
            query_ids=None if candidate_ids is None else candidate_ids[:rows],
            sample_weight=self.sample_weight,
        )

"""The gradients of queries and candidates, summed chunk by chunk.

The gradient of the scores of a chunk, (R, C), is a table for each of the P
vectors that can have won a score (see `several_vectors`); P is 1 if the rows
have one vector each. Each table goes into two matrix products. With several
vectors these products are dense and take 2 x 2PBCD flops in all. Products of
the winning entries alone take 2 x 2BCD flops, but are sparse: for P = 4 they
take longer on every backend.
"""

from collections.abc import Sequence

from keras import ops
from keras.backend import standardize_dtype

from inbatch_neg.backends import backend
from inbatch_neg.softmax import several_vectors
from inbatch_neg.softmax.chunks import Chunks
from inbatch_neg.types import Size, Tensor

# The sums: those of the queries (B, D), and of the candidates (D, C).
Sums = tuple[list[Tensor], list[Tensor]]


class Gradients:
    """Sums the gradients over the chunks.

    If the chunks multiply in half precision, the tables are rounded to it; the
    sums are not.

    Args:
        chunks: The chunks of the batch.
        query: (B, D) or (B, P, D).
        candidate: (C, D), or (C, P, D) if the queries have one vector each.
        row_weight: (B,), multiplies the loss of each row; or None.
        wanted: Which gradients are computed, "query", "candidate" or both.
            The others stay 0.
    """

    def __init__(
        self,
        chunks: Chunks,
        query: Tensor,
        candidate: Tensor,
        row_weight: Tensor = None,
        wanted: Sequence[str] = ("query", "candidate"),
    ) -> None:
        self._chunks = chunks
        self._wanted = wanted
        self._query, self._candidate = query, candidate
        self._row_weight = self._weight_in_tables = row_weight
        self._scales: tuple[Tensor, Tensor] | None = None
        if chunks.scale is not None:
            self._dtype = standardize_dtype(chunks.queries[0].dtype)
            # float16 has no normal numbers below 6e-5, which is p of 16,384
            # equal candidates, and none above 65504.
            factor = 2.0**15 if self._dtype == "float16" else 1.0
            # The weights may leave its range; their ratios do not.
            largest = ops.max(ops.abs(row_weight))
            largest = ops.where(largest > 0.0, largest, ops.ones_like(largest))
            self._weight_in_tables = row_weight * (factor / largest)
            scale = largest / factor
            self._scales = scale, scale * chunks.scale

    def zeros(self) -> Sums:
        """Returns the initial sums."""
        return (
            [ops.zeros_like(q) for q in several_vectors.split(self._query)],
            [
                ops.zeros(ops.shape(c)[::-1], c.dtype)
                for c in several_vectors.split(self._candidate)
            ],
        )

    def add(
        self,
        sums: Sums,
        index: Size,
        shares: Sequence[Tensor],
        of_positives: Tensor = None,
    ) -> Sums:
        """Returns `sums` with the gradients of a chunk added.

        Args:
            sums: From `zeros`, or from the previous chunk.
            index: Number of the chunk.
            shares: P tensors (R, C), the gradients of the scores that each
                vector has won.
            of_positives: (R,), a part of the gradients of the positives'
                scores that is not in `shares`, if P is 1; or None.
        """
        chunks, (d_queries, d_candidates) = self._chunks, map(list, sums)
        start = chunks.start(index)
        weight: Tensor = None
        if self._row_weight is not None:
            weight = chunks.rows_of(self._weight_in_tables, start)[:, None]
        if self._scales is not None:
            # The weights are in the tables, which are rounded once, and not
            # in the vectors, which have half precision already.
            shares = [ops.cast(one * weight, self._dtype) for one in shares]
            if of_positives is not None:
                of_positives = of_positives * weight[:, 0]
            weight = None
        d_rows: dict[int, Tensor] = {}
        for share, (row, column) in zip(
            shares, several_vectors.pairs(d_queries, d_candidates)
        ):
            if "query" in self._wanted:
                new = backend.matmul_no_grad(share, chunks.candidates[column])
                d_rows[row] = d_rows[row] + new if row in d_rows else new
            if "candidate" not in self._wanted:
                continue
            part = chunks.rows_of(chunks.queries[row], start)
            if weight is not None:
                part = weight * part
            part = chunks.without_repeats(part, index)
            # (D, R) by (R, C): the long side last is faster under XLA.
            d_candidates[column] = backend.addmm(
                d_candidates[column], ops.transpose(part), share
            )
        if of_positives is not None and "query" in self._wanted:
            positives = chunks.rows_of(self._candidate, start)
            d_rows[0] = d_rows[0] + of_positives[:, None] * positives
        for row, rows in d_rows.items():
            if weight is not None:
                rows = weight * rows
            d_queries[row] = backend.update_rows(d_queries[row], start, rows)
        return d_queries, d_candidates

    def joined(
        self, sums: Sums, of_positives: Tensor = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the sums, in the shapes of query and candidate.

        Args:
            sums: From the last chunk.
            of_positives: (B,), those of all chunks; or None.
        """
        d_queries, d_candidates = sums
        d_candidates = [ops.transpose(d) for d in d_candidates]
        if self._scales is not None:
            d_queries = [d * self._scales[0] for d in d_queries]
            d_candidates = [d * self._scales[1] for d in d_candidates]
        if of_positives is not None and "candidate" in self._wanted:
            own = (self._row_weight * of_positives)[:, None] * self._query
            extra = ops.zeros_like(self._candidate[ops.shape(own)[0] :])
            d_candidates[0] = d_candidates[0] + ops.concatenate([own, extra])
        return (
            several_vectors.join(d_queries, self._query),
            several_vectors.join(d_candidates, self._candidate),
        )

"""The score matrix in chunks of rows, so that it is never kept as a whole."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from inbatch_neg.backends import backend
from inbatch_neg.softmax import several_vectors
from inbatch_neg.softmax.log_q_and_masks import (
    MASKED,
    Scoring,
    constant,
    left_out,
)
from inbatch_neg.types import Size, Tensor


class RowChunks:
    """B rows, cut into chunks of R.

    The last chunk ends with the last row, so if R does not divide B, it
    repeats rows of the previous chunk: see `without_repeats`.

    Args:
        rows: B, an int, or a scalar tensor if it is unknown.
        max_rows: The largest number of rows in a chunk, an int.

    Attributes:
        size: R, an int, or a scalar tensor if B is unknown.
        count: Number of chunks, likewise.
    """

    def __init__(self, rows: Size, max_rows: int) -> None:
        self._rows = rows
        self.size = _minimum(rows, max_rows)
        self.count = -(-rows // self.size)
        known = isinstance(rows, int)
        self._may_overlap = not known or rows % self.size != 0
        self._is_whole = known and self.size == rows

    def start(self, index: Size) -> Size:
        """Returns the first row of a chunk."""
        return _minimum(index * self.size, self._rows - self.size)

    def start_after(self, index: Size, results: Any) -> Size:
        """Returns the first row of a chunk, after the previous one is done.

        So only one chunk's tables are in memory at a time. Without it, a graph
        would start several chunks at once, since they hardly depend on each
        other.

        Args:
            index: Number of the chunk.
            results: Results of the previous chunk, in any structure, in the
                order in which they are computed.
        """
        last = keras.tree.flatten(results)[-1]
        return backend.with_control_dependency(self.start(index), last)

    def rows_of(self, tensor: Tensor, start: Size) -> Tensor:
        """Returns the chunk's rows of a tensor with B rows or more."""
        if self._is_whole and tensor.shape[0] == self._rows:
            return tensor
        return self._part(tensor, start, axis=0)

    def _part(self, tensor: Tensor, start: Size, axis: int) -> Tensor:
        """Returns R of the rows, or of the columns, of a tensor."""
        if isinstance(start, int):  # Python's slice is faster in eager mode
            before = (slice(None),) * axis
            return tensor[(*before, slice(start, start + self.size))]
        shape = list(ops.shape(tensor))
        starts = [0] * len(shape)
        starts[axis], shape[axis] = start, self.size
        return ops.slice(tensor, starts, shape)

    def row_numbers(self, start: Size) -> Tensor:
        """Returns (R,) int32, the numbers of the rows in the chunk."""
        return start + ops.arange(self.size, dtype="int32")

    def without_repeats(self, rows: Tensor, index: Size) -> Tensor:
        """Returns (R, D) rows of a chunk, 0 where they repeat the last one.

        For sums over all chunks, in which no row may count twice.
        """
        if not self._may_overlap:
            return rows
        new = self.row_numbers(self.start(index)) >= index * self.size
        return ops.where(new[:, None], rows, ops.zeros_like(rows))


class Chunks(RowChunks):
    """A batch of B rows and C candidates, cut into chunks of rows.

    Args:
        query: (B, D), already divided by the temperature. Either it or the
            candidates may have P vectors each, (B, P, D).
        candidate: (C, D), row i the positive of query i.
        scoring: The `Scoring` of the batch.
        max_rows: The largest number of rows in a chunk. None: a fast one.

    Attributes:
        queries: List of the matrices (B, D) to multiply, one for each vector
            of a row.
        candidates: The same for the candidates, (C, D).
        scale: Scalar that multiplies the products, if they are in half
            precision; else None.
    """

    def __init__(
        self,
        query: Tensor,
        candidate: Tensor,
        scoring: Scoring,
        max_rows: int | None = None,
    ) -> None:
        self.scale = None
        if scoring.half is not None:
            query, candidate, self.scale = scoring.half
        self.queries = several_vectors.split(query)
        self.candidates = several_vectors.split(candidate)
        self._scoring = scoring
        if max_rows is None:
            max_rows = _rows_of_fast_chunk(
                candidate, several_vectors.vectors_per_row(query, candidate)
            )
        super().__init__(ops.shape(query)[0], max_rows)

    def positives(self, table: Tensor, start: Size) -> Tensor:
        """Returns (R,), the entries of the positives in an (R, C) table."""
        if not self._is_whole:
            table = self._part(table, start, axis=1)
        return ops.diagonal(table)

    def scores(
        self,
        start: Size,
        include_positive: bool,
        matmul: Callable[[Tensor, Tensor], Tensor] = backend.matmul_no_grad,
    ) -> Tensor:
        """Returns (R, C) scores, `MASKED` where they are masked.

        Args:
            start: First row of the chunk.
            include_positive: Whether a row's own positive keeps its score; it
                is masked otherwise.
            matmul: The product of the backend, with or without gradient.
        """
        return self.scores_and_winners(start, include_positive, matmul)[0]

    def scores_and_winners(
        self,
        start: Size,
        include_positive: bool,
        matmul: Callable[[Tensor, Tensor], Tensor] = backend.matmul_no_grad,
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns the scores, and which vector won each: see `vectors`."""
        pairs = several_vectors.pairs(self.queries, self.candidates)
        products, better = several_vectors.first_best(
            matmul(
                self.rows_of(self.queries[row], start),
                ops.transpose(self.candidates[column]),
            )
            for row, column in pairs
        )
        return self._masked(products, start, include_positive), better

    def _masked(
        self, scores: Tensor, start: Size, include_positive: bool
    ) -> Tensor:
        """Returns (R, C) products with log q subtracted, and masked."""
        scoring = self._scoring
        if self.scale is not None:
            scores = scores * self.scale
        if scoring.column_bias is not None:
            scores = backend.add_columns(scores, scoring.column_bias)
        hit = left_out(
            [self.rows_of(row, start)[:, None] for row, _ in scoring.codes],
            [column for _, column in scoring.codes],
            scoring.masked_columns,
        )
        if hit is None and include_positive:
            return scores
        masked = constant(MASKED, scores.dtype)
        if hit is None:
            own = ops.broadcast_to(masked, (self.size,))
            return backend.update_diagonal(scores, start, own)
        if len(hit.shape) == 1:  # (R, C) of its own memory, which is written
            hit = ops.logical_or(hit, ops.zeros((self.size, 1), "bool"))
        # The ids of a row also match its own positive. In the bools, since
        # TensorFlow copies the table for it.
        own = ops.full((self.size,), not include_positive, "bool")
        hit = backend.update_diagonal(hit, start, own)
        return backend.fill(scores, hit, masked)


def _rows_of_fast_chunk(candidate: Tensor, count: int) -> int:
    """Returns how many rows make a fast chunk, with `count` vectors per row.

    With several vectors, a chunk has up to 2P tables: the products and the
    shares of the gradient.
    """
    tuning = backend.tuning(candidate)
    scores, fewest = tuning.chunk_scores, tuning.min_chunk_rows
    if tuning.wide_dimensions is not None:
        scores *= max((candidate.shape[-1] or 1) // tuning.wide_dimensions, 1)
    max_rows = tuning.max_chunk_rows
    if count > 1:
        scores, fewest = tuning.table_scores, max(fewest // 2, 1)
        max_rows = max(max_rows // 2, 1)
    candidates = candidate.shape[0]
    if candidates is None:
        return max_rows
    rows = max(scores // candidates, fewest)
    limit = max(tuning.max_chunk_scores // candidates, 1)
    return min(rows, max_rows, limit)


def _minimum(one: Size, other: Size) -> Size:
    if isinstance(one, int) and isinstance(other, int):
        return min(one, other)
    return ops.minimum(constant(one, "int32"), constant(other, "int32"))

"""The score matrix in chunks of rows, for walks that never keep it whole."""

from keras import ops

from inbatch_neg import engines
from inbatch_neg import scoring as scoring_lib

# Floats in one chunk of scores, and the rows that it may have. More rows make
# better matrix products and fewer updates of the candidates' gradient; a
# larger chunk falls out of the cache.
_CHUNK_FLOATS = 2**21
_FEWEST_ROWS = 128
_MOST_ROWS = 1024


class RowChunks:
    """B rows, cut into chunks of R.

    The last chunk ends with the last row, so where R does not divide B it
    begins among rows of the chunk before: see `is_new`.

    Args:
        rows: B, an int, or a scalar tensor if it is unknown.
        most: The most rows of a chunk, an int.

    Attributes:
        size: R, an int, or a scalar tensor if B is unknown.
        count: Number of chunks, likewise.
        may_overlap: Whether rows may be in two chunks.
    """

    def __init__(self, rows, most):
        self._rows = rows
        self.size = _minimum(rows, most)
        self.count = -(-rows // self.size)
        known = isinstance(rows, int)
        self.may_overlap = not known or rows % self.size != 0
        self._is_whole = known and self.size == rows

    def start(self, index):
        """Returns the first row of a chunk."""
        return _minimum(index * self.size, self._rows - self.size)

    def of(self, tensor, start):
        """Returns the rows in the chunk of a tensor with B rows or more."""
        if self._is_whole and tensor.shape[0] == self._rows:
            return tensor
        return self._part(tensor, start, axis=0)

    def _part(self, tensor, start, axis):
        """Returns R of the rows, or of the columns, of a tensor."""
        if isinstance(start, int):  # Python's own slice is faster on PyTorch
            before = (slice(None),) * axis
            return tensor[(*before, slice(start, start + self.size))]
        shape = list(ops.shape(tensor))
        starts = [0] * len(shape)
        starts[axis], shape[axis] = start, self.size
        return ops.slice(tensor, starts, shape)

    def numbers(self, start):
        """Returns (R,) int32, the numbers of the rows in the chunk."""
        return start + ops.arange(self.size, dtype="int32")

    def is_new(self, index):
        """Returns (R, 1) bools, False for the rows of the chunk before."""
        return self.numbers(self.start(index))[:, None] >= index * self.size


class Chunks(RowChunks):
    """A batch of B rows and C candidates, cut into chunks of rows.

    Args:
        query: (B, D), already divided by the temperature.
        candidate: (C, D), row i the positive of query i.
        scoring: The `Scoring` of the batch.
        most: The most rows of a chunk. As many as are fast, if None.
    """

    def __init__(self, query, candidate, scoring, most=None):
        self._query = query
        self._candidate = candidate
        self._scoring = scoring
        if most is None:
            most = _MOST_ROWS
            if candidate.shape[0] is not None:
                fitting = _CHUNK_FLOATS // candidate.shape[0]
                most = min(max(fitting, _FEWEST_ROWS), most)
                largest = engines.largest_chunk(candidate)
                most = min(max(largest // candidate.shape[0], 1), most)
        super().__init__(ops.shape(query)[0], most)

    def own_places(self, start):
        """Returns (R, 2) int32, the places of the positives in the chunk."""
        row = ops.arange(self.size, dtype="int32")
        return ops.stack([row, self.numbers(start)], axis=1)

    def own(self, table, start):
        """Returns (R,), the entries of the positives in an (R, C) table."""
        if not self._is_whole:
            table = self._part(table, start, axis=1)
        return ops.diagonal(table)

    def scores(self, start, own_too, product=engines.constant_product):
        """Returns (R, C) scores, `MASKED` where they are left out.

        Args:
            start: First row of the chunk.
            own_too: Whether a row's own positive has its score too, or is
                left out.
            product: Of `engines`, whether the scores are differentiated.
        """
        query = self.of(self._query, start)
        scores = product(query, ops.transpose(self._candidate))
        scoring = self._scoring
        if scoring.column_bias is not None:
            scores = scores + scoring.column_bias
        hit = scoring_lib.left_out(
            [self.of(row, start)[:, None] for row, _ in scoring.codes],
            [column for _, column in scoring.codes],
            scoring.masked_columns,
        )
        if hit is None and own_too:
            return scores
        masked = scoring_lib.constant(scoring_lib.MASKED, scores.dtype)
        if hit is None:
            own = ops.broadcast_to(masked, (self.size,))
            return ops.scatter_update(scores, self.own_places(start), own)
        # The rules leave out a row's own positive with its negatives.
        hit = ops.scatter_update(
            ops.broadcast_to(hit, ops.shape(scores)),
            self.own_places(start),
            ops.full((self.size,), not own_too, "bool"),
        )
        return ops.where(hit, masked, scores)


def _minimum(one, other):
    if isinstance(one, int) and isinstance(other, int):
        return min(one, other)
    return ops.minimum(one, other)

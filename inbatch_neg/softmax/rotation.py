"""Negatives by rotation: row i has the negatives (i + shift) mod B.

The N shifts are the same for all rows, so every candidate is a negative N
times.
"""

from collections.abc import Callable

from keras import ops

from inbatch_neg.backends import backend
from inbatch_neg.softmax.chunks import RowChunks
from inbatch_neg.softmax.log_q_and_masks import constant
from inbatch_neg.types import Size, Tensor

# A chunk of rows gathers up to this many floats, and has at least these rows.
_GATHERED_FLOATS = 2**20
_MIN_ROWS = 64

# Up to this many chunks are unrolled in the graph: a loop would copy the
# result in every iteration.
_MAX_UNROLLED = 32


def draw_shifts(num_negatives: int, rows: Size, uniform: Tensor) -> Tensor:
    """Returns (N,) int32 distinct shifts in 1..B-1, in ascending order.

    The k-th is drawn from [kB/N, (k + 1)B/N), without 0, so that the shifts
    are distinct and spread over the batch.

    Args:
        num_negatives: N, an int below B.
        rows: B, an int or a scalar tensor.
        uniform: (N,) floats drawn from [0, 1).
    """
    step = ops.arange(num_negatives + 1, dtype="int32")
    # The smallest integer in [kB/N, ...) is its ceiling. BN fits into int32
    # whenever a (B, N) matrix of logits fits into memory.
    edge = -(-(step * rows) // num_negatives)
    low = ops.maximum(edge[:-1], constant(1, "int32"))
    width = edge[1:] - low
    drawn = ops.cast(uniform * ops.cast(width, uniform.dtype), "int32")
    # `uniform * width` may round up to `width`.
    return low + ops.minimum(drawn, width - 1)


def rotated_scores(query: Tensor, candidate: Tensor, shifts: Tensor) -> Tensor:
    """Returns (B, N) dot products of row i and candidate (i + shift) mod G.

    Takes O((B + G)(D + N)) memory in both passes.

    Args:
        query: (B, D).
        candidate: (G, D), G of B or more.
        shifts: (N,) int32, any integers.
    """

    def scores_of(query: Tensor, candidate: Tensor) -> tuple[Tensor, Callable]:
        def dots(start: Size, part: RowChunks, others: Tensor) -> Tensor:
            return ops.einsum("rnd,rd->rn", others, part.rows_of(query, start))

        scores = _rotate(query, candidate, shifts, dots, ops.shape(shifts)[0])

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
            return _gradients(query, candidate, shifts, upstream)

        return scores, gradient

    return backend.custom_gradient(scores_of)(query, candidate)


def _gradients(
    query: Tensor, candidate: Tensor, shifts: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of `query` and `candidate` for (B, N) upstream."""
    count = ops.shape(shifts)[0]
    candidates = ops.shape(candidate)[0]
    # Candidates from B on belong to the rows of other replicas, which have no
    # weight here.
    extra = candidates - ops.shape(query)[0]
    padded = ops.pad(upstream, ((0, extra), (0, 0)))
    queries = ops.pad(query, ((0, extra), (0, 0)))

    def d_query(start: Size, part: RowChunks, others: Tensor) -> Tensor:
        return ops.einsum("rn,rnd->rd", part.rows_of(upstream, start), others)

    def d_candidate(start: Size, part: RowChunks, others: Tensor) -> Tensor:
        # Candidate j is a negative of row j - shift, with its upstream weight.
        rows = _around(part.row_numbers(start), -shifts, candidates)
        places = rows * count + ops.arange(count, dtype="int32")
        weights = ops.take(ops.reshape(padded, (-1,)), places)
        return ops.einsum("rn,rnd->rd", weights, others)

    dimensions = ops.shape(query)[1]
    return (
        _rotate(query, candidate, shifts, d_query, dimensions),
        _rotate(candidate, queries, -shifts, d_candidate, dimensions),
    )


def _rotate(
    tensor: Tensor,
    others: Tensor,
    shifts: Tensor,
    function: Callable[[Size, RowChunks, Tensor], Tensor],
    columns: Size,
) -> Tensor:
    """Returns (B, columns), computed from each row and N rows of `others`.

    Args:
        tensor: (B, D).
        others: (G, D); row i gets the rows (i + shifts) mod G.
        shifts: (N,) int32.
        function: Takes the first row of a chunk of R rows, the `RowChunks`
            and (R, N, D) rows of `others`; returns (R, columns).
        columns: The number of columns of the result.
    """
    rows, dimensions = ops.shape(tensor)
    max_rows = _MIN_ROWS
    if isinstance(shifts.shape[0], int):
        max_rows = max(
            _GATHERED_FLOATS // (shifts.shape[0] * dimensions), max_rows
        )

    def of_chunk(chunks: RowChunks, start: Size, shifts: Tensor) -> Tensor:
        places = _around(
            chunks.row_numbers(start), shifts, ops.shape(others)[0]
        )
        rotated = ops.take(others, places, axis=0)  # (R, N, D)
        return function(start, chunks, rotated)

    chunks = RowChunks(rows, max_rows)
    if isinstance(rows, int) and chunks.count <= _MAX_UNROLLED:
        parts: list[Tensor] = []
        for start in range(0, rows, max_rows):
            part = RowChunks(rows, min(max_rows, rows - start))
            if parts:
                # Only one chunk of vectors is in memory at a time.
                shifts = backend.with_control_dependency(shifts, parts[-1])
            parts.append(of_chunk(part, start, shifts))
        return ops.concatenate(parts) if parts[1:] else parts[0]

    def visit(index: Size, result: Tensor) -> Tensor:
        start = chunks.start(index)
        return backend.update_rows(
            result, start, of_chunk(chunks, start, shifts)
        )

    result = ops.zeros((rows, columns), tensor.dtype)
    return ops.fori_loop(0, chunks.count, visit, result)


def _around(numbers: Tensor, shifts: Tensor, count: Size) -> Tensor:
    """Returns (R, N) int32, each number plus each shift, modulo the count."""
    return (numbers[:, None] + shifts[None, :]) % count

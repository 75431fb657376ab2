"""Scores that are kept: all of them, or those of sampled negatives.

Column 0 is the positive, then the in-batch negatives by rotation (column j
is candidate (i + j) mod B), then the extra candidates.
"""

from keras import ops

from inbatch_neg import engines, hardest
from inbatch_neg import scoring as scoring_lib
from inbatch_neg.chunks import RowChunks

# Floats of the vectors that a chunk of rows meets, and its fewest rows.
_MET_FLOATS = 2**20
_MET_ROWS = 64

# Up to so many chunks stand one after the other in the graph: a loop would
# copy the result at every turn.
_UNROLLED = 32


def draw_shifts(num_negatives, rows, uniform):
    """Returns (N,) int32 distinct shifts in 1..B-1, in rising order.

    The k-th is drawn from [kB/N, (k + 1)B/N), without 0, so that the shifts
    are spread over the batch and never meet.

    Args:
        num_negatives: N, an int below B.
        rows: B, an int or a scalar tensor.
        uniform: (N,) floats drawn from [0, 1).
    """
    step = ops.arange(num_negatives + 1, dtype="int32")
    # The integers from kB/N up begin at its ceiling. B N stays below 2^31 in
    # int32 as long as a (B, N) matrix of logits fits any memory.
    edge = -(-(step * rows) // num_negatives)
    low = ops.maximum(edge[:-1], 1)
    width = edge[1:] - low
    drawn = ops.cast(uniform * ops.cast(width, uniform.dtype), "int32")
    # `uniform * width` may round up to `width`.
    return low + ops.minimum(drawn, width - 1)


def rotated_scores(query, candidate, shifts):
    """Returns (B, N) dot products of row i and candidate (i + shift) mod G.

    O((B + G)(D + N)) memory, in both passes.

    Args:
        query: (B, D).
        candidate: (G, D), G of B or more.
        shifts: (N,) int32, any integers.
    """
    count = ops.shape(shifts)[0]
    candidates = ops.shape(candidate)[0]

    @ops.custom_gradient
    def scores_of(query, candidate):
        def dots(start, part, met):
            return ops.einsum("rnd,rd->rn", met, part.of(query, start))

        scores = _meet(query, candidate, shifts, dots, count)

        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args

            def by_query(start, part, met):
                weights = part.of(upstream, start)
                return ops.einsum("rn,rnd->rd", weights, met)

            def by_candidate(start, part, met):
                # Candidate j was met by row j - shift, and has its weight.
                rows = _around(part.numbers(start), -shifts, candidates)
                places = rows * count + ops.arange(count, dtype="int32")
                weights = ops.take(ops.reshape(padded, (-1,)), places)
                return ops.einsum("rn,rnd->rd", weights, met)

            # Candidates that no row of this batch is the positive's row of
            # were met by rows elsewhere, which have no weight here.
            extra = candidates - ops.shape(query)[0]
            padded = ops.pad(upstream, ((0, extra), (0, 0)))
            queries = ops.pad(query, ((0, extra), (0, 0)))
            dimensions = ops.shape(query)[1]
            return (
                _meet(query, candidate, shifts, by_query, dimensions),
                _meet(candidate, queries, -shifts, by_candidate, dimensions),
            )

        return scores, gradient

    return scores_of(query, candidate)


def _meet(tensor, others, shifts, function, columns):
    """Returns (B, columns), what the rows of `tensor` make of those they meet.

    Args:
        tensor: (B, D).
        others: (G, D); row i meets the rows (i + shifts) mod G.
        shifts: (N,) int32.
        function: Takes the first row of a chunk of R rows, the `RowChunks`
            and the (R, N, D) rows that are met; returns (R, columns).
        columns: Of the result.
    """
    rows, dimensions = ops.shape(tensor)
    most = _MET_ROWS
    if isinstance(shifts.shape[0], int):
        most = max(_MET_FLOATS // (shifts.shape[0] * dimensions), most)

    def of_chunk(chunks, start, shifts):
        places = _around(chunks.numbers(start), shifts, ops.shape(others)[0])
        met = ops.take(others, places, axis=0)  # (R, N, D)
        return function(start, chunks, met)

    chunks = RowChunks(rows, most)
    if isinstance(rows, int) and chunks.count <= _UNROLLED:
        parts = []
        for start in range(0, rows, most):
            part = RowChunks(rows, min(most, rows - start))
            if parts:
                # One chunk of vectors in memory at a time.
                shifts = engines.after(shifts, parts[-1])
            parts.append(of_chunk(part, start, shifts))
        return ops.concatenate(parts) if parts[1:] else parts[0]

    def visit(index, result):
        start = chunks.start(index)
        return engines.put_rows(result, start, of_chunk(chunks, start, shifts))

    result = ops.zeros((rows, columns), tensor.dtype)
    return ops.fori_loop(0, chunks.count, visit, result)


def _around(numbers, shifts, count):
    """Returns (R, N) int32, the numbers and each shift, modulo the count."""
    return ops.mod(numbers[:, None] + shifts[None, :], count)


def sampled_logits(query, candidate, scoring, shifts, in_batch):
    """Returns (B, 1 + N + C - G) logits of negatives by rotation.

    Args:
        query: (B, D), already divided by the temperature.
        candidate: (C, D).
        scoring: The `Scoring` of the batch.
        shifts: (N,) int32 in 1..G-1.
        in_batch: Number of in-batch candidates G: B, or more where the batch
            goes on elsewhere.
    """
    rows = ops.shape(query)[0]
    scores = rotated_scores(query, candidate[:in_batch], shifts)
    places = ops.arange(rows, dtype="int32")[:, None] + shifts[None, :]
    places = ops.mod(places, in_batch)
    return _assemble(query, candidate, scoring, scores, places, in_batch)


def all_logits(query, candidate, scoring, in_batch):
    """Returns (B, C) logits of every negative, in rotation order."""
    rows = ops.shape(query)[0]
    places = ops.arange(in_batch, dtype="int32")
    places = places[:rows, None] + places[None, 1:]
    places = ops.mod(places, in_batch)  # (B, G - 1)
    scores = engines.product(query, ops.transpose(candidate[:in_batch]))
    scores = ops.take_along_axis(scores, places, axis=1)
    return _assemble(query, candidate, scoring, scores, places, in_batch)


def hardest_logits(query, candidate, scoring, count):
    """Returns (B, 1 + N) logits of the N highest-scoring negatives.

    The arguments are those of `hardest.hardest_scores`.
    """
    scores = hardest.hardest_scores(query, candidate, scoring, count)
    return ops.concatenate(
        [_own_scores(query, candidate, scoring), scores], axis=1
    )


def _own_scores(query, candidate, scoring):
    """Returns (B, 1) scores of each row's own positive."""
    positive = candidate[: ops.shape(query)[0]]
    own = ops.sum(query * positive, axis=1, keepdims=True)
    return own if scoring.own_bias is None else own + scoring.own_bias[:, None]


def _assemble(query, candidate, scoring, scores, places, in_batch):
    """Returns logits from the scores of the in-batch negatives at `places`."""
    row_codes = [row[:, None] for row, _ in scoring.codes]
    parts = [_own_scores(query, candidate, scoring)]
    for part, at in (
        (scores, lambda column: ops.take(column, places, axis=0)),
        (
            _extra_scores(query, candidate, in_batch),
            lambda column: column[in_batch:],
        ),
    ):
        if part is None:
            continue
        if scoring.column_bias is not None:
            part = part + at(scoring.column_bias)
        hit = scoring_lib.left_out(
            row_codes,
            [at(column) for _, column in scoring.codes],
            None
            if scoring.masked_columns is None
            else at(scoring.masked_columns),
        )
        if hit is not None:
            masked = scoring_lib.constant(scoring_lib.MASKED, part.dtype)
            part = ops.where(hit, masked, part)
        parts.append(part)
    return ops.concatenate(parts, axis=1)


def _extra_scores(query, candidate, in_batch):
    """Returns (B, C - G) scores of the extra candidates, None if none."""
    if isinstance(in_batch, int) and candidate.shape[0] == in_batch:
        return None
    extra = candidate[in_batch:]
    return engines.product(query, ops.transpose(extra))

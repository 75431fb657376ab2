"""Scores that are kept: all of them, or those of sampled negatives.

Column 0 is the positive, then the in-batch negatives by rotation (column j
is candidate (i + j) mod B), then the extra candidates.
"""

from keras import ops

from inbatch_neg import engines, hardest
from inbatch_neg import scoring as scoring_lib


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

    One rotation of the candidates is in memory at a time, in both passes.

    Args:
        query: (B, D).
        candidate: (G, D), G of B or more.
        shifts: (N,) int32, any integers.
    """
    shifts = ops.mod(shifts, ops.shape(candidate)[0])

    @ops.custom_gradient
    def scores_of(query, candidate):
        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            weights = ops.transpose(upstream)  # (N, B)
            return _rotated_sums(query, candidate, weights, shifts)

        return ops.transpose(_dots(query, candidate, shifts)), gradient

    return scores_of(query, candidate)


def _dots(query, candidate, shifts):
    """Returns (N, B) dot products with the candidates of each rotation."""
    shape = ops.shape(query)
    around = ops.concatenate([candidate, candidate[: shape[0]]])

    def visit(k, scores):
        rotated = ops.slice(around, (shifts[k], 0), shape)
        row = ops.sum(query * rotated, axis=1)
        return engines.put_rows(scores, k, row[None])

    count = ops.shape(shifts)[0]
    scores = ops.zeros((count, shape[0]), query.dtype)
    return ops.fori_loop(0, count, visit, scores)


def _rotated_sums(query, candidate, weights, shifts):
    """Returns the gradients of `_dots` for upstream `weights` (N, B)."""
    shape = ops.shape(query)
    rows = shape[0]
    around = ops.concatenate([candidate, candidate[:rows]])

    def visit(k, sums):
        d_query, d_around = sums
        start = (shifts[k], 0)
        weight = weights[k][:, None]
        rotated = ops.slice(around, start, shape)
        met = ops.slice(d_around, start, shape) + weight * query
        return (
            d_query + weight * rotated,
            engines.put_rows(d_around, shifts[k], met),
        )

    zeros = (ops.zeros_like(query), ops.zeros_like(around))
    d_query, d_around = ops.fori_loop(0, ops.shape(shifts)[0], visit, zeros)
    # The first B candidates stand at both ends of `around`.
    candidates = ops.shape(candidate)[0]
    first = d_around[:rows] + d_around[candidates:]
    return d_query, ops.concatenate([first, d_around[rows:candidates]])


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
    scores = ops.matmul(query, ops.transpose(candidate[:in_batch]))
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
    return ops.matmul(query, ops.transpose(extra))

"""The hardest negatives: each row's highest-scoring ones, chunk by chunk."""

from keras import ops

from inbatch_neg import engines
from inbatch_neg import scoring as scoring_lib
from inbatch_neg.chunks import Chunks


def hardest_scores(query, candidate, scoring, count):
    """Returns (B, N) scores of the N best negatives, in falling order.

    Of equal scores the candidate with the lower number comes first. If a row
    has fewer than N negatives that are not left out, it ends with `MASKED`.
    O((B + C)D + BN + RC) memory, in both passes.

    Args:
        query: (B, D), already divided by the temperature.
        candidate: (C, D).
        scoring: The `Scoring` of the batch.
        count: N, an int below C.
    """

    @ops.custom_gradient
    def scores_of(query, candidate):
        scores, places = _best(query, candidate, scoring, count)

        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            # What was left out is a constant.
            upstream = ops.where(
                scores > 0.5 * scoring_lib.MASKED,
                upstream,
                ops.zeros_like(upstream),
            )
            return _sums(query, candidate, upstream, places)

        return scores, gradient

    return scores_of(query, candidate)


def _best(query, candidate, scoring, count):
    """Returns (B, N) scores and int32 places among the candidates."""
    chunks = Chunks(query, candidate, scoring)
    rows = ops.shape(query)[0]

    def visit(index, found):
        start = chunks.start(index)
        scores, places = engines.top_k(
            chunks.scores(start, own_too=False), count
        )
        return (
            engines.put_rows(found[0], start, scores),
            engines.put_rows(found[1], start, places),
        )

    found = (
        ops.zeros((rows, count), query.dtype),
        ops.zeros((rows, count), "int32"),
    )
    return ops.fori_loop(0, chunks.count, visit, found)


def _sums(query, candidate, upstream, places):
    """Returns the gradients for `upstream` (B, N) of the scores at `places`.

    Each chunk spreads its N numbers a row over the C candidates, so that two
    matrix products do the rest: faster than to gather and to scatter vectors.
    """
    chunks = Chunks(query, candidate, scoring_lib.Scoring())
    candidates = ops.shape(candidate)[0]

    def visit(index, found):
        d_query, d_candidate = found
        start = chunks.start(index)
        row = ops.arange(chunks.size, dtype="int32")
        at = row[:, None] * candidates + chunks.of(places, start)
        weights = ops.scatter(
            ops.reshape(at, (-1, 1)),
            ops.reshape(chunks.of(upstream, start), (-1,)),
            (chunks.size * candidates,),
        )
        weights = ops.reshape(weights, (chunks.size, candidates))
        part = chunks.of(query, start)
        if chunks.may_overlap:  # rows must not count twice
            part = ops.where(chunks.is_new(index), part, ops.zeros_like(part))
        return (
            engines.put_rows(
                d_query, start, engines.constant_product(weights, candidate)
            ),
            engines.add_product(d_candidate, ops.transpose(part), weights),
        )

    found = (
        ops.zeros_like(query),
        ops.transpose(ops.zeros_like(candidate)),
    )
    d_query, d_candidate = ops.fori_loop(0, chunks.count, visit, found)
    return d_query, ops.transpose(d_candidate)

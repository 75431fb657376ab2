"""The hardest negatives: each row's highest-scoring ones, chunk by chunk."""

from collections.abc import Callable

from keras import ops

from inbatch_neg.backends import Tensor, backend
from inbatch_neg.backends.base import Size
from inbatch_neg.softmax.chunks import Chunks
from inbatch_neg.softmax.scoring import MASKED, Scoring


def hardest_scores(
    query: Tensor, candidate: Tensor, scoring: Scoring, count: int
) -> Tensor:
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

    def scores_of(query: Tensor, candidate: Tensor) -> tuple[Tensor, Callable]:
        scores, places = _best(query, candidate, scoring, count)

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
            # What was left out is a constant.
            upstream = ops.where(
                scores > 0.5 * MASKED, upstream, ops.zeros_like(upstream)
            )
            return _sums(query, candidate, upstream, places)

        return scores, gradient

    return backend.custom_gradient(scores_of)(query, candidate)


def _best(
    query: Tensor, candidate: Tensor, scoring: Scoring, count: int
) -> tuple[Tensor, Tensor]:
    """Returns (B, N) scores and int32 places among the candidates."""
    chunks = Chunks(query, candidate, scoring)
    rows = ops.shape(query)[0]

    def visit(
        index: Size, found: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        start = chunks.start(index)
        scores, places = backend.top_k(
            chunks.scores(start, include_positive=False), count
        )
        return (
            backend.update_rows(found[0], start, scores),
            backend.update_rows(found[1], start, places),
        )

    found = (
        ops.zeros((rows, count), query.dtype),
        ops.zeros((rows, count), "int32"),
    )
    return ops.fori_loop(0, chunks.count, visit, found)


def _sums(
    query: Tensor, candidate: Tensor, upstream: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the gradients for `upstream` (B, N) of the scores at `places`.

    Each chunk spreads its N numbers a row over the C candidates, so that two
    matrix products do the rest: faster than to gather and to scatter vectors.
    """
    chunks = Chunks(query, candidate, Scoring())
    candidates = ops.shape(candidate)[0]

    def visit(
        index: Size, found: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
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
            backend.update_rows(
                d_query, start, backend.matmul_no_grad(weights, candidate)
            ),
            backend.addmm(d_candidate, ops.transpose(part), weights),
        )

    found = (
        ops.zeros_like(query),
        ops.transpose(ops.zeros_like(candidate)),
    )
    d_query, d_candidate = ops.fori_loop(0, chunks.count, visit, found)
    return d_query, ops.transpose(d_candidate)

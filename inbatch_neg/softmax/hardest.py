"""The hardest negatives: the highest-scoring ones of each row, in chunks."""

from collections.abc import Callable, Sequence

from keras import ops

from inbatch_neg.backends import backend
from inbatch_neg.softmax import several_vectors
from inbatch_neg.softmax.chunks import Chunks
from inbatch_neg.softmax.gradients import Gradients
from inbatch_neg.softmax.log_q_and_masks import MASKED, Scoring
from inbatch_neg.types import Size, Tensor


def hardest_scores(
    query: Tensor, candidate: Tensor, scoring: Scoring, count: int
) -> Tensor:
    """Returns (B, N) scores of the N best negatives, in descending order.

    Among equal scores, the candidate with the lower index comes first. If a
    row has fewer than N unmasked negatives, it ends with `MASKED`. Takes
    O((B + C)D + BN + RC) memory in both passes.

    Args:
        query: (B, D), already divided by the temperature. Either it or the
            candidates may have P vectors each, (B, P, D).
        candidate: (C, D).
        scoring: The `Scoring` of the batch.
        count: N, an int below C.
    """

    def scores_of(query: Tensor, candidate: Tensor) -> tuple[Tensor, Callable]:
        scores, places, *better = _best(query, candidate, scoring, count)

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
            # Masked scores are constants.
            upstream = ops.where(
                scores > 0.5 * MASKED, upstream, ops.zeros_like(upstream)
            )
            shares = several_vectors.shares(upstream, better)
            return _sums(query, candidate, shares, places)

        return scores, gradient

    return backend.custom_gradient(scores_of)(query, candidate)


def _best(
    query: Tensor, candidate: Tensor, scoring: Scoring, count: int
) -> list[Tensor]:
    """Returns (B, N) scores, int32 indices of candidates, and winners.

    The winners of the scores are P - 1 tensors of bools: see `vectors`.
    """
    chunks = Chunks(query, candidate, scoring)
    shape = (ops.shape(query)[0], count)
    later = several_vectors.vectors_per_row(query, candidate) - 1

    def visit(index: Size, tables: list[Tensor]) -> list[Tensor]:
        start = chunks.start(index)
        scores, better = chunks.scores_and_winners(
            start, include_positive=False
        )
        best, places = backend.top_k(scores, count)
        won = [ops.take_along_axis(one, places, axis=1) for one in better]
        return [
            backend.update_rows(table, start, rows)
            for table, rows in zip(tables, [best, places, *won])
        ]

    tables = [
        ops.zeros(shape, query.dtype),
        ops.zeros(shape, "int32"),
        *[ops.zeros(shape, "bool") for _ in range(later)],
    ]
    return ops.fori_loop(0, chunks.count, visit, tables)


def _sums(
    query: Tensor,
    candidate: Tensor,
    shares: Sequence[Tensor],
    places: Tensor,
) -> tuple[Tensor, Tensor]:
    """Returns the gradients, from those of the (B, N) scores at `places`.

    Each chunk writes its N numbers per row into a table of C columns, so that
    two matrix products do the rest. This is faster than gathering and
    scattering vectors.
    """
    chunks = Chunks(query, candidate, Scoring())
    gradients = Gradients(chunks, query, candidate)
    candidates = ops.shape(candidate)[0]

    def visit(index: Size, sums: tuple) -> tuple:
        start = chunks.start(index)
        row = ops.arange(chunks.size, dtype="int32")
        at = row[:, None] * candidates + chunks.rows_of(places, start)
        at = ops.reshape(at, (-1, 1))

        def spread(share: Tensor) -> Tensor:
            values = ops.reshape(chunks.rows_of(share, start), (-1,))
            table = ops.scatter(at, values, (chunks.size * candidates,))
            return ops.reshape(table, (chunks.size, candidates))

        return gradients.add(sums, index, [spread(share) for share in shares])

    return gradients.joined(
        ops.fori_loop(0, chunks.count, visit, gradients.zeros())
    )

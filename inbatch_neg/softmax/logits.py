"""Logits: the scores of all negatives, or of chosen ones.

Column 0 is the positive, then come the in-batch negatives by rotation (column
j is candidate (i + j) mod B), then the extra candidates.
"""

from collections.abc import Callable

from keras import ops

from inbatch_neg.backends import backend
from inbatch_neg.softmax import several_vectors
from inbatch_neg.softmax.chunks import Chunks
from inbatch_neg.softmax.gradients import Gradients
from inbatch_neg.softmax.hardest import hardest_scores
from inbatch_neg.softmax.log_q_and_masks import (
    MASKED,
    Scoring,
    constant,
    left_out,
)
from inbatch_neg.softmax.rotation import rotated_scores
from inbatch_neg.types import Size, Tensor


def rotation_logits(
    query: Tensor,
    candidate: Tensor,
    scoring: Scoring,
    shifts: Tensor,
    in_batch: Size,
) -> Tensor:
    """Returns (B, 1 + N + C - G) logits of negatives by rotation.

    Args:
        query: (B, D), already divided by the temperature. Either it or the
            candidates may have P vectors each, (B, P, D).
        candidate: (C, D).
        scoring: The `Scoring` of the batch.
        shifts: (N,) int32 in 1..G-1.
        in_batch: Number of in-batch candidates G: B, or with replicas the
            rows of the global batch.
    """
    rows = ops.shape(query)[0]
    scores = several_vectors.best_of(
        [
            rotated_scores(one, other, shifts)
            for one, other in several_vectors.paired(
                query, candidate[:in_batch]
            )
        ]
    )
    places = ops.arange(rows, dtype="int32")[:, None] + shifts[None, :]
    places = places % in_batch
    return _assemble(query, candidate, scoring, scores, places, in_batch)


def all_logits(
    query: Tensor, candidate: Tensor, scoring: Scoring, in_batch: Size
) -> Tensor:
    """Returns (B, C) logits of every negative, in rotation order."""
    rows = ops.shape(query)[0]
    places = ops.arange(in_batch, dtype="int32")
    places = places[:rows, None] + places[None, 1:]
    places = places % in_batch  # (B, G - 1)
    scores = _all_products(query, candidate[:in_batch])
    scores = ops.take_along_axis(scores, places, axis=1)
    return _assemble(query, candidate, scoring, scores, places, in_batch)


def hardest_logits(
    query: Tensor, candidate: Tensor, scoring: Scoring, count: int
) -> Tensor:
    """Returns (B, 1 + N) logits of the N highest-scoring negatives.

    The arguments are those of `hardest.hardest_scores`.
    """
    scores = hardest_scores(query, candidate, scoring, count)
    return ops.concatenate(
        [_positive_scores(query, candidate, scoring), scores], axis=1
    )


def _positive_scores(
    query: Tensor, candidate: Tensor, scoring: Scoring
) -> Tensor:
    """Returns (B, 1) scores of the positives."""
    positive = candidate[: ops.shape(query)[0]]
    scores = several_vectors.best_of(
        [
            ops.sum(one * other, axis=1, keepdims=True)
            for one, other in several_vectors.paired(query, positive)
        ]
    )
    if scoring.positive_bias is None:
        return scores
    return scores + scoring.positive_bias[:, None]


def _assemble(
    query: Tensor,
    candidate: Tensor,
    scoring: Scoring,
    scores: Tensor,
    places: Tensor,
    in_batch: Size,
) -> Tensor:
    """Returns logits from the scores of the in-batch negatives at `places`."""
    row_codes = [row[:, None] for row, _ in scoring.codes]
    parts = [_positive_scores(query, candidate, scoring)]
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
        hit = left_out(
            row_codes,
            [at(column) for _, column in scoring.codes],
            None
            if scoring.masked_columns is None
            else at(scoring.masked_columns),
        )
        if hit is not None:
            masked = constant(MASKED, part.dtype)
            part = ops.where(hit, masked, part)
        parts.append(part)
    return ops.concatenate(parts, axis=1)


def _extra_scores(query: Tensor, candidate: Tensor, in_batch: Size) -> Tensor:
    """Returns (B, C - G) scores of the extra candidates, None if none."""
    if isinstance(in_batch, int) and candidate.shape[0] == in_batch:
        return None
    return _all_products(query, candidate[in_batch:])


def _all_products(query: Tensor, candidate: Tensor) -> Tensor:
    """Returns (B, C) products, the best where one side has several vectors.

    Neither this nor the gradient keeps P such tables.
    """
    if several_vectors.vectors_per_row(query, candidate) == 1:
        return backend.matmul(query, ops.transpose(candidate))

    def best_products(
        query: Tensor, candidate: Tensor
    ) -> tuple[Tensor, Callable]:
        chunks = Chunks(query, candidate, Scoring())
        gradients = Gradients(chunks, query, candidate)

        def visit(index: Size, table: Tensor) -> Tensor:
            start = chunks.start_after(index, table)
            scores = chunks.scores(start, include_positive=True)
            return backend.update_rows(table, start, scores)

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
            def visit(index: Size, sums: tuple) -> tuple:
                start = chunks.start_after(index, sums)
                _, better = chunks.scores_and_winners(
                    start, include_positive=True
                )
                part = chunks.rows_of(upstream, start)
                shares = several_vectors.shares(part, better)
                return gradients.add(sums, index, shares)

            return gradients.joined(
                ops.fori_loop(0, chunks.count, visit, gradients.zeros())
            )

        shape = (ops.shape(query)[0], ops.shape(candidate)[0])
        table = ops.zeros(shape, query.dtype)
        return ops.fori_loop(0, chunks.count, visit, table), gradient

    return backend.custom_gradient(best_products)(query, candidate)

"""Exact in-batch softmax losses and gradients in O(B) memory.

The B x C matrix of scores is never kept. For each chunk of R rows:

1. scores   s_ij = <query_i, candidate_j> / temperature - log q_j  (`chunks`),
   masked where `scoring` says so;
2. softmax  p_ij = exp(s_ij - m_i) / z_i,  z_i = sum_j exp(s_ij - m_i),
   where m_i is the largest unmasked score of the row;
3. loss_i = -log p_ii, from the probability of the row's positive;
4. the gradient of the scores, p_ij - 1 for the positive and p_ij for the
   others. It is exactly 0 for a row without negatives, whose p_ii is 1. Where
   `_of_positives` says so, the positive's part is added after step 5;
5. its products with candidates and queries, the rows weighted by w_i, are
   added to the sums (`gradients`):

       d query_i = w_i sum_j (p_ij - [i = j]) c_j
       d cand_j  = sum_i w_i (p_ij - [i = j]) q_i

This takes 6BCD flops, for the three matrix products that any exact gradient
needs, and O((B + C)D + RC) floats. Several vectors per row, and products in
half precision, differ only in what is multiplied in 1 and 5.

The idea of recomputing scores in chunks goes back to Chen et al. 2016 (arXiv
1604.06174) and is used for the logits of language models by Wijmans et al.
2024 (arXiv 2411.09009).

A small batch has a small matrix. It is kept, since the backend's own
derivative of the same losses is then faster.
"""

from collections.abc import Callable, Sequence

from keras import ops

from inbatch_neg.backends import backend
from inbatch_neg.softmax import several_vectors
from inbatch_neg.softmax.batch import Batch
from inbatch_neg.softmax.chunks import Chunks
from inbatch_neg.softmax.gradients import Gradients
from inbatch_neg.softmax.log_q_and_masks import (
    HalfVectors,
    Scoring,
    compute_dtype,
    half_vectors,
    make_scoring,
)
from inbatch_neg.types import Size, Tensor

_EVERYTHING = ("loss", "query", "candidate")

# Below this, the probability of a row's positive may be a denormal number of
# float32, which has lost bits.
_SMALL_PROBABILITY = 1e-30


def batch_loss(
    batch: Batch,
    temperature: float | Tensor,
    with_gradients: bool,
    product_dtype: str | None = None,
) -> Tensor:
    """Returns the (B,) losses of a checked batch.

    Args:
        batch: The tensors of `ops.in_batch_softmax_loss`.
        temperature: Divides the scores.
        with_gradients: As in `softmax_loss`.
        product_dtype: As `log_q_and_masks.product_dtype` returns it for the
            vectors of the towers.
    """
    batch = batch.cast(compute_dtype(batch.query, batch.candidate))
    scoring = make_scoring(batch)
    query, candidate = batch.query, batch.candidate
    if not (isinstance(temperature, float) and temperature == 1.0):
        query = query / temperature
    row_weight = batch.sample_weight
    if row_weight is not None:
        row_weight = ops.cast(row_weight, query.dtype)
    if _is_dense(query, candidate):
        losses = _dense_loss(query, candidate, scoring)
        return losses if row_weight is None else losses * row_weight
    if row_weight is None:
        row_weight = ops.ones((batch.rows,), query.dtype)
    if product_dtype is not None:
        half = half_vectors(batch, product_dtype, temperature)
        scoring = scoring._replace(half=half)
    return softmax_loss(query, candidate, row_weight, scoring, with_gradients)


def softmax_loss(
    query: Tensor,
    candidate: Tensor,
    row_weight: Tensor,
    scoring: Scoring,
    with_gradients: bool,
) -> Tensor:
    """Returns (B,) weighted losses, differentiable by the first three.

    Args:
        query: (B, D), already divided by the temperature. Either it or the
            candidates may have P vectors each, (B, P, D).
        candidate: (C, D), row i the positive of query i.
        row_weight: (B,) multiplies the loss of each row.
        scoring: The `Scoring` of the batch.
        with_gradients: Whether to compute the gradients in the same pass over
            the chunks (6BCD flops in all). Without them it takes 2BCD flops,
            and 6BCD more if the gradients are needed after all.
    """
    # Arguments, since JAX differentiates some functions only if a custom
    # gradient closes over no intermediate result.
    halves = scoring.half or ()

    def weighted_loss(
        query: Tensor, candidate: Tensor, row_weight: Tensor, *halves: Tensor
    ) -> tuple[Tensor, Callable]:
        half = HalfVectors(*halves) if halves else None
        with_half = scoring._replace(half=half)

        def compute(wanted: Sequence[str], row_weight: Tensor) -> dict:
            return _over_chunks(query, candidate, row_weight, with_half, wanted)

        results = compute(
            _EVERYTHING if with_gradients else ("loss",), row_weight
        )

        def gradient(upstream: Tensor) -> tuple[Tensor, ...]:
            gradients = _chain(upstream, results, row_weight, compute)
            return *gradients, *map(ops.zeros_like, halves)

        return results["loss"] * row_weight, gradient

    return backend.custom_gradient(weighted_loss)(
        query, candidate, row_weight, *halves
    )


def _is_dense(query: Tensor, candidate: Tensor) -> bool:
    rows, candidates = query.shape[0], candidate.shape[0]
    if rows is None or candidates is None:
        return False
    if several_vectors.vectors_per_row(query, candidate) > 1:
        # The backends' own derivatives split the gradient among equal vectors.
        return False
    return rows * candidates <= backend.tuning(candidate).max_dense_scores


def _dense_loss(query: Tensor, candidate: Tensor, scoring: Scoring) -> Tensor:
    """Returns (B,) unweighted losses, differentiated by the backend."""
    chunks = Chunks(query, candidate, scoring, max_rows=query.shape[0])
    scores = chunks.scores(0, include_positive=True, matmul=backend.matmul)
    return backend.cross_entropy(scores)


def _chain(
    upstream: Tensor,
    results: dict[str, Tensor],
    row_weight: Tensor,
    compute: Callable[[Sequence[str], Tensor], dict[str, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients, times the upstream gradient of each row."""
    d_weight = results["loss"] * upstream
    if "query" not in results:
        results = compute(("query", "candidate"), row_weight * upstream)
        return results["query"], results["candidate"], d_weight
    # The loss is nearly always a mean or a sum, so that every row has the same
    # upstream gradient. Then the candidates' gradient only needs scaling.
    d_candidate = ops.cond(
        ops.all(ops.equal(upstream, upstream[:1])),
        lambda: results["candidate"] * upstream[0],
        lambda: compute(("candidate",), row_weight * upstream)["candidate"],
    )
    d_query = results["query"]
    by_row = ops.reshape(upstream, (-1, *[1] * (len(d_query.shape) - 1)))
    return d_query * by_row, d_candidate, d_weight


def _over_chunks(
    query: Tensor,
    candidate: Tensor,
    row_weight: Tensor,
    scoring: Scoring,
    wanted: Sequence[str],
) -> dict[str, Tensor]:
    """Returns a dict of the `wanted` results: see above for the steps.

    Args:
        query: (B, D), or (B, P, D).
        candidate: (C, D), or (C, P, D).
        row_weight: (B,).
        scoring: The `Scoring` of the batch.
        wanted: Some of "loss", for the (B,) unweighted losses, and "query"
            and "candidate", for the weighted gradients.
    """
    chunks = Chunks(query, candidate, scoring)
    gradients = Gradients(chunks, query, candidate, row_weight, wanted)
    differentiate = "query" in wanted or "candidate" in wanted

    def visit(index: Size, results: dict) -> dict:
        start = chunks.start_after(index, results)
        scores, better = chunks.scores_and_winners(start, include_positive=True)
        # One fused pass on every backend. Its maximum is over the unmasked
        # scores, so a large masked score cannot make the others underflow.
        probability = ops.softmax(scores)  # p, (R, C)
        del scores  # in eager mode, its memory serves the products
        positive = chunks.positives(probability, start)
        results = dict(results)
        results["positive_probability"] = backend.update_rows(
            results["positive_probability"], start, positive
        )
        if differentiate:
            of_positives = _of_positives(chunks, positive)
            if of_positives is None:
                probability = backend.update_diagonal(
                    probability, start, positive - 1.0
                )
            elif chunks.scale is not None:
                probability = backend.update_diagonal(
                    probability, start, ops.zeros_like(positive)
                )
            shares = several_vectors.shares(probability, better)
            results["sums"] = gradients.add(
                results["sums"], index, shares, of_positives
            )
        return results

    results: dict = {"positive_probability": ops.zeros_like(row_weight)}
    if differentiate:
        results["sums"] = gradients.zeros()
    results = dict(ops.fori_loop(0, chunks.count, visit, results))
    positive = results.pop("positive_probability")
    if differentiate:
        sums = gradients.joined(
            results.pop("sums"), _of_positives(chunks, positive)
        )
        results["query"], results["candidate"] = sums
    if "loss" in wanted:
        results["loss"] = _losses(positive, chunks)
    return results


def _of_positives(chunks: Chunks, probability: Tensor) -> Tensor:
    """Returns the part of p - 1 of positives that stays out of the tables.

    Writing into a table copies it on TensorFlow, so with one vector per row
    the -1 stays out. In half precision all of p - 1 does, the largest entry,
    which would be rounded. With several vectors it belongs to one of them, and
    is in its table: None.

    Args:
        chunks: The chunks of the batch.
        probability: (B,) or (R,), of the positives.
    """
    if len(chunks.queries) + len(chunks.candidates) > 2:
        return None
    if chunks.scale is None:
        return -ops.ones_like(probability)
    return probability - 1.0


def _losses(positive_probability: Tensor, chunks: Chunks) -> Tensor:
    """Returns (B,) losses from the probabilities of the positives.

    The `cond` is outside of the loop: inside, it would keep the scores alive
    and prevent the in-place softmax.
    """
    return ops.cond(
        ops.all(positive_probability > _SMALL_PROBABILITY),
        # Not -log(p): a loss of 0 would be -0.
        lambda: ops.log(1.0 / positive_probability),
        lambda: _losses_by_scores(chunks, positive_probability),
    )


def _losses_by_scores(chunks: Chunks, like: Tensor) -> Tensor:
    """Returns (B,) losses, exact even where the probability underflows.

    Args:
        chunks: The chunks of the batch.
        like: (B,), in the dtype of the losses.
    """

    def visit(index: Size, losses: Tensor) -> Tensor:
        start = chunks.start_after(index, losses)
        scores = chunks.scores(start, include_positive=True)
        largest = ops.max(scores, axis=1)
        total = ops.sum(ops.exp(scores - largest[:, None]), axis=1)
        # The difference first: added to a large score, the logarithm would
        # be rounded.
        loss = (largest - chunks.positives(scores, start)) + ops.log(total)
        return backend.update_rows(losses, start, loss)

    return ops.fori_loop(0, chunks.count, visit, ops.zeros_like(like))

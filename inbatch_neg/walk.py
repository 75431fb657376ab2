"""The walk: exact in-batch softmax losses and gradients in O(B) memory.

The B x C matrix of scores is never kept. The walk goes over the rows in
chunks of R; for each it computes R x C scores, their softmax, and at once
what they add to the gradients:

    loss_i    = log z_i + m_i - s_ii       z_i = sum_j exp(s_ij - m_i)
    d query_i = sum_j p_ij c_j - c_i       p_ij = exp(s_ij - m_i) / z_i
    d cand_j  = sum_i w_i p_ij q_i - w_j q_j

with m_i the largest score of row i that takes part, and w_i the weight of the
row. 6BCD flops in all, the three matrix products that any exact gradient
needs, and O((B + C)D + RC) floats. The idea of recomputing scores in chunks
goes back to Chen et al. 2016 (arXiv 1604.06174) and is used for the logits of
language models by Wijmans et al. 2024 (arXiv 2411.09009).
"""

from keras import ops

from inbatch_neg import scoring as scoring_lib

# Floats in one chunk of scores, and the rows that it may have. More rows make
# better matrix products and fewer updates of the candidates' gradient; a
# larger chunk falls out of the cache.
_CHUNK_FLOATS = 2**24
_FEWEST_ROWS = 128
_MOST_ROWS = 512


def batch_loss(
    query,
    candidate,
    candidate_ids,
    query_ids,
    candidate_sampling_probability,
    candidate_mask,
    sample_weight,
    temperature,
    with_gradients,
):
    """Returns the (B,) losses of checked tensors.

    The arguments are those of `ops.in_batch_softmax_loss`, and
    `with_gradients` as in `softmax_loss`.
    """
    dtype = scoring_lib.compute_dtype(query, candidate)
    query = ops.cast(query, dtype)
    candidate = ops.cast(candidate, dtype)
    rows = ops.shape(query)[0]
    scoring = scoring_lib.make(
        rows,
        ops.shape(candidate)[0],
        dtype,
        candidate_ids=candidate_ids,
        query_ids=query_ids,
        candidate_sampling_probability=candidate_sampling_probability,
        candidate_mask=candidate_mask,
    )
    if sample_weight is None:
        row_weight = ops.ones((rows,), dtype)
    else:
        row_weight = ops.cast(sample_weight, dtype)
    return softmax_loss(
        query / temperature, candidate, row_weight, scoring, with_gradients
    )


def softmax_loss(query, candidate, row_weight, scoring, with_gradients):
    """Returns (B,) weighted losses, differentiable by the first three.

    Args:
        query: (B, D), already divided by the temperature.
        candidate: (C, D), row i the positive of query i.
        row_weight: (B,) multiplies the loss of each row.
        scoring: The `Scoring` of the batch.
        with_gradients: Whether the gradients are computed in the same walk
            (6BCD flops in all). If not, it is 2BCD, and 6BCD more if they
            are asked for after all.
    """

    @ops.custom_gradient
    def weighted_loss(query, candidate, row_weight):
        losses, gradients = _walk(
            query, candidate, row_weight, scoring, with_gradients
        )

        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            return _chain(
                upstream,
                losses,
                gradients,
                query,
                candidate,
                row_weight,
                scoring,
            )

        return losses * row_weight, gradient

    return weighted_loss(query, candidate, row_weight)


def _chain(upstream, losses, gradients, query, candidate, row_weight, scoring):
    """Returns the gradients, times the upstream gradient of each row."""

    def walk_again():
        _, (d_query, d_candidate) = _walk(
            query, candidate, row_weight * upstream, scoring, True
        )
        return d_query, d_candidate

    if gradients is None:
        d_query, d_candidate = walk_again()
    else:
        # Nearly always the loss is a mean or a sum, and every row has the
        # same upstream gradient: then the candidates' is only scaled.
        d_query, d_candidate = ops.cond(
            ops.all(ops.equal(upstream, upstream[:1])),
            lambda: (
                gradients[0] * upstream[:1, None],
                gradients[1] * upstream[:1, None],
            ),
            walk_again,
        )
    return d_query, d_candidate, losses * upstream


def _walk(query, candidate, row_weight, scoring, with_gradients):
    """Returns (B,) unweighted losses, and both weighted gradients or None."""
    rows, dimensions = ops.shape(query)
    chunk_rows = _chunk_rows(query, candidate)
    chunks = -(-rows // chunk_rows)
    dtype = query.dtype
    columns = [column for _, column in scoring.codes]

    def of_chunk(tensor, start):
        if tensor is None or isinstance(tensor, bool):
            return tensor
        rest = ops.shape(tensor)[1:]
        return ops.slice(
            tensor, (start,) + (0,) * len(rest), (chunk_rows, *rest)
        )

    def visit(index, carry):
        # The last chunk ends with the last row, so it may begin among rows
        # that were already visited. Their losses come out the same; what they
        # add to the candidates' gradient must not count twice.
        first_new = index * chunk_rows
        start = _minimum(first_new, rows - chunk_rows)
        chunk_query = of_chunk(query, start)
        positive = of_chunk(candidate, start)
        own_bias = of_chunk(scoring.own_bias, start)
        own_left_out = of_chunk(scoring.own_left_out, start)
        codes = [of_chunk(row, start)[:, None] for row, _ in scoring.codes]

        scores = ops.matmul(chunk_query, ops.transpose(candidate))  # (R, C)
        if scoring.column_bias is not None:
            scores = scores + scoring.column_bias
        if codes:
            hit = scoring_lib.left_out(codes, columns)
            scores = ops.where(hit, scoring_lib.MASKED, scores)
        own = ops.sum(chunk_query * positive, axis=1, keepdims=True)
        if own_bias is not None:
            own = own + own_bias[:, None]

        # The maximum is over the scores that take part, so that a large one
        # that was left out cannot make the others underflow.
        most = ops.maximum(ops.max(scores, axis=1, keepdims=True), own)
        weights = ops.exp(scores - most)  # (R, C)
        own_weight = ops.exp(own - most)
        if isinstance(own_left_out, bool):
            own_weight = own_weight if own_left_out else 0.0 * own_weight
        else:
            own_weight = ops.where(own_left_out[:, None], own_weight, 0.0)
        total = ops.sum(weights, axis=1, keepdims=True) + own_weight
        loss = ops.log(total) + most - own

        losses = ops.slice_update(carry[0], (start,), loss[:, 0])
        if not with_gradients:
            return (losses,)
        _, d_query, d_candidate, pulls = carry
        row_weights = of_chunk(row_weight, start)[:, None]
        # What pulls a row and its positive together; for the rest of the
        # positive's weight see `weights`.
        pull = row_weights * (1.0 - own_weight / total)
        chunk_d_query = (
            ops.matmul(weights, candidate) * (row_weights / total)
            - pull * positive
        )
        new = start + ops.arange(chunk_rows) >= first_new
        per_weight = ops.where(new[:, None], row_weights / total, 0.0)
        # (D, R) by (R, C): the long side last is 2 times as fast on JAX.
        d_candidate = d_candidate + ops.matmul(
            ops.transpose(chunk_query * per_weight), weights
        )
        return (
            losses,
            ops.slice_update(d_query, (start, 0), chunk_d_query),
            d_candidate,
            ops.slice_update(pulls, (start, 0), pull),
        )

    candidates = ops.shape(candidate)[0]
    carry = (ops.zeros((rows,), dtype),)
    if with_gradients:
        carry += (
            ops.zeros((rows, dimensions), dtype),
            ops.zeros((dimensions, candidates), dtype),
            ops.zeros((rows, 1), dtype),
        )
    carry = ops.fori_loop(0, chunks, visit, carry)
    if not with_gradients:
        return carry[0], None
    losses, d_query, d_candidate, pulls = carry
    # A row's positive is the candidate of its own number.
    extra = ops.zeros((candidates - rows, dimensions), dtype)
    d_candidate = ops.transpose(d_candidate) - ops.concatenate(
        [pulls * query, extra]
    )
    return losses, (d_query, d_candidate)


def _chunk_rows(query, candidate):
    """Rows in a chunk: an int, or a scalar tensor if B is unknown."""
    rows = ops.shape(query)[0]
    candidates = candidate.shape[0]
    wanted = _MOST_ROWS
    if candidates is not None:
        wanted = min(max(_CHUNK_FLOATS // candidates, _FEWEST_ROWS), wanted)
    return _minimum(rows, wanted)


def _minimum(one, other):
    if isinstance(one, int) and isinstance(other, int):
        return min(one, other)
    return ops.minimum(one, other)

"""The walk: exact in-batch softmax losses and gradients in O(B) memory.

The B x C matrix of scores is never kept. The walk goes over the rows in
chunks of R; for each it computes R x C scores, their softmax, and at once
what they add to the gradients:

    p_ij      = exp(s_ij - m_i) / z_i          z_i = sum_j exp(s_ij - m_i)
    loss_i    = -log p_ii = log z_i + m_i - s_ii
    d query_i = sum_j p_ij c_j - c_i
    d cand_j  = sum_i w_i p_ij q_i - w_j q_j

with m_i the largest score of row i that takes part, and w_i the weight of the
row. 6BCD flops in all, the three matrix products that any exact gradient
needs, and O((B + C)D + RC) floats. The idea of recomputing scores in chunks
goes back to Chen et al. 2016 (arXiv 1604.06174) and is used for the logits of
language models by Wijmans et al. 2024 (arXiv 2411.09009).

A small batch has a small matrix: there it is kept, and the engine's own
derivative of the same losses is faster than the walk.
"""

from keras import ops

from inbatch_neg import engines
from inbatch_neg import scoring as scoring_lib
from inbatch_neg.chunks import Chunks

_EVERYTHING = ("loss", "query", "candidate")

# Below this the share of a row's positive may have underflowed (float32).
_SMALL_SHARE = 1e-30


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
    query = query / temperature
    row_weight = sample_weight
    if row_weight is not None:
        row_weight = ops.cast(row_weight, dtype)
    if _is_small(query, candidate):
        losses = _whole_loss(query, candidate, scoring)
        return losses if row_weight is None else losses * row_weight
    if row_weight is None:
        row_weight = ops.ones((rows,), dtype)
    return softmax_loss(query, candidate, row_weight, scoring, with_gradients)


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
        def walk(wanted, row_weight):
            return _walk(query, candidate, row_weight, scoring, wanted)

        wanted = _EVERYTHING if with_gradients else ("loss",)
        found = walk(wanted, row_weight)

        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            return _chain(upstream, found, row_weight, walk)

        return found["loss"] * row_weight, gradient

    return weighted_loss(query, candidate, row_weight)


def _is_small(query, candidate):
    sizes = query.shape[0], candidate.shape[0]
    return None not in sizes and (
        sizes[0] * sizes[1] <= engines.largest_small_table()
    )


def _whole_loss(query, candidate, scoring):
    """Returns (B,) unweighted losses, differentiated by the engine."""
    chunks = Chunks(query, candidate, scoring, most=query.shape[0])
    scores = chunks.scores(0, own_too=True, product=engines.product)
    # From 0, or a loss of 0 would be -0. (Graphs of TensorFlow negate it.)
    return 0.0 - chunks.own(ops.log_softmax(scores), 0)


def _chain(upstream, found, row_weight, walk):
    """Returns the gradients, times the upstream gradient of each row."""
    if "query" not in found:
        found = {**found, **walk(("query", "candidate"), row_weight * upstream)}
        return found["query"], found["candidate"], found["loss"] * upstream
    # Nearly always the loss is a mean or a sum, and every row has the same
    # upstream gradient: then the candidates' gradient is only scaled.
    d_candidate = ops.cond(
        ops.all(ops.equal(upstream, upstream[:1])),
        lambda: found["candidate"] * upstream[0],
        lambda: walk(("candidate",), row_weight * upstream)["candidate"],
    )
    return (
        found["query"] * upstream[:, None],
        d_candidate,
        found["loss"] * upstream,
    )


def _losses_by_scores(chunks, own_share):
    """Returns (B,) losses, also of rows whose own share has underflowed."""

    def visit(index, losses):
        start = chunks.start(index)
        scores = chunks.scores(start, own_too=True)
        largest = ops.max(scores, axis=1)
        total = ops.sum(ops.exp(scores - largest[:, None]), axis=1)
        # The difference first: beside a large score, the logarithm would be
        # rounded.
        loss = (largest - chunks.own(scores, start)) + ops.log(total)
        return engines.put_rows(losses, start, loss)

    return ops.fori_loop(0, chunks.count, visit, ops.zeros_like(own_share))


def _walk(query, candidate, row_weight, scoring, wanted):
    """Returns a dict of what is wanted.

    Args:
        query: (B, D).
        candidate: (C, D).
        row_weight: (B,).
        scoring: The `Scoring` of the batch.
        wanted: Some of "loss", the (B,) unweighted losses, "query" and
            "candidate", the weighted gradients.
    """
    rows = ops.shape(query)[0]
    chunks = Chunks(query, candidate, scoring)
    weighted = row_weight[:, None] * query

    def visit(index, found):
        start = chunks.start(index)
        scores = chunks.scores(start, own_too=True)  # (R, C)

        # One fused pass on every engine, and its maximum is over the scores
        # that take part: a large one that was left out cannot make the
        # others underflow.
        share = ops.softmax(scores)  # p, (R, C)
        found = dict(found)
        if "loss" in wanted:
            own = chunks.own(share, start)
            found["own_share"] = engines.put_rows(
                found["own_share"], start, own
            )
        weight = chunks.of(row_weight, start)[:, None]
        if "query" in wanted:
            positive = chunks.of(candidate, start)
            update = weight * (
                engines.constant_product(share, candidate) - positive
            )
            found["query"] = engines.put_rows(found["query"], start, update)
        if "candidate" in wanted:
            pull = chunks.of(weighted, start)
            if chunks.may_overlap:  # rows must not count twice
                new = chunks.is_new(index)
                pull = ops.where(new, pull, ops.zeros_like(pull))
            # (D, R) by (R, C): the long side last is twice as fast on JAX.
            found["candidate"] = engines.add_product(
                found["candidate"], ops.transpose(pull), share
            )
        return found

    found = {}
    if "loss" in wanted:
        found["own_share"] = ops.zeros((rows,), query.dtype)
    if "query" in wanted:
        found["query"] = ops.zeros_like(query)
    if "candidate" in wanted:
        # A row's positive is the candidate of its own number. A row without
        # negatives has p = 1 there, and the difference is 0: exactly, but for
        # one chunk on JAX, which fuses product and difference (1 ulp then).
        # Not at the end: XLA would then turn a lone product around.
        turned = ops.transpose(weighted)
        extra = ops.zeros_like(ops.transpose(candidate[rows:]))
        found["candidate"] = -ops.concatenate([turned, extra], axis=1)
    found = dict(ops.fori_loop(0, chunks.count, visit, found))
    if "loss" in wanted:
        # Not in the loop: a branch there holds on to the table of scores,
        # and takes from the softmax the chance to write over it.
        own_share = found.pop("own_share")
        found["loss"] = ops.cond(
            ops.all(own_share > _SMALL_SHARE),
            # Not the logarithm's negative: a loss of 0 would be -0.
            lambda: ops.log(1.0 / own_share),
            lambda: _losses_by_scores(chunks, own_share),
        )
    if "candidate" in wanted:
        found["candidate"] = ops.transpose(found["candidate"])
    return found

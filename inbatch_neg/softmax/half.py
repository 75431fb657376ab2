"""The loop over chunks with matrix products in half precision.

As in `exact`, for towers of float16 or bfloat16 on a GPU. The products take
matrices of half precision and give float32, in which the sums, the scores and
the softmax are. The vectors have half precision already, and the temperature
is applied to the scores. Rounded are p, and the weights of the rows times the
queries. The share of the positives, p - 1, which is the largest, is left out of
the products and added in float32.
"""

import typing
from collections.abc import Sequence

import keras
from keras import ops

from inbatch_neg.backends import HALF, backend
from inbatch_neg.softmax import several_vectors
from inbatch_neg.softmax.batch import Batch
from inbatch_neg.softmax.chunks import Chunks
from inbatch_neg.softmax.scoring import HalfVectors, Scoring
from inbatch_neg.types import Size, Tensor


def product_dtype(batch: Batch) -> str | None:
    """Returns the half precision to multiply in; None for that of the maths.

    Args:
        batch: The batch before it is cast to the dtype of the maths.
    """
    query, candidate = batch.query, batch.candidate
    dtype = keras.backend.standardize_dtype(query.dtype)
    if (
        dtype in HALF
        and dtype == keras.backend.standardize_dtype(candidate.dtype)
        and several_vectors.count(query, candidate) == 1
        and backend.has_half_products(query)
    ):
        return dtype
    return None


def half_vectors(
    batch: Batch, dtype: str, temperature: float | Tensor
) -> HalfVectors:
    """Returns the vectors in half precision, without gradient.

    Args:
        batch: The batch in float32, of values that half precision has.
        dtype: From `product_dtype`.
        temperature: Divides the scores.
    """
    batch = batch.cast(dtype)
    scale = ops.cast(1.0 / temperature, "float32")
    return HalfVectors(
        *map(ops.stop_gradient, (batch.query, batch.candidate, scale))
    )


def over_chunks(
    query: Tensor,
    candidate: Tensor,
    row_weight: Tensor,
    scoring: Scoring,
    wanted: Sequence[str],
) -> dict[str, Tensor]:
    """Returns a dict of the `wanted` results.

    The arguments are those of `exact`. For "loss" the dict has
    "positive_probability", (B,).
    """
    half = typing.cast(HalfVectors, scoring.half)
    chunks = Chunks(query, candidate, scoring)
    dtype = keras.backend.standardize_dtype(half.query.dtype)
    # float16 has no normal numbers below 6e-5, which is p of 16,384 equal
    # candidates.
    factor = 2.0**15 if dtype == "float16" else 1.0
    weighted, largest = _weighted(half.query, row_weight)

    def visit(index: Size, results: dict[str, Tensor]) -> dict[str, Tensor]:
        start = chunks.start(index)
        scores = chunks.scores(start, include_positive=True)
        probability = ops.softmax(scores)  # p, (R, C)
        own = chunks.own(probability, start)
        results = dict(results)
        results["positive_probability"] = backend.update_rows(
            results["positive_probability"], start, own
        )
        if wanted == ("loss",):
            return results
        negatives = ops.scatter_update(
            probability, chunks.own_places(start), ops.zeros_like(own)
        )
        if factor != 1.0:
            negatives = negatives * factor
        negatives = ops.cast(negatives, dtype)
        if "query" in wanted:
            update = backend.matmul_no_grad(negatives, half.candidate) / factor
            positive = (1.0 - own)[:, None] * chunks.of(candidate, start)
            weight = chunks.of(row_weight, start)[:, None]
            results["query"] = backend.update_rows(
                results["query"], start, weight * (update - positive)
            )
        if "candidate" in wanted:
            rows = chunks.without_repeats(chunks.of(weighted, start), index)
            results["candidate"] = backend.addmm(
                results["candidate"], ops.transpose(rows), negatives
            )
        return results

    results = {"positive_probability": ops.zeros_like(row_weight)}
    if "query" in wanted:
        results["query"] = ops.zeros_like(query)
    if "candidate" in wanted:
        results["candidate"] = ops.zeros_like(ops.transpose(candidate))
    results = dict(ops.fori_loop(0, chunks.count, visit, results))
    if "candidate" in wanted:
        weight = row_weight * (1.0 - results["positive_probability"])
        positive = weight[:, None] * query
        extra = ops.zeros_like(candidate[ops.shape(query)[0] :])
        scale = largest * half.scale / factor
        sums = ops.transpose(results["candidate"]) * scale
        results["candidate"] = sums - ops.concatenate([positive, extra])
    if "loss" not in wanted:
        del results["positive_probability"]
    return results


def _weighted(query: Tensor, row_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the queries times their weights, over the largest weight.

    The weights may leave the range of float16; their ratios do not.
    """
    largest = ops.max(ops.abs(row_weight))
    largest = ops.where(largest > 0.0, largest, ops.ones_like(largest))
    weighted = (row_weight / largest)[:, None] * ops.cast(query, "float32")
    return ops.cast(weighted, query.dtype), largest

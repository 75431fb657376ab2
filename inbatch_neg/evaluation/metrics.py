"""Figures from ranks and lists: recall, hit rate, NDCG, MRR, coverage."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from inbatch_neg.arguments import check_integer
from inbatch_neg.evaluation.ids import Array


def lengths(k: Any) -> tuple[int, ...]:
    """Returns the argument `k` as a tuple of integers, in ascending order."""
    values = k if isinstance(k, (list, tuple)) else [k]
    if not values:
        raise ValueError(f"`k` must not be empty. Received: k={k!r}")
    return tuple(sorted({check_integer("k", one, minimum=1) for one in values}))


def weights(sample_weight: Any) -> Array:
    """Returns the argument `sample_weight` as (Q,) floats."""
    array = np.asarray(sample_weight)
    if array.dtype.kind not in "iufb":
        raise TypeError(
            f"`sample_weight` must hold numbers. Received: dtype={array.dtype}"
        )
    array = array.astype("float64")
    if array.ndim != 1 or not np.all(np.isfinite(array) & (array >= 0)):
        raise ValueError(
            "`sample_weight` must have shape (queries,) and hold finite "
            f"numbers of 0 or more. Received: shape {array.shape}"
        )
    return array


def averages(
    row: Array,
    ranks: Array,
    queries: int,
    k: tuple[int, ...],
    sample_weight: Array | None,
) -> dict[str, float]:
    """Returns {name: average over the queries that have targets}.

    Args:
        row: (N,), the query of each target.
        ranks: (N,) floats from 1, infinity if the target is not found.
        queries: The number of queries.
        k: Tuple of list lengths.
        sample_weight: (queries,), or None.
    """
    count = np.bincount(row, minlength=queries)
    weight = np.ones(queries) if sample_weight is None else sample_weight
    weight = np.where(count > 0, weight, 0.0)
    if not weight.sum():
        raise ValueError(
            "`sample_weight` must not be 0 for every query that has targets."
        )
    total = weight.sum()

    # 1 for queries without targets, to divide by; their weight is 0.
    count = np.maximum(count, 1)
    gains = 1.0 / np.log2(1.0 + ranks)
    ideal = np.cumsum(1.0 / np.log2(np.arange(2, max(k[-1], 1) + 2)))

    def per_query(values: Array) -> Array:
        return np.bincount(row, weights=values, minlength=queries)

    def average(values: Array) -> float:
        return float(weight @ values / total)

    results = {}
    for length in k:
        found = ranks <= length
        hits = per_query(found)
        best_gain = ideal[np.minimum(count, length) - 1]
        gain = per_query(np.where(found, gains, 0.0))
        results[f"recall@{length}"] = average(hits / count)
        results[f"hit_rate@{length}"] = average(hits > 0)
        results[f"ndcg@{length}"] = average(gain / best_gain)
    reciprocal = np.zeros(queries)
    np.maximum.at(reciprocal, row, 1.0 / ranks)
    results["mrr"] = average(reciprocal)
    return results


def coverage(
    lists: Iterable[tuple[Array, Array]], candidates: int, k: tuple[int, ...]
) -> dict[str, float]:
    """Returns {name: share of the candidates that are in any list}.

    Args:
        lists: Iterable of `(scores, places)`, places (R, k[-1]), -1 for none.
        candidates: The number of candidates.
        k: Tuple of list lengths, in ascending order.
    """
    # The best position of each candidate in any list; the last entry is for -1.
    best = np.full(candidates + 1, np.iinfo("int64").max)
    for _, places in lists:
        position = np.broadcast_to(np.arange(places.shape[1]), places.shape)
        np.minimum.at(best, places.reshape(-1), position.reshape(-1))
    best = best[:-1]
    return {f"coverage@{length}": float(np.mean(best < length)) for length in k}

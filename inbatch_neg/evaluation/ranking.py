"""Ranks and top-k lists over a whole catalogue, in chunks.

A rank is a count and needs no sort:

    rank of target t = 1 + #{unseen candidates j other than t: s_j >= s_t}

Chunks of queries are multiplied by chunks of candidates, and the scores of each
product are counted. Seen candidates are counted separately, from their few
scores, and subtracted, so there is no mask of queries x candidates.

Two float32 scores count as equal if they differ by less than the rounding
error of a dot product of D terms, at most D 2^-24 |q| |c| in any order of
summation (Higham 2002, "Accuracy and stability of numerical algorithms",
section 3.1). So a duplicate of the target ties with it, although the columns
of a matrix product may be summed in different orders.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from keras import ops

from inbatch_neg.backends import backend
from inbatch_neg.evaluation import products
from inbatch_neg.evaluation.ids import Array
from inbatch_neg.types import Tensor

# Queries and candidates of a chunk, whose scores, 4 MB, stay in the cache.
_QUERIES = 256
_CANDIDATES = 4096
# For top-k lists: candidates of a chunk, and columns of a group in it.
_LISTED_CANDIDATES = 2**15
_GROUP = 32
# Entries of a list whose vectors are gathered at a time.
_GATHERED = 2**15


class Places(NamedTuple):
    """Pairs of queries and candidates.

    Attributes:
        row: (N,) int64, indices of queries in ascending order.
        place: (N,) int64, indices of candidates.
    """

    row: Array
    place: Array


def target_ranks(
    query: Array, candidate: Array, targets: Places, seen: Places | None = None
) -> Array:
    """Returns the rank of each target, from 1, (N,) int64.

    Ties count against the target, and so do NaN scores. All targets of a
    query are in one list: those that tie with each other take the last
    positions of the tie.

    Args:
        query: (Q, D) float32, or (Q, P, D).
        candidate: (C, D) float32.
        targets: The `Places` of the targets, without repeats.
        seen: The `Places` to leave out of a query's list, without repeats and
            without its targets (see `without`); or None.
    """
    threshold = _thresholds(query, candidate, targets)
    ahead = len(candidate) - _count_below(query, candidate, targets, threshold)
    if seen is not None:
        ahead -= _count_seen(query, candidate, targets, threshold, seen)
    return _in_one_list(targets.row, ahead)


def without(places: Places, others: Places, candidates: int) -> Places:
    """Returns the `Places` that are not among the others."""
    both = np.isin(
        places.row * candidates + places.place,
        others.row * candidates + others.place,
    )
    return Places(places.row[~both], places.place[~both])


def _thresholds(query: Array, candidate: Array, targets: Places) -> Array:
    """Returns (N,) float32, each target's score minus its rounding error."""
    slack = (query.shape[-1] + 2) * 2.0**-24
    threshold = np.empty(len(targets.row), "float32")
    with np.errstate(invalid="ignore", over="ignore"):
        for at in _blocks(len(threshold)):
            of_query = query[targets.row[at]].astype("float64")
            of_target = candidate[targets.place[at]].astype("float64")
            length = products.longest(of_query) * products.longest(of_target)
            own = products.of_pairs(of_query, of_target)
            threshold[at] = own - slack * length
    return threshold


def _count_below(
    query: Array, candidate: Array, targets: Places, threshold: Array
) -> Array:
    """Returns (N,) numbers of candidates that score below the threshold."""
    count = len(threshold)
    rows = min(_QUERIES, _power_of_two(count))
    columns = min(_CANDIDATES, _power_of_two(len(candidate)))
    starts = range(0, count, rows)
    counts = [ops.zeros((rows,), "int32") for _ in starts]
    with backend.full_precision_matmul():
        for first in range(0, len(candidate), columns):
            # The last chunk is padded with NaN, which is below no threshold.
            part = _filled(candidate[first : first + columns], columns, np.nan)
            part = ops.convert_to_tensor(part)
            for number, start in enumerate(starts):
                at = slice(start, start + rows)
                counts[number] = _count_step()(
                    counts[number],
                    _tensor(query[targets.row[at]], rows),
                    part,
                    _tensor(threshold[at], rows),
                )
    counts = [ops.convert_to_numpy(one) for one in counts]
    return np.concatenate(counts)[:count].astype("int64")


@functools.cache
def _count_step() -> Callable[..., Tensor]:
    def add_below(
        counts: Tensor, query: Tensor, candidate: Tensor, threshold: Tensor
    ) -> Tensor:
        scores = products.table(query, candidate)  # (R, K)
        below = ops.less(scores, threshold[:, None])
        return counts + ops.sum(ops.cast(below, "int32"), axis=1)

    return backend.compile(add_below)


def _count_seen(
    query: Array,
    candidate: Array,
    targets: Places,
    threshold: Array,
    seen: Places,
) -> Array:
    """Returns (N,) numbers of seen candidates not below the threshold."""
    first = np.searchsorted(seen.row, targets.row)
    length = np.searchsorted(seen.row, targets.row, side="right") - first
    end = np.cumsum(length)
    counts = np.zeros(len(threshold), "int64")
    # Entries are the (target, seen candidate) pairs, numbered consecutively.
    with np.errstate(invalid="ignore", over="ignore"):
        for at in _blocks(end[-1] if len(end) else 0):
            entry = np.arange(at.start, at.stop)
            target = np.searchsorted(end, entry, side="right")
            within = entry - (end - length)[target]
            place = seen.place[first[target] + within]
            scores = products.of_pairs(
                query[targets.row[target]], candidate[place]
            )
            np.add.at(counts, target, ~(scores < threshold[target]))
    return counts


def _in_one_list(row: Array, ahead: Array) -> Array:
    """Returns ranks that differ within a row, from counts that include ties.

    `ahead` of a target counts tied targets of the same row too. For the l-th
    best target of a row, rank_l = min over l' >= l of (ahead_l' - (l' - l)).
    """
    order = np.lexsort((ahead, row))
    sorted_row, sorted_ahead = row[order], ahead[order]
    number = np.arange(len(row)) - np.searchsorted(sorted_row, sorted_row)
    # The offset keeps a row's values below those of the next row, so that the
    # running minimum from the end starts anew in each row.
    offset = sorted_row * (2 * (ahead.max(initial=0) + len(row)) + 1)
    lowest = sorted_ahead - number + offset
    lowest = np.minimum.accumulate(lowest[::-1])[::-1] - offset
    ranks = np.empty_like(ahead)
    ranks[order] = np.maximum(lowest, 1) + number
    return ranks


def top_k(
    query: Array, candidate: Array, k: int, left_out: Places | None = None
) -> Iterator[tuple[Array, Array]]:
    """Yields `(scores, places)` of the k best candidates, chunk by chunk.

    Args:
        query: (Q, D) float32, or (Q, P, D).
        candidate: (C, D) float32.
        k: The length of a list. With fewer candidates, it ends with places
            of -1 and scores of -inf.
        left_out: `Places` to leave out of a query's list, or None.

    Yields:
        Float32 scores in descending order and int64 places, both (R, k), of
        the next R queries. The order of candidates with equal scores depends
        on the backend. NaN scores are left out.
    """
    rows = min(_QUERIES, _power_of_two(len(query)))
    columns = min(_LISTED_CANDIDATES, _power_of_two(len(candidate)))
    for start in range(0, len(query), rows):
        part = query[start : start + rows]
        best = (
            ops.full((rows, k), -np.inf, "float32"),
            ops.full((rows, k), -1, "int32"),
        )
        with backend.full_precision_matmul():
            for first in range(0, len(candidate), columns):
                masked = np.zeros((rows, columns), bool)
                if left_out is not None:
                    _mark(masked, left_out, start, first)
                chunk = candidate[first : first + columns]
                best = _top_k_step(k)(
                    *best,
                    _tensor(part, rows),
                    ops.convert_to_tensor(_filled(chunk, columns, np.nan)),
                    ops.convert_to_tensor(first, dtype="int32"),
                    ops.convert_to_tensor(masked),
                )
        scores, places = (ops.convert_to_numpy(one) for one in best)
        yield scores[: len(part)], places[: len(part)].astype("int64")


@functools.lru_cache(maxsize=16)
def _top_k_step(k: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def merge(
        best: Tensor,
        places: Tensor,
        query: Tensor,
        candidate: Tensor,
        first: Tensor,
        masked: Tensor,
    ) -> tuple[Tensor, Tensor]:
        scores = products.table(query, candidate)  # (R, K)
        masked = ops.logical_or(masked, ops.isnan(scores))
        scores = ops.where(masked, -np.inf, scores)
        scores, columns = _top(scores, min(k, candidate.shape[0]))
        scores = ops.concatenate([best, scores], axis=1)
        places = ops.concatenate([places, columns + first], axis=1)
        best, order = ops.top_k(scores, k)
        places = ops.take_along_axis(places, ops.cast(order, "int32"), axis=1)
        return best, ops.where(ops.greater(best, -np.inf), places, -1)

    # XLA would sort all scores.
    return backend.compile(merge, xla=False)


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k best of each row and their columns, (R, k).

    They are in the k groups of columns with the highest maxima: at least k
    scores are ahead of the maximum of any other group.
    """
    rows, columns = scores.shape
    groups = columns // _GROUP
    if groups < 2 * k:
        scores, column = ops.top_k(scores, k)
        return scores, ops.cast(column, "int32")
    scores = ops.reshape(scores, (rows, groups, _GROUP))
    _, group = ops.top_k(ops.max(scores, axis=2), k)
    group = ops.cast(group, "int32")[:, :, None]
    scores = ops.take_along_axis(scores, group, axis=1)  # (R, k, _GROUP)
    column = group * _GROUP + ops.arange(_GROUP, dtype="int32")
    scores, best = ops.top_k(ops.reshape(scores, (rows, k * _GROUP)), k)
    column = ops.reshape(column, (rows, k * _GROUP))
    column = ops.take_along_axis(column, ops.cast(best, "int32"), axis=1)
    return scores, column


def _mark(masked: Array, places: Places, start: int, first: int) -> None:
    """Sets True at the places in this chunk."""
    rows, columns = masked.shape
    low, high = np.searchsorted(places.row, [start, start + rows])
    row = places.row[low:high] - start
    column = places.place[low:high] - first
    inside = (column >= 0) & (column < columns)
    masked[row[inside], column[inside]] = True


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _GATHERED):
        yield slice(start, min(start + _GATHERED, count))


def _tensor(array: Array, rows: int) -> Tensor:
    return ops.convert_to_tensor(_filled(array, rows, 0))


def _filled(array: Array, rows: int, value: float) -> Array:
    """Returns `array` padded at its end with `value`, to `rows` rows."""
    if len(array) == rows:
        return array
    shape = (rows - len(array), *array.shape[1:])
    return np.concatenate([array, np.full(shape, value, array.dtype)])


def _power_of_two(count: int) -> int:
    """Returns the next power of two, so that few shapes are compiled."""
    return max(16, 1 << (count - 1).bit_length())

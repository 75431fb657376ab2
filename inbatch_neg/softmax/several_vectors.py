"""Several vectors per row, of which the best one scores.

    s_ij = max over p of <query_ip, candidate_j>

A (B, P, D) tensor is split into P matrices (B, D). Their products with the
other side are computed one by one. What is kept is the best score so far, and
P - 1 tables of bools that say where a later vector was better. The gradient
of a score goes to the vector that won it, among equal ones to the first. In
the direction from candidates to queries, the candidates have P vectors each,
and the same rules apply.
"""

from collections.abc import Callable, Iterable, Sequence

from keras import ops

from inbatch_neg.backends import backend
from inbatch_neg.types import Tensor


def vectors_per_row(query: Tensor, candidate: Tensor) -> int:
    """Returns P, or 1 if both sides have one vector per row."""
    several = [tensor for tensor in (query, candidate) if _is_several(tensor)]
    return several[0].shape[1] if several else 1


def split(tensor: Tensor) -> list[Tensor]:
    """Returns the P matrices (B, D) of (B, P, D), or (B, D) alone."""
    if not _is_several(tensor):
        return [tensor]
    return [tensor[:, place] for place in range(tensor.shape[1])]


def join(matrices: Sequence[Tensor], like: Tensor) -> Tensor:
    """Returns the inverse of `split`, in the shape of `like`."""
    return ops.stack(matrices, axis=1) if _is_several(like) else matrices[0]


def pairs(
    query: Sequence[Tensor], candidate: Sequence[Tensor]
) -> list[tuple[int, int]]:
    """Returns the indices in both lists of the matrices to multiply.

    One of the lists has one matrix only.
    """
    count = max(len(query), len(candidate))
    return [
        (min(place, len(query) - 1), min(place, len(candidate) - 1))
        for place in range(count)
    ]


def paired(query: Tensor, candidate: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Returns the P pairs of matrices to multiply."""
    queries, candidates = split(query), split(candidate)
    return [
        (queries[row], candidates[column])
        for row, column in pairs(queries, candidates)
    ]


def first_best(products: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Returns the entrywise maximum of P tensors, and which one won.

    Returns:
        The maximum, and P - 1 tensors of bools: the p-th is True where
        product p + 1 is greater than all before it. NaN scores stay NaN.
    """
    products = iter(products)
    best, better = next(products), []
    for product in products:
        better.append(ops.greater(product, best))
        best = backend.maximum(best, product)
    return best, better


def shares(upstream: Tensor, better: Sequence[Tensor]) -> list[Tensor]:
    """Returns P tensors: `upstream` where the p-th has won, else 0.

    Args:
        upstream: Tensor in the shape of the scores.
        better: From `first_best`. The last True entry marks the winner.
    """
    result = []
    if better:
        nothing = ops.zeros_like(upstream)
    for won in reversed(better):
        result.append(ops.where(won, upstream, nothing))
        upstream = ops.where(won, nothing, upstream)
    return [upstream, *reversed(result)]


def best_of(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the entrywise maximum of P tensors, with gradients."""
    if len(tensors) == 1:
        return tensors[0]

    def best_score(*tensors: Tensor) -> tuple[Tensor, Callable]:
        best, better = first_best(tensors)
        return best, lambda upstream: tuple(shares(upstream, better))

    return backend.custom_gradient(best_score)(*tensors)


def fill(query: Tensor, query_mask: Tensor) -> Tensor:
    """Returns (B, P, D) queries that need no mask.

    A masked vector becomes a copy of the row's first unmasked one: the
    maximum is the same, and a gradient of the copy goes to its original. A
    row without unmasked vectors becomes zeros, with scores and gradients of
    0.

    Args:
        query: (B, P, D).
        query_mask: (B, P) bools, False where a vector is masked.
    """
    first = ops.argmax(ops.cast(query_mask, "int32"), axis=1)
    original = ops.take_along_axis(
        query, ops.cast(first, "int32")[:, None, None], axis=1
    )
    original = ops.where(
        ops.any(query_mask, axis=1)[:, None, None],
        original,
        ops.zeros_like(original),
    )
    return ops.where(query_mask[:, :, None], query, original)


def _is_several(tensor: Tensor) -> bool:
    return len(tensor.shape) == 3

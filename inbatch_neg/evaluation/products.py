"""Scores of queries and candidates: dot products.

Queries are vectors, (Q, D), or P vectors each, (Q, P, D). The score is then
the largest of the P products. NaN scores stay NaN.
"""

import numpy as np
from keras import ops

from inbatch_neg.backends import backend
from inbatch_neg.evaluation.ids import Array
from inbatch_neg.types import Tensor


def table(query: Tensor, candidate: Tensor) -> Tensor:
    """Returns the (R, K) scores of all pairs, without keeping P tables.

    Args:
        query: (R, D), or (R, P, D).
        candidate: (K, D).
    """
    transposed = ops.transpose(candidate)
    if len(query.shape) == 2:
        return ops.matmul(query, transposed)
    best = ops.matmul(query[:, 0], transposed)
    for place in range(1, query.shape[1]):
        best = backend.maximum(best, ops.matmul(query[:, place], transposed))
    return best


def of_pairs(query: Array, candidate: Array) -> Array:
    """Returns the (N,) scores of each query with its candidate.

    Args:
        query: (N, D), or (N, P, D).
        candidate: (N, D).
    """
    products = np.einsum("n...d,nd->n...", query, candidate)
    return products if products.ndim == 1 else products.max(axis=1)


def longest(query: Array) -> Array:
    """Returns the (N,) lengths of the queries' longest vectors."""
    lengths = np.linalg.norm(query, axis=-1)
    return lengths if lengths.ndim == 1 else lengths.max(axis=1)

"""Scores of queries and candidates: products, of several vectors the best.

A query is a vector, (Q, D), or P vectors, (Q, P, D): then its score is the
largest of its P products. NaN scores stay NaN.
"""

import numpy as np
from keras import ops

from inbatch_neg.backends import Tensor, backend
from inbatch_neg.evaluation.ids import Array


def table(query: Tensor, candidate: Tensor) -> Tensor:
    """Returns the (R, K) scores of all pairs, without P tables of them.

    Args:
        query: (R, D), or (R, P, D).
        candidate: (K, D).
    """
    turned = ops.transpose(candidate)
    if len(query.shape) == 2:
        return ops.matmul(query, turned)
    best = ops.matmul(query[:, 0], turned)
    for place in range(1, query.shape[1]):
        best = backend.maximum(best, ops.matmul(query[:, place], turned))
    return best


def of_pairs(query: Array, candidate: Array) -> Array:
    """Returns the (N,) scores of each query and its candidate.

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

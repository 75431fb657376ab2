"""What a `SparseEmbedding` computes: loops of float64 from the definition."""

import numpy as np


def step(table, accumulators, ids, gradients, rate, epsilon):
    """Updates both arrays in place by one step of row-wise Adagrad.

    Args:
        table: (V, D).
        accumulators: (V,).
        ids: (N,), with repeats.
        gradients: (N, D), of the vectors.
        rate: The learning rate.
        epsilon: Is added to the root.
    """
    sums = {}
    for row, gradient in zip(ids, gradients):
        sums[row] = sums.get(row, 0.0) + gradient
    for row, gradient in sums.items():
        accumulators[row] += np.mean(gradient**2)
        table[row] -= rate * gradient / (np.sqrt(accumulators[row]) + epsilon)

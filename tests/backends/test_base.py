"""What every backend overrides: products, against NumPy, and tuning sizes."""

import contextlib

import numpy as np
import pytest
from keras import ops

from inbatch_neg.backends import backend
from tests.helpers import (
    BACKEND,
    batch_of,
    check_loss,
    to_numpy,
    value_and_gradients,
)

# Dimensions, rows, candidates.
SIZES = [(3, 4, 5), (16, 70, 1000), (1, 300, 300)]


@contextlib.contextmanager
def no_gradients():
    """As inside of a custom gradient."""
    if BACKEND == "torch":
        import torch

        with torch.no_grad():
            yield
    else:
        yield


def matrices(size, dtype):
    dimensions, rows, candidates = size
    random = np.random.default_rng(0)
    shapes = [(rows, dimensions), (candidates, dimensions), (rows, candidates)]
    return [random.normal(size=shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products(size, dtype):
    query, candidate, share = matrices(size, dtype)
    with no_gradients():
        q, c, p = map(ops.convert_to_tensor, (query, candidate, share))
        total = ops.transpose(ops.ones_like(c))
        found = {
            "scores": (
                backend.matmul(q, ops.transpose(c)),
                query @ candidate.T,
            ),
            "matmul": (backend.matmul(p, c), share @ candidate),
            "matmul_no_grad": (backend.matmul_no_grad(p, c), share @ candidate),
            "addmm": (
                backend.addmm(total, ops.transpose(q), p),
                1 + query.T @ share,
            ),
        }
    exact = dtype == "float64" and BACKEND != "jax"
    for name, (actual, expected) in found.items():
        actual = to_numpy(actual)
        assert actual.dtype == ("float64" if exact else "float32"), name
        error = np.abs(actual - expected).max() / np.abs(expected).max()
        assert error < (1e-13 if exact else 1e-5), name


def test_sizes_of_a_cpu():
    """Eager and compiled; no machine of the tests has a GPU."""
    found = []

    def function(query):
        found.append(backend.tuning(query))
        return ops.sum(query, axis=1)

    for compiled in (False, True):
        value_and_gradients(
            function, {"query": np.ones((2, 3), "float32")}, compiled=compiled
        )
    assert len(found) >= 2
    assert set(found) == {backend.cpu_tuning}


def test_losses_with_the_sizes_of_a_gpu(monkeypatch, each_path):
    monkeypatch.setattr(backend, "is_on_gpu", lambda tensor: True)
    assert backend.tuning(None).max_chunk_rows == 8192
    check_loss(batch_of(50, 60))

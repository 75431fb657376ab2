"""PyTorch: oneDNN's products, autocast, `torch.compile`, `torch.jit`."""

import math
import types
import warnings

import pytest
from keras import ops

import inbatch_neg
from inbatch_neg.backends import backend
from inbatch_neg.softmax import chunks, log_q_and_masks

pytestmark = pytest.mark.backends("torch")


def test_float32_products_are_those_of_onednn():
    import torch
    from torch.profiler import ProfilerActivity, profile

    def used(matrix):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            backend.matmul_no_grad(matrix, matrix)
        names = [event.name for event in profiled.events()]
        return "mkldnn::_linear_pointwise" in names

    there = torch.backends.mkldnn.is_available()
    with torch.no_grad():
        assert used(torch.ones(200, 200)) == there
        assert used(torch.ones(200, 300)[:, 50:250]) == there
        assert used(torch.ones(200, 200).T) == there
        assert not used(torch.ones(200, 200).double())
    # Autograd is to record a plain product.
    assert not used(torch.ones(200, 200))


def test_without_onednn_the_public_product_serves(monkeypatch):
    import torch

    from inbatch_neg.backends import torch as module

    matrix = torch.randn(200, 200)
    with torch.no_grad():
        expected = backend.matmul_no_grad(matrix, matrix)
        monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())
        module._onednn_linear.cache_clear()
        try:
            assert module._onednn_linear() is None
            found = backend.matmul_no_grad(matrix, matrix)
        finally:
            module._onednn_linear.cache_clear()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_scores_have_gradients_where_autograd_records():
    import torch

    query = torch.ones(200, 2, requires_grad=True)
    backend.matmul_no_grad(query, torch.ones(2, 300)).sum().backward()
    assert (query.grad == 300).all()


@pytest.mark.parametrize("rows", [100, 600])
def test_autocast_rounds_nothing(rows):
    import torch

    vectors = torch.randn(rows, 16, requires_grad=True)
    layer = inbatch_neg.InBatchNegativeSoftmax()
    expected = layer(vectors, vectors, training=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(vectors, vectors, training=True)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, expected, rtol=1e-5)
    loss.mean().backward()


def test_compiled_by_dynamo():
    import torch

    vectors = torch.randn(600, 16, requires_grad=True)
    layer = inbatch_neg.InBatchNegativeSoftmax()
    step = torch.compile(lambda x: layer(x, x, training=True), backend="eager")
    loss = step(vectors)
    assert torch.allclose(loss, layer(vectors, vectors), rtol=1e-5)
    loss.mean().backward()
    assert vectors.grad.isfinite().all()


def test_chunks_stay_below_the_blocks_that_glibc_gives_back():
    query, candidate = ops.zeros((1000, 1)), ops.zeros((2**17, 1))
    chunk = chunks.Chunks(query, candidate, log_q_and_masks.Scoring())
    assert chunk.size * len(candidate) * 4 == 2**24


def test_matrices_that_onednn_refuses():
    import torch

    query = torch.randn(600, 16)
    shared = torch.randn(615).unfold(0, 16, 1)  # rows share memory
    layer = inbatch_neg.InBatchNegativeSoftmax()
    expected = layer(query, shared.clone().contiguous())
    torch.testing.assert_close(layer(query, shared), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(query, shared), expected)
        empty = torch.zeros(600, 0)
        losses = layer(empty, empty)
    torch.testing.assert_close(losses, torch.full((600,), math.log(600)))


def test_traced_by_torch_jit():
    import torch

    query, candidate = torch.randn(600, 8), torch.randn(600, 8)
    layer = inbatch_neg.InBatchNegativeSoftmax()
    with torch.no_grad():
        with warnings.catch_warnings():
            # Sizes are tensors in a trace, and their comparison warns.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(
                layer, (query, candidate), check_trace=False
            )
        expected = layer(query, candidate)
        torch.testing.assert_close(traced(query, candidate), expected)


@pytest.mark.parametrize("form", ["exact", "rotation", "vectors"])
def test_torch_func_grad_beyond_the_dense_size(form, chunked):
    import torch

    torch.manual_seed(0)
    rows = 11
    query = torch.randn(*((rows, 2) if form == "vectors" else (rows,)), 4)
    candidate = torch.randn(rows, 4)

    def loss(query, candidate):
        if form == "rotation":
            return (
                inbatch_neg.ops.rotation_logits(query, candidate, [1, 3])
                .logsumexp(1)
                .sum()
            )
        return inbatch_neg.ops.in_batch_softmax_loss(query, candidate).sum()

    leaves = [x.clone().requires_grad_() for x in (query, candidate)]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.func.grad(loss, argnums=(0, 1))(query, candidate)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)
    with pytest.raises(RuntimeError, match="vmap support"):
        torch.func.vmap(loss)(query[None], candidate[None])


def test_a_change_before_the_gradient_is_an_error(chunked):
    import torch

    query = torch.randn(11, 4, requires_grad=True)
    candidate = torch.randn(11, 4)
    loss = inbatch_neg.ops.in_batch_softmax_loss(query, candidate).sum()
    candidate.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        loss.backward()


def test_forward_derivative_of_a_small_batch():
    import torch

    query, candidate, change = torch.randn(3, 40, 8).unbind()

    def losses(query):
        return inbatch_neg.InBatchNegativeSoftmax()(query, candidate)

    expected = torch.func.jacrev(lambda t: losses(query + t * change))(
        torch.zeros(())
    )
    with torch.no_grad():
        _, tangent = torch.func.jvp(losses, (query,), (change,))
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-4)

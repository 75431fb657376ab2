"""What the tests need of the three backends, in one form."""

import keras
import numpy as np

from inbatch_neg import ops
from tests import oracle

BACKEND = keras.backend.backend()

# What the gradients are by.
DIFFERENTIABLE = ("query", "candidate", "sample_weight", "temperature")
RULES = (
    "candidate_ids",
    "query_ids",
    "candidate_sampling_probability",
    "candidate_mask",
    "sample_weight",
)
ALONE = [(), *[(name,) for name in RULES], RULES]
# With some of the others, and without them: what combines the rules is tested
# by each one alone.
HALVES = [(), RULES[::2], RULES[1::2], RULES]


def to_numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def value_and_gradients(
    function, arrays, upstream=None, compiled=BACKEND == "jax"
):
    """Returns a function's value and its gradients, as NumPy arrays.

    Args:
        function: of one tensor for each of `arrays`, given by name.
        arrays: dict of arrays, the gradients are by these.
        upstream: of the shape of the value, ones if None.
        compiled: Whether to run it in `tf.function` or `jax.jit`. On JAX by
            default, where an eager call compiles each of its operations.

    Returns:
        The value, and a dict of gradients (None where there is none).
    """
    names = list(arrays)
    return _BY_BACKEND[BACKEND](
        lambda *tensors: function(**dict(zip(names, tensors))),
        arrays,
        upstream,
        compiled,
    )


def _tensorflow(function, arrays, upstream, compiled):
    import tensorflow as tf

    def run(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        gradients = tape.gradient(
            value,
            tensors,
            None if upstream is None else tf.cast(upstream, value.dtype),
        )
        return value, gradients

    tensors = [tf.convert_to_tensor(a) for a in arrays.values()]
    value, gradients = (tf.function(run) if compiled else run)(*tensors)
    return value.numpy(), {
        name: None if g is None else g.numpy()
        for name, g in zip(arrays, gradients)
    }


def _jax(function, arrays, upstream, compiled):
    import jax
    import jax.numpy as jnp

    def run(*tensors):
        value, pull = jax.vjp(function, *tensors)
        seed = jnp.ones_like(value) if upstream is None else upstream
        return value, pull(jnp.asarray(seed, value.dtype))

    tensors = [jnp.asarray(a) for a in arrays.values()]
    value, gradients = (jax.jit(run) if compiled else run)(*tensors)
    return to_numpy(value), dict(zip(arrays, map(to_numpy, gradients)))


def _torch(function, arrays, upstream, compiled):
    import torch

    del compiled
    tensors = [
        keras.ops.convert_to_tensor(a).detach().clone().requires_grad_()
        for a in arrays.values()
    ]
    value = function(*tensors)
    if upstream is None:
        seed = torch.ones_like(value)
    else:
        seed = torch.as_tensor(np.asarray(upstream)).to(value)
    gradients = torch.autograd.grad(value, tensors, seed, allow_unused=True)
    return to_numpy(value), {
        name: None if g is None else to_numpy(g)
        for name, g in zip(arrays, gradients)
    }


_BY_BACKEND = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}


def compiled(function):
    """Returns the function in `tf.function` or `jax.jit`."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, reduce_retracing=False)
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    return function


def weights_of(model):
    return [to_numpy(w) for w in model.get_weights()]


def assert_all_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others):
        np.testing.assert_array_equal(one, other)


def batch_of(rows, candidates=None, dimensions=8, seed=0):
    """Returns a dict of every argument of the softmax, with repeated ids."""
    candidates = candidates or rows
    rng = np.random.default_rng(seed)
    few = max(rows // 3, 2)
    return {
        "query": rng.normal(size=(rows, dimensions)).astype("float32"),
        "candidate": rng.normal(size=(candidates, dimensions)).astype(
            "float32"
        ),
        "candidate_ids": rng.integers(0, few, candidates).astype("int32"),
        "query_ids": rng.integers(0, few, rows).astype("int32"),
        "candidate_sampling_probability": (
            10.0 ** rng.uniform(-6, 0, candidates)
        ).astype("float32"),
        "candidate_mask": rng.random(candidates) < 0.7,
        "sample_weight": rng.uniform(0, 2, rows).astype("float32"),
    }


def assert_close(actual, expected, tolerance=2e-5, name=""):
    """Compares by the largest entry, so that small ones may round."""
    actual = np.asarray(actual, "float64")
    expected = np.asarray(expected, "float64")
    assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
    assert np.all(np.isfinite(actual)), name
    scale = max(1e-3, np.abs(expected).max())
    error = np.abs(actual - expected).max() / scale
    assert error <= tolerance, f"{name}: error {error:.3g} of the largest"


def check_loss(batch, upstream=None, compiled=BACKEND == "jax", tolerance=2e-5):
    """Compares the loss and each gradient that there is with the oracle."""
    by = {name: batch[name] for name in DIFFERENTIABLE if name in batch}
    rest = {name: value for name, value in batch.items() if name not in by}
    value, gradients = value_and_gradients(
        lambda **tensors: ops.in_batch_softmax_loss(**tensors, **rest),
        by,
        upstream,
        compiled,
    )
    expected, d_expected = oracle.softmax_loss(**batch, upstream=upstream)
    assert value.dtype == "float32"
    assert_close(value, expected, tolerance, "loss")
    for name in by:
        assert_close(gradients[name], d_expected[name], tolerance, name)


def losses_and_gradients(
    layer, batch, upstream=None, by=("query", "candidate")
):
    """Returns the losses of a layer in training, and its gradients."""
    rest = {name: value for name, value in batch.items() if name not in by}
    return value_and_gradients(
        lambda **tensors: layer(**tensors, **rest, training=True),
        {name: batch[name] for name in by},
        upstream,
        compiled=True,
    )

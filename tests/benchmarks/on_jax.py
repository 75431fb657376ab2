"""Contenders on JAX, compiled by `jax.jit`. See `on_tensorflow.py`."""

import jax
import jax.numpy as jnp


def _differentiated(inputs, loss_of, dtype="float32"):
    arguments = [jnp.asarray(inputs.query, dtype)]
    arguments.append(jnp.asarray(inputs.candidate, dtype))
    gradients_of = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1)))

    def step():
        loss, gradients = jax.block_until_ready(gradients_of(*arguments))
        return loss, *gradients

    return step


def ours(inputs, dtype="float32"):
    """`inbatch_neg.ops.in_batch_softmax_loss`."""
    from inbatch_neg import ops

    def loss_of(query, candidate):
        return jnp.mean(ops.in_batch_softmax_loss(query, candidate))

    return _differentiated(inputs, loss_of, dtype)


def ours_bfloat16(inputs):
    """Of half-precision towers, as a `mixed_bfloat16` policy has them."""
    return ours(inputs, "bfloat16")


def ours_float16(inputs):
    """As a `mixed_float16` policy has them."""
    return ours(inputs, "float16")


def plain(inputs):
    """The matrix of scores and its log-sum-exp."""

    def loss_of(query, candidate):
        scores = query @ candidate.T
        total = jax.nn.logsumexp(scores, axis=1)
        return jnp.mean(total - jnp.diagonal(scores))

    return _differentiated(inputs, loss_of)


def own_limit(inputs):
    """The three matrix products that any exact gradient needs."""
    query, candidate = jnp.asarray(inputs.query), jnp.asarray(inputs.candidate)

    @jax.jit
    def products(query, candidate):
        scores = query @ candidate.T
        return scores @ candidate, scores.T @ query

    def step():
        jax.block_until_ready(products(query, candidate))

    return step

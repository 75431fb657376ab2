"""Contenders on JAX, compiled by `jax.jit`. See `on_tensorflow.py`."""

import jax
import jax.numpy as jnp


def _differentiated(inputs, loss_of, dtype="float32", **tensors):
    arguments = [jnp.asarray(inputs.query, dtype)]
    arguments.append(jnp.asarray(inputs.candidate, dtype))
    tensors = {name: jnp.asarray(value) for name, value in tensors.items()}
    gradients_of = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1)))

    def step():
        results = gradients_of(*arguments, **tensors)
        loss, gradients = jax.block_until_ready(results)
        return loss, *gradients

    def extra_bytes():
        compiled = gradients_of.lower(*arguments, **tensors).compile()
        found = compiled.memory_analysis()
        return found.temp_size_in_bytes + found.output_size_in_bytes

    step.extra_bytes = extra_bytes
    return step


def ours(inputs, dtype="float32"):
    """`inbatch_neg.ops.in_batch_softmax_loss`."""
    from inbatch_neg import ops

    def loss_of(query, candidate, **rules):
        losses = ops.in_batch_softmax_loss(query, candidate, **rules)
        return jnp.mean(losses)

    return _differentiated(inputs, loss_of, dtype, **inputs.rules)


def ours_bfloat16(inputs):
    """Of half-precision towers, as a `mixed_bfloat16` policy has them."""
    return ours(inputs, "bfloat16")


def ours_float16(inputs):
    """As a `mixed_float16` policy has them."""
    return ours(inputs, "float16")


def plain(inputs, dtype="float32"):
    """The matrix of scores and its log-sum-exp."""

    def loss_of(query, candidate):
        scores = query @ candidate.T
        total = jax.nn.logsumexp(scores, axis=1)
        return jnp.mean(total - jnp.diagonal(scores))

    return _differentiated(inputs, loss_of, dtype)


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

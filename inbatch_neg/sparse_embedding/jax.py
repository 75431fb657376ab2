"""Sparse updates on JAX: the gradient of the table is the updated table."""

import math
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras

from inbatch_neg import keras_private
from inbatch_neg.sparse_embedding import table
from inbatch_neg.types import Tensor

# From this many numbers on, a copy of a table is worth a warning: 64 MB.
LARGE_TABLE = 2**24


class Overwritten(keras.Variable):
    """Takes over its gradient if the step has one.

    JAX gives zeros to a weight that the loss does not depend on.

    Attributes:
        has_gradient: Whether a gradient has been traced for the next step.
    """

    has_gradient = False

    def assign(self, value: Any) -> Any:
        """Assigns a value, unless it stands for no gradient."""
        if keras_private.calling_optimizer() is not None:
            if not self.has_gradient:
                # Of no lookup, or of a function that was compiled before.
                value = jnp.where(jnp.any(value), value, self.value)
            self.has_gradient = False
        return super().assign(value)


class Accumulators(Overwritten):
    """The accumulators, which the optimizer assigns too."""

    overwrite_with_gradient = True


class Table(Overwritten, table.Table):
    """Refuses other gradients: JAX would add them to the updated table."""

    # The lookups whose gradients are summed, and of which value they are.
    differentiated: list[Any]
    of_value: Any = staticmethod(lambda: None)

    @property
    def value(self) -> Any:
        """The table, which has no gradient in a step."""
        value = super().value
        if not isinstance(value, jax.core.Tracer):
            return value
        read = jax.custom_vjp(lambda value: value)
        read.defvjp(
            lambda value: (value, None),
            lambda _, gradient: self.refuse_dense(gradient),
        )
        return read(value)

    def check_optimizer(self, optimizer: Any) -> None:
        """Warns, too, of loss scaling: it keeps the table for a bad step."""
        super().check_optimizer(optimizer)
        if keras_private.scales_loss(optimizer):
            self.warn_of_copy("`LossScaleOptimizer`, of a float16 policy,")

    def warn_of_copy(self, cause: str) -> None:
        """Warns of a large table; Python shows equal warnings once."""
        if math.prod(self.shape) >= LARGE_TABLE:
            warnings.warn(
                f"{cause} copies the whole table {self.path!r} in every step. "
                "Fix: train in float32 or bfloat16, by `fit` with "
                "`jit_compile`.",
                stacklevel=2,
            )


def lookup(weight: Table, ids: Tensor) -> Tensor:
    """Returns the vectors of (N,) ids."""
    value = super(Table, weight).value  # without the refusal
    rows = value.shape[0]
    # A negative index would count from the end.
    ids = jnp.where((ids < 0) | (ids >= rows), rows, ids)
    if not weight.trainable or keras_private.in_export():
        return _take(value, ids)
    adagrad = weight.adagrad
    if weight.of_value() is not value:
        weight.of_value, weight.differentiated = weakref.ref(value), []
    lookups = weight.differentiated

    run = jax.custom_vjp(
        lambda value, accumulators, rate, ids: _take(value, ids)
    )

    @keras_private.restore_model_state
    def backward(inputs: Any, d_vectors: Tensor) -> Any:
        lookups.append(run)
        weight.has_gradient = adagrad.accumulators.has_gradient = True
        if lookups[0] is not run:
            raise ValueError(
                "`SparseEmbedding` must be called once in a step: JAX would "
                "add up the tables of two calls. Fix: pass all ids in one "
                "call, as in `embedding({'item': item, 'history': history})`. "
                f"Received: another call of {weight.path!r}"
            )
        if not isinstance(inputs[0], jax.core.Tracer):
            weight.warn_of_copy("A step that is not compiled")
        return (*_updated(inputs, d_vectors, adagrad.epsilon), None, None)

    run.defvjp(lambda *inputs: (run(*inputs), inputs), backward)
    return run(value, adagrad.accumulators.value, adagrad.rate(), ids)


def _take(value: Tensor, ids: Tensor) -> Tensor:
    return value.at[ids].get(mode="fill", fill_value=jnp.nan)


def _updated(
    inputs: Sequence[Tensor], gradients: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Returns the table and the accumulators after the step."""
    value, accumulators, rate, ids = inputs
    distribution = keras.distribution.distribution()
    if distribution is not None:
        # All devices update all rows of the batch, and exchange only these.
        mesh = distribution.device_mesh
        ids, gradients = (
            keras.distribution.distribute_tensor(
                x, keras.distribution.TensorLayout([None] * x.ndim, mesh)
            )
            for x in (ids, gradients)
        )
    # As many as ids; those that remain are out of range, and are dropped.
    rows, segment = jnp.unique(
        ids, return_inverse=True, size=ids.size, fill_value=value.shape[0]
    )
    gradients = jax.ops.segment_sum(
        gradients.astype(accumulators.dtype), segment, ids.size
    )
    after = accumulators.at[rows].get(mode="fill", fill_value=1.0)
    after += jnp.square(gradients).mean(1)
    step = (rate / (jnp.sqrt(after) + epsilon))[:, None] * gradients
    return (
        value.at[rows].add(-step.astype(value.dtype), mode="drop"),
        accumulators.at[rows].set(after, mode="drop"),
    )

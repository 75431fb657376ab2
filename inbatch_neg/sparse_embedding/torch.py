"""Sparse updates on PyTorch: the gradient of an embedding is sparse."""

import weakref
from typing import Any

import keras
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from inbatch_neg import keras_private
from inbatch_neg.replicas.current import replicas
from inbatch_neg.sparse_embedding import table
from inbatch_neg.types import Tensor

Accumulators = keras.Variable


class Table(table.Table):
    """Updates its rows where an optimizer assigns its gradient."""

    @torch.compiler.disable
    def assign(self, value: Any) -> Any:
        """Updates rows, or assigns a whole table."""
        if isinstance(value, torch.Tensor) and value.is_sparse:
            self.update(value)
            return value
        if keras_private.calling_optimizer() is not None:
            self.refuse_dense(value)
        return super().assign(value)

    @torch.no_grad()
    def update(self, gradient: Tensor) -> None:
        """Updates the rows of a sparse gradient."""
        accumulators = self.adagrad.accumulators.value
        gradient = gradient.coalesce()  # the sum by row
        rows = gradient.indices()[0]
        values = gradient.values().to(accumulators.dtype)
        accumulators.index_add_(0, rows, values.square().mean(1))
        root = accumulators[rows].sqrt() + self.adagrad.epsilon
        step = self.adagrad.rate() / root[:, None] * values
        self.value.index_add_(0, rows, step.to(self.value.dtype), alpha=-1)


@torch.compiler.disable  # the compiler has no sparse gradients
def lookup(weight: Table, ids: Tensor) -> Tensor:
    """Returns the vectors of (N,) ids."""
    value = weight.value
    if value.requires_grad and torch.is_grad_enabled():
        if keras_private.scales_loss(keras_private.training_optimizer()):
            raise ValueError(
                "`SparseEmbedding` cannot train with a `LossScaleOptimizer` on "
                "PyTorch. Fix: use the policy `mixed_bfloat16`, not "
                "`mixed_float16`. Received: a `LossScaleOptimizer`"
            )
        if replicas.count() > 1:
            raise ValueError(
                "`SparseEmbedding` cannot train in several processes of "
                "PyTorch. Fix: use `keras.layers.Embedding` there. Received: "
                f"{replicas.count()} processes"
            )
        _TABLES[id(value)] = weight
    return torch.nn.functional.embedding(ids, value, sparse=True)


# By the id of the parameter.
_TABLES: weakref.WeakValueDictionary[int, Table] = weakref.WeakValueDictionary()


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    """Updates the tables in a step of PyTorch's own optimizers.

    They would take another step by the sparse gradient, or refuse it.
    """
    groups = optimizer.param_groups
    for parameter in (x for group in groups for x in group["params"]):
        weight = _TABLES.get(id(parameter))
        if weight is None or weight.value is not parameter:
            continue
        if any(x is not None for x in (*args[1:], *kwargs.values())):
            raise ValueError(
                "`closure` cannot be used with a `SparseEmbedding`. Fix: call "
                "`loss.backward()`, then `optimizer.step()`. Received: a step "
                "with a closure"
            )
        gradient = parameter.grad
        if gradient is None:
            continue
        if not gradient.is_sparse:
            weight.refuse_dense(gradient)
        weight.update(gradient)
        parameter.grad = None


register_optimizer_step_pre_hook(_before_step)

"""A tower in chunks of rows, on JAX."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax.experimental import sparse

from inbatch_neg import keras_private
from inbatch_neg.chunked_tower.call import TowerCall, VariableValues
from inbatch_neg.types import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Returns whether the tensor can be split by rows."""
    return not isinstance(tensor, sparse.JAXSparse)


def run_in_chunks(
    call: TowerCall, chunk_size: int
) -> tuple[list[Tensor], VariableValues]:
    """Returns the outputs of all rows and the assigned state.

    Uses a `scan` over the chunks, with the assigned state as its carry. With
    `checkpoint`, it keeps only the carry and the rows of each chunk.
    """
    devices = _Devices(call.rows[0].shape[0])
    # Without a loop for the symbolic number of rows in an export.
    batch = devices.rows
    if not isinstance(batch, int) or batch <= chunk_size:
        function, state = _function(call, call.rows)
        outputs, state_values = function([v.value for v in state], call.rows)
        return outputs, list(zip(state, state_values))
    full, rest = divmod(batch, chunk_size)
    chunks, last = devices.cut(call.rows, full, chunk_size)
    function, state = _function(call, [x[0] for x in chunks])
    values = [v.value for v in state]
    if _is_traced([*values, *call.rows, *(v.value for v in call.trainable)]):
        values, outputs = jax.lax.scan(
            jax.checkpoint(
                lambda values, rows: function(values, rows)[::-1],
                prevent_cse=False,  # a scan prevents it anyway
            ),
            values,
            chunks,
        )
        function = jax.checkpoint(function)
    else:  # a scan would be compiled in every call; operations are cached
        results = []
        for number in range(full):
            outputs, values = function(values, [x[number] for x in chunks])
            results.append(outputs)
            call.refuse_other_sizes(results[0], outputs)
        outputs = [jnp.stack(column) for column in zip(*results)]
    ends: list[Tensor] = [None] * len(outputs)
    if rest:
        ends, values = function(values, last)
        call.refuse_other_sizes([x[0] for x in outputs], ends)
    outputs = [devices.join(*pair) for pair in zip(outputs, ends)]
    return outputs, list(zip(state, values))


def _function(
    call: TowerCall, rows: Sequence[Tensor]
) -> tuple[Callable[..., Any], list[keras.Variable]]:
    """Returns a function of state and rows, and the state that it assigns.

    The function returns the outputs and the new values of the state.
    """
    fixed = [(v, v.value) for v in (*call.trainable, *call.state)]
    jax.eval_shape(lambda rows: call(fixed, rows)[0], list(rows))
    state = call.assigned
    ids = {id(v) for v in state}
    fixed = [pair for pair in fixed if id(pair[0]) not in ids]

    def function(
        values: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        outputs, new = call([*fixed, *zip(state, values)], rows)
        return outputs, [new.get(id(v), x) for v, x in zip(state, values)]

    return function, state


def _is_traced(values: Sequence[Tensor]) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in values)


class _Devices:
    """Splits rows so that each device has its part of every chunk.

    The rows of a global batch are on the devices of a `keras.distribution` in
    order, so the first rows of the batch are all on the first device.

    Args:
        rows: Number of rows of the batch.

    Attributes:
        rows: Number of rows on one device.
    """

    def __init__(self, rows: Any) -> None:
        self._count, self._sharding = 1, None
        self.rows = rows
        distribution = keras.distribution.distribution()
        if distribution is None or not isinstance(rows, int):
            return
        mesh, _ = keras_private.mesh_of_rows(distribution, rows)
        axis = distribution.get_data_layout((rows,)).axes[0]
        if axis is not None and rows % mesh.shape[axis] == 0:
            self._count = mesh.shape[axis]
            self._sharding = jax.sharding.NamedSharding(
                mesh, jax.sharding.PartitionSpec(None, axis)
            )
            self.rows = rows // self._count

    def cut(
        self, tensors: Sequence[Tensor], full: int, chunk_size: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns chunks (full, rows of a chunk, ...), and the last rows."""
        chunks, last = [], []
        for tensor in tensors:
            rest = tensor.shape[1:]
            by_device = tensor.reshape(self._count, self.rows, *rest)
            body = by_device[:, : full * chunk_size]
            body = body.reshape(self._count, full, chunk_size, *rest)
            body = jnp.moveaxis(body, 0, 1).reshape(full, -1, *rest)
            if self._sharding is not None:
                body = jax.lax.with_sharding_constraint(body, self._sharding)
            chunks.append(body)
            last.append(by_device[:, full * chunk_size :].reshape(-1, *rest))
        return chunks, last

    def join(self, chunks: Tensor, last: Tensor | None) -> Tensor:
        """Returns the inverse of `cut`: all rows, in their order."""
        full, rest = chunks.shape[0], chunks.shape[2:]
        body = chunks.reshape(full, self._count, -1, *rest)
        body = jnp.moveaxis(body, 0, 1).reshape(self._count, -1, *rest)
        if last is not None:
            end = last.reshape(self._count, -1, *rest)
            body = jnp.concatenate([body, end], axis=1)
        return body.reshape(-1, *rest)

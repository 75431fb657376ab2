"""JAX: `jit`, global tensors on a mesh, stateless steps."""

import contextlib
from collections.abc import Callable

import jax
import keras
from jax.sharding import NamedSharding, PartitionSpec

from inbatch_neg.backends import chunked_jax, keras_internals
from inbatch_neg.backends.base import Backend
from inbatch_neg.backends.collectives import Collectives, Sharding
from inbatch_neg.backends.tower_call import TowerCall, Values
from inbatch_neg.backends.types import Tensor


class JaxBackend(Backend):
    """JAX, with the tensors of the global batch under a distribution."""

    name = "jax"
    id_dtypes = (*Backend.id_dtypes, "uint64")

    def is_readable(self, tensor: Tensor) -> bool:
        """True outside of a trace."""
        return isinstance(tensor, jax.Array) and not isinstance(
            tensor, jax.core.Tracer
        )

    def is_on_gpu(self, tensor: Tensor) -> bool:
        """Asks an array for its devices; a tracer goes to the default one."""
        if self.is_readable(tensor):
            return any(d.platform != "cpu" for d in tensor.devices())
        device = jax.config.jax_default_device or jax.devices()[0]
        return getattr(device, "platform", device) != "cpu"

    def has_half_products(self, tensor: Tensor) -> bool:
        """True on GPUs and TPUs."""
        return self.is_on_gpu(tensor)

    def half_matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """Asks XLA for a product in float32."""
        return jax.numpy.matmul(left, right, preferred_element_type="float32")

    def widest_integer(self) -> str:
        """Depends on JAX's setting `jax_enable_x64`."""
        return "int64" if jax.config.jax_enable_x64 else "int32"

    def compile(self, function: Callable, xla: bool = True) -> Callable:
        """Compiles with XLA, the only compiler that JAX has."""
        return jax.jit(function)

    def is_dense(self, tensor: Tensor) -> bool:
        """Refuses JAX's experimental sparse arrays."""
        return chunked_jax.is_dense(tensor)

    def run_in_chunks(
        self, call: TowerCall, chunk_size: int
    ) -> tuple[list[Tensor], Values]:
        """Uses a `scan` over `jax.checkpoint`."""
        return chunked_jax.run_in_chunks(call, chunk_size)

    def full_precision_matmul(self) -> contextlib.AbstractContextManager:
        """Sets JAX's precision of matrix products."""
        return jax.default_matmul_precision("float32")

    def sharding(self, rows: int) -> Sharding | None:
        """Returns that of Keras' distribution, if one is set."""
        distribution = keras.distribution.distribution()
        if distribution is None:
            return None
        mesh, axes = keras_internals.mesh_of_rows(distribution, rows)
        return _MeshSharding(mesh, axes)

    def device_count(self) -> int:
        """Returns the devices of Keras' distribution, 1 if none is set."""
        distribution = keras.distribution.distribution()
        return (
            1 if distribution is None else distribution.device_mesh.devices.size
        )

    def refuses_export(self) -> bool:
        """True in every export.

        An export also saves gradients, and fails if a `custom_gradient` closes
        over tensors, as the losses of all but small batches do.
        """
        return keras_internals.in_export()

    def restore_model_state(self) -> contextlib.AbstractContextManager:
        """Restores the weights that a stateless step has taken out."""
        return keras_internals.restore_model_state(_is_value)

    def keep_weights(
        self, model: keras.Model
    ) -> contextlib.AbstractContextManager:
        """Restores the weights that `predict` has taken out."""
        return keras_internals.keep_weights(model, _is_value)


def _is_value(value: Tensor) -> bool:
    return (
        isinstance(value, jax.Array)
        and not isinstance(value, jax.core.Tracer)
        and not value.is_deleted()
    )


class _MeshSharding(Sharding):
    """The rows of global tensors along some axes of a device mesh.

    On JAX, tensors and results are global. The compiler would split each
    chunk of the loop over the devices; `shard_map` lets each device loop over
    its own rows instead.
    """

    def __init__(self, mesh: jax.sharding.Mesh, axes: tuple[str, ...]) -> None:
        self.mesh = mesh
        self.axes = axes
        self.count = 1
        for axis in axes:
            self.count *= mesh.shape[axis]

    def map(
        self,
        function: Callable[[dict, dict, Collectives], Tensor],
        by_row: dict[str, Tensor],
        replicated: dict[str, Tensor],
    ) -> Tensor:
        """Runs `function` on every device, by `shard_map`."""
        rows, whole = PartitionSpec(self.axes), PartitionSpec()
        if not isinstance(next(iter(by_row.values())), jax.core.Tracer):
            by_row = jax.device_put(by_row, NamedSharding(self.mesh, rows))
            replicated = jax.device_put(
                replicated, NamedSharding(self.mesh, whole)
            )

        def on_device(by_row: dict, replicated: dict) -> Tensor:
            collectives = _MeshCollectives(self.axes, self.count)
            return function(by_row, replicated, collectives)

        return jax.shard_map(
            on_device,
            mesh=self.mesh,
            in_specs=(rows, whole),
            out_specs=rows,
            check_vma=False,
        )(by_row, replicated)


class _MeshCollectives(Collectives):
    """Collectives in `shard_map`. Shapes are the same on every device."""

    def __init__(self, axes: tuple[str, ...], count: int) -> None:
        self.axes = axes
        self.count = count
        self.index = jax.lax.axis_index(axes)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Gathers along the axes of the mesh."""
        return jax.lax.all_gather(tensor, self.axes, tiled=True)

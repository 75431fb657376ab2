"""Replicas on JAX: global tensors, sharded over the devices of a mesh."""

from collections.abc import Callable

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from inbatch_neg import keras_private
from inbatch_neg.replicas import base
from inbatch_neg.replicas.base import Collectives, Sharding, first_difference
from inbatch_neg.types import Tensor


class Replicas(base.Replicas):
    """The devices of a `keras.distribution`; one process has all tensors."""

    def sharding(self, rows: int) -> Sharding | None:
        """Returns that of Keras' distribution, if one is set."""
        distribution = keras.distribution.distribution()
        if distribution is None:
            return None
        mesh, axes = keras_private.mesh_of_rows(distribution, rows)
        return _MeshSharding(mesh, axes)

    def process(self) -> tuple[int, int]:
        """Returns the place in JAX' cluster, if this process joined one.

        Without a cluster, asking JAX would start its devices.
        """
        # An older JAX does not tell.
        joined = getattr(jax.distributed, "is_initialized", None)
        if joined and joined():
            return jax.process_index(), jax.process_count()
        return 0, 1

    def differing(self, numbers: list[int]) -> tuple[int, list[int]] | None:
        """Compares them in JAX' cluster."""
        # As bytes, since JAX has integers of 32 bits.
        own = np.array(numbers, "int64").view("uint8")
        gathered = np.asarray(multihost_utils.process_allgather(own))
        return first_difference(gathered.view("int64"))

    def devices(self) -> int:
        """Returns those of Keras' distribution, 1 if none is set."""
        distribution = keras.distribution.distribution()
        if distribution is None:
            return 1
        return int(distribution.device_mesh.devices.size)


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

"""JAX: `jit`, tracers, precision of products."""

import contextlib
from collections.abc import Callable

import jax

from inbatch_neg.backends import base
from inbatch_neg.types import Tensor


class Backend(base.Backend):
    """JAX, traced or not."""

    name = "jax"
    id_dtypes = (*base.Backend.id_dtypes, "uint64")
    # An export also saves gradients, and fails if a `custom_gradient` closes
    # over tensors, as the losses of all but small batches do.
    can_export_losses = False

    def is_readable(self, tensor: Tensor) -> bool:
        """True outside of a trace."""
        return isinstance(tensor, jax.Array) and not isinstance(
            tensor, jax.core.Tracer
        )

    def has_value(self, tensor: Tensor) -> bool:
        """False also for an array whose memory was donated to a step."""
        return self.is_readable(tensor) and not tensor.is_deleted()

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

    def full_precision_matmul(self) -> contextlib.AbstractContextManager:
        """Sets JAX's precision of matrix products."""
        return jax.default_matmul_precision("float32")

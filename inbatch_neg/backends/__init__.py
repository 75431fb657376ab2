"""The backend that Keras uses, chosen once, when the package is imported."""

import keras

from inbatch_neg.backends.base import HALF, Backend
from inbatch_neg.types import Size, Tensor


def _chosen() -> Backend:
    name = keras.backend.backend()
    if name == "tensorflow":
        from inbatch_neg.backends.tensorflow import TensorFlowBackend

        return TensorFlowBackend()
    if name == "jax":
        from inbatch_neg.backends.jax import JaxBackend

        return JaxBackend()
    if name == "torch":
        from inbatch_neg.backends.torch import TorchBackend

        return TorchBackend()
    raise ImportError(
        "`inbatch_neg` trains on the Keras backends tensorflow, jax and "
        "torch. Set one of them, for example KERAS_BACKEND=tensorflow, before "
        f"the first import of keras. Received: {name!r}"
    )


backend = _chosen()

__all__ = [
    "HALF",
    "Backend",
    "Size",
    "Tensor",
    "backend",
]

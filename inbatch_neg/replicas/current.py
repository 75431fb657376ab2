"""The replicas on the backend that Keras uses."""

from inbatch_neg.backends import backend
from inbatch_neg.replicas.base import Replicas


def _chosen() -> Replicas:
    if backend.name == "tensorflow":
        from inbatch_neg.replicas.tensorflow import TensorFlowReplicas

        return TensorFlowReplicas()
    if backend.name == "jax":
        from inbatch_neg.replicas.jax import JaxReplicas

        return JaxReplicas()
    from inbatch_neg.replicas.torch import TorchReplicas

    return TorchReplicas()


replicas = _chosen()

"""Which backend trains on the data."""

from inbatch_neg.backends import backend


def uses_tensorflow() -> bool:
    """Whether `fit` of the backend takes a `tf.data.Dataset` best."""
    return backend.name == "tensorflow"


def uses_torch() -> bool:
    """Whether PyTorch is loaded anyway."""
    return backend.name == "torch"

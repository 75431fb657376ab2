"""Which backend trains on the data."""

from inbatch_neg.backends import backend


def uses_tensorflow() -> bool:
    """Returns whether `fit` runs on TensorFlow, and takes `tf.data` best."""
    return backend.name == "tensorflow"


def uses_torch() -> bool:
    """Returns whether `fit` runs on PyTorch."""
    return backend.name == "torch"

"""Which backend Keras runs on: asked here alone."""

import keras


def _uses_tensorflow() -> bool:
    return keras.backend.backend() == "tensorflow"


def _uses_torch() -> bool:
    return keras.backend.backend() == "torch"

"""One suite for every backend: `KERAS_BACKEND` picks it, one a process."""

import os

import keras
import pytest

# A backend that was asked for and is not there must fail, never skip.
_WANTED = os.environ.get("KERAS_BACKEND", keras.backend.backend())
if keras.backend.backend() != _WANTED:
    raise RuntimeError(
        f"The tests were asked to run on {_WANTED}, and Keras runs on "
        f"{keras.backend.backend()}."
    )


@pytest.fixture(autouse=True)
def _fresh_keras():
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")

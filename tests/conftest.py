"""One suite for every backend: `KERAS_BACKEND` picks it, one a process."""

import os

import helpers
import keras
import pytest

# A backend that was asked for and is not there must fail, never skip.
_WANTED = os.environ.get("KERAS_BACKEND", keras.backend.backend())
if keras.backend.backend() != _WANTED:
    raise RuntimeError(
        f"The tests were asked to run on {_WANTED}, and Keras runs on "
        f"{keras.backend.backend()}."
    )

if keras.backend.backend() == "jax":
    # Eager calls compile their loops anew each time, the same as before.
    import atexit
    import shutil
    import tempfile

    import jax

    _CACHE = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", _CACHE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def _walk(monkeypatch):
    # The tests' batches are small, and it is the walk that they are to test.
    # tests/test_small_batch.py tests what is done in its place.
    helpers.set_tuning(monkeypatch, max_dense_scores=0)


@pytest.fixture(autouse=True)
def _fresh_keras():
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")

"""One suite for every backend: `KERAS_BACKEND` picks it, one a process.

A test that a backend cannot run says so by a marker, and is skipped there
with a reason. Any other skip fails the run: a test that vanishes by itself,
because a package is missing for example, would go unnoticed.
"""

import gc
import importlib.util
import os
import warnings

# Most of the time on JAX goes into compiling, and most of that into making
# fast what runs once. TensorFlow reads the variable, too, and may not know the
# flags that are for JAX alone.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + (
        " --xla_cpu_use_fusion_emitters=false"
        " --xla_cpu_parallel_codegen_split_count=1"
        if os.environ.get("KERAS_BACKEND") == "jax"
        else ""
    ),
)

# The processes of pytest-xdist use all cores already.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import pytest

from tests import internals
from tests.helpers import BACKEND

# A backend that was asked for and is not there must fail, never skip.
_WANTED = os.environ.get("KERAS_BACKEND", BACKEND)
if BACKEND != _WANTED:
    raise RuntimeError(
        f"The tests were asked to run on {_WANTED}, and Keras runs on "
        f"{BACKEND}."
    )

if BACKEND == "jax":
    # Eager calls compile their loops anew each time, the same as before. The
    # processes of pytest-xdist, and those that tests start, share the folder.
    import atexit
    import shutil
    import tempfile

    import jax

    _FOLDER = "JAX_COMPILATION_CACHE_DIR"
    if _FOLDER not in os.environ:
        os.environ[_FOLDER] = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, os.environ[_FOLDER], ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # For this process, which has imported JAX already.
    jax.config.update("jax_compilation_cache_dir", os.environ[_FOLDER])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

if BACKEND == "tensorflow":
    # An iterator that has not been read to its end, and that tunes its
    # buffers, waits for its thread when Python deletes it, up to a minute
    # (TensorFlow 2.21).
    import tensorflow as tf

    _tuned_iterator = tf.data.Dataset.__iter__

    def _untuned_iterator(dataset):
        options = tf.data.Options()
        options.autotune.enabled = False
        return _tuned_iterator(dataset.with_options(options))

    tf.data.Dataset.__iter__ = _untuned_iterator


@pytest.fixture
def tuned_iterators(monkeypatch):
    """Lets TensorFlow read as far ahead as it does for a user."""
    if BACKEND == "tensorflow":
        monkeypatch.setattr(tf.data.Dataset, "__iter__", _tuned_iterator)


@pytest.fixture(autouse=True)
def _fresh_keras():
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True)
def _no_warning_of_ours():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"(inbatch_neg|tests)\b")
        yield


@pytest.fixture
def chunked(monkeypatch):
    """The losses of small batches are computed in chunks, as large ones are."""
    internals.compute_in_chunks(monkeypatch)


@pytest.fixture(params=["chunked", "dense"])
def each_path(request, monkeypatch):
    """Runs a test twice: in chunks, and with the table of scores kept."""
    if request.param == "chunked":
        internals.compute_in_chunks(monkeypatch)
    else:
        internals.refuse_chunks(monkeypatch)
    return request.param


def pytest_collection_finish():
    """Lets Python no longer look for garbage in what has been imported."""
    gc.collect()
    gc.freeze()
    # Models are cycles of many objects: seldom collected, they are few, too.
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file is tested by one process: its models are built once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


# Which tests run.

# Files of `tests/data` whose libraries are not there. The CPU build of PyTorch
# is no plain dependency, so the README's test command does without; `.ci/run`
# installs it, and nothing is left out there.
collect_ignore = []
if importlib.util.find_spec("torch") is None:
    if os.environ.get("CI_HAS_TORCH"):
        raise RuntimeError("The tests were to have PyTorch, and it is missing.")
    collect_ignore = [
        "data/test_docs.py",
        "data/test_first_epoch.py",
        "data/test_shard.py",
        "data/test_tables.py",
        "data/test_torch.py",
    ]
if keras.__version__.startswith("3.5."):
    # The oldest environment holds what Keras 3.5 runs on, and nothing else.
    collect_ignore = [
        "data/test_docs.py",
        "data/test_first_epoch.py",
        "data/test_grain.py",
        "data/test_parquet.py",
        "data/test_shard.py",
        "data/test_tables.py",
        "data/test_torch.py",
    ]


def pytest_report_header():
    return f"left out, as libraries are missing: {collect_ignore or 'nothing'}"


_SKIPPED = "by marker: "


def pytest_collection_modifyitems(items):
    # First what takes longest, so that no process of pytest-xdist is left
    # with it while the others have finished.
    items.sort(key=lambda item: item.path.parent.name != "replicas")
    for item in items:
        reason = _reason_to_skip(item)
        if reason:
            item.add_marker(pytest.mark.skip(reason=_SKIPPED + reason))


def _reason_to_skip(item):
    for marker in item.iter_markers("backends"):
        unknown = set(marker.args) - {"tensorflow", "jax", "torch"}
        if unknown or not marker.args:
            raise pytest.UsageError(f"{item.nodeid}: no backend {unknown}")
        if BACKEND not in marker.args:
            return f"runs on {', '.join(marker.args)}"
    if os.environ.get("CI_ONCE_ELSEWHERE") and item.get_closest_marker("once"):
        if not item.get_closest_marker("backends"):
            return "hardly depends on the backend, and runs elsewhere"
    for marker in item.iter_markers("keras_at_least"):
        (oldest,) = marker.args
        if _numbers(keras.__version__) < _numbers(oldest):
            return f"needs Keras {oldest}"
    return None


def _numbers(version):
    return [int(part) for part in version.split(".")[:2]]


def pytest_configure(config):
    # With pytest-xdist, the process that starts the others hears of all tests.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_NoOtherSkips())


class _NoOtherSkips:
    """Fails the run if a test was skipped, and no marker said so."""

    def __init__(self):
        self._strays = []

    def pytest_collectreport(self, report):
        self._look_at(report)

    def pytest_runtest_logreport(self, report):
        self._look_at(report)

    def _look_at(self, report):
        if report.skipped and _SKIPPED not in str(report.longrepr):
            self._strays.append(report.nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if self._strays and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self._strays:
            terminalreporter.section("skipped, and no marker says so")
            for nodeid in self._strays:
                terminalreporter.line(nodeid)

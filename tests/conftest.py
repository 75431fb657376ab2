"""One suite for every backend: `KERAS_BACKEND` picks it, one a process.

A test that a backend cannot run says so by a marker, and is skipped there
with a reason. Any other skip fails the run: a test that vanishes by itself,
because a package is missing for example, would go unnoticed.
"""

import os

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
def _fresh_keras():
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


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


# Which tests run.

_SKIPPED = "by marker: "


def pytest_collection_modifyitems(items):
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

"""Starts the programs of this folder in processes of their own."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

HERE = pathlib.Path(__file__).parent
TIMEOUT = 240


def free_ports(number):
    """Returns ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def start(program, *arguments, engine, log, **environment):
    """Starts a program; what it prints goes to the file `log`."""
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH")]
    env = {
        **os.environ,
        "KERAS_BACKEND": engine,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # More threads than cores slow many small processes down.
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(HERE / program), *map(str, arguments)],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    process.log = pathlib.Path(log)
    return process


def wait(processes, timeout=TIMEOUT):
    """Waits for all; returns their exit codes. None is left running."""
    end = time.monotonic() + timeout
    try:
        for process in processes:
            process.wait(max(end - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        logs = "\n".join(tail(process) for process in processes)
        raise AssertionError(f"Hung for {timeout} s:\n{logs}") from None
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return [process.returncode for process in processes]


def tail(process, characters=4000):
    """Returns the end of what a process printed."""
    text = process.log.read_text(errors="replace")[-characters:]
    return f"--- {process.log.name}, exit {process.poll()}\n{text}"


def finish(processes, timeout=TIMEOUT):
    """Waits for all and fails unless all of them succeeded."""
    codes = wait(processes, timeout)
    logs = "\n".join(tail(p) for p in processes if p.returncode)
    assert not any(codes), logs


def assert_equal_results(expected, actual, cases=()):
    """Compares two result files, every weight and loss to 1e-5 relative.

    Args:
        expected: File of one device.
        actual: File of several, of the same cases or of `cases` alone.
    """
    expected, actual = dict(np.load(expected)), dict(np.load(actual))
    if cases:
        expected = {
            name: value
            for name, value in expected.items()
            if name.split("/")[0] in cases
        }
    assert set(expected) == set(actual)
    assert len(expected) >= 5 * len(cases) + 5 * (not cases)
    for name in expected:
        assert np.isfinite(actual[name]).all(), name
        # A weight near zero is a difference of larger ones: relative to the
        # largest entry of its own matrix.
        scale = np.abs(expected[name]).max()
        error = np.abs(actual[name] - expected[name]).max() / scale
        assert error <= 1e-5, f"{name}: {error:.1e}"

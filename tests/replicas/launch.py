"""Starts the programs of this folder in processes of their own."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import internals
from tests.replicas import parts, problem

ROOT = pathlib.Path(__file__).parents[2]
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
    """Starts a program; what it prints goes to the file `log`.

    Args:
        program: Name of the module.
        arguments: Of the program.
        engine: The backend.
        log: Path of the file.
        environment: Further variables.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
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
            [sys.executable, "-m", program, *map(str, arguments)],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    process.log = pathlib.Path(log)
    return process


def start_parts(engine, folder, log, *names, **environment):
    """Starts the named parts of `on_<engine>.py`, with a log in the folder."""
    log = folder / f"{log}.log"
    program = f"tests.replicas.on_{engine}"
    return start(program, folder, *names, engine=engine, log=log, **environment)


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
        error = np.abs(actual[name] - expected[name]).max()
        assert error <= 1e-5 * scale, f"{name}: {error:.1e} of {scale:.1e}"


def results_alone(folder):
    """Trains every case on one device, in this process; returns the file."""
    with pytest.MonkeyPatch.context() as patch:
        internals.compute_in_chunks(patch)
        problem.fit_alone(folder / "alone.npz")
    return folder / "alone.npz"


def said(process, part):
    """Returns what a part of `parts.run` printed; fails if it did not end."""
    text = process.log.read_text()
    _, begun, text = text.partition(f"== {part}\n")
    text, ended, _ = text.partition(f"== {part} ended\n")
    assert begun and ended, tail(process)
    return text


def assert_refused(text, seeds):
    """Checks what `problem.print_refusals` printed, the same everywhere."""
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("refused: ")] == [
        "refused: `batch_size` by process: [4, 5]",
        f"refused: `seed`, -1 for None, by process: {seeds}",
        "refused: rows of `data`, -1 if unknown, by process: [24, 25]",
        "refused: `first_epoch`, -1 for a function, by process: [0, 1]",
    ]


def assert_global_columns(found, rows):
    """Column j of row i is candidate i + j, of the global batch of `rows`."""
    places = np.arange(rows)
    expected = (places[:, None] + places) % rows
    np.testing.assert_array_equal(found["all"], expected)
    shifts = (found["shifts"] - places[:, None]) % rows
    assert (shifts == shifts[0]).all(), "the replicas' shifts differ"
    assert shifts[0, 0] == 0
    assert len(set(shifts[0])) == shifts.shape[1]
    # The extra ones follow in their global order, the same for every row.
    extra = found["extra"]
    np.testing.assert_array_equal(extra[:, :rows], expected)
    assert extra.shape[1] > rows
    following = np.arange(rows, extra.shape[1])
    np.testing.assert_array_equal(
        extra[:, rows:], np.broadcast_to(following, extra[:, rows:].shape)
    )


def assert_own_columns(found, rows, replicas):
    """Without `cross_replica` a row meets the rows of its replica alone."""
    own = found["own_rows"]
    replica = np.repeat(np.arange(replicas), rows)[:, None]
    assert own.shape == (rows * replicas, rows)
    np.testing.assert_array_equal(own // rows, replica + 0 * own)


def ended_after(text):
    """Returns the seconds and the name of the error that ended a wait."""
    found = re.search(r"^after (\d+) s: (\w+): ", text, re.MULTILINE)
    assert found, text
    return int(found.group(1)), found.group(2)


def assert_example_learned(text):
    """Checks what an example of `docs/examples` printed in the end."""
    found = re.search(r"recall@10 ([0-9.]+), .* by chance ([0-9.]+)", text)
    assert found, text
    assert float(found.group(1)) > 0.7
    assert float(found.group(2)) < 0.05


def write_ratings(folder, users=300, kinds=10, items_of_a_kind=30):
    """Writes a `u.data` of users who take items of one kind.

    The examples read it, and `pairs.parquet`, which is written from it.
    """
    random = np.random.default_rng(0)
    lines = []
    for user in range(users):
        taken = random.permutation(items_of_a_kind)[:20] * kinds + user % kinds
        lines += [f"{user} {item} 5 {t}" for t, item in enumerate(taken)]
    (folder / "u.data").write_text("\n".join(lines))
    parts.run_example("towers", folder)

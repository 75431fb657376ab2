"""Starts the programs of this folder in processes of their own."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import numpy as np

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
        program: Path from the root of the repository, or the name of a
            module in this folder.
        arguments: Of the program.
        engine: The backend.
        log: Path of the file.
        environment: Further variables.
    """
    if program.endswith(".py"):
        program = [str(ROOT / program)]
    else:
        program = ["-m", f"tests.replicas.{program}"]
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
            [sys.executable, *program, *map(str, arguments)],
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
        error = np.abs(actual[name] - expected[name]).max()
        assert error <= 1e-5 * scale, f"{name}: {error:.1e} of {scale:.1e}"


def assert_refused(process, seeds):
    """Checks what `problem.print_refusals` printed, the same everywhere."""
    lines = process.log.read_text().splitlines()
    assert [line for line in lines if line.startswith("refused: ")] == [
        "refused: `batch_size` by process: [4, 5]",
        f"refused: `seed`, -1 for None, by process: {seeds}",
        "refused: rows of `data`, -1 if unknown, by process: [24, 25]",
        "refused: `first_epoch`, -1 for a function, by process: [0, 1]",
    ]


def columns(folder, engine, replicas):
    """Returns what `columns.py` shows, the replicas' rows in order."""
    (port,) = free_ports(1)
    processes = replicas if engine == "torch" else 1
    finish(
        [
            start(
                "columns",
                folder / f"{rank}.npz",
                rank,
                replicas,
                port,
                engine=engine,
                log=folder / f"{rank}.log",
            )
            for rank in range(processes)
        ]
    )
    found = [np.load(folder / f"{rank}.npz") for rank in range(processes)]
    return {
        name: np.concatenate([one[name] for one in found]) for name in found[0]
    }


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


def assert_survivors_and_resumption(
    folder, start, survivor_code, engine_timeout
):
    """Kills a worker, and sees training end, and later go on to the result.

    Args:
        folder: Empty folder.
        start: Function of a folder, the number of workers and the event that
            returns the started processes.
        survivor_code: Exit code after an error of the engine.
        engine_timeout: Seconds that the engine was told to wait.
    """
    for name in ("alone", "together"):
        (folder / name).mkdir()
    finish(start(folder / "alone", 1, "nothing"))
    processes = start(folder / "together", 2, "kill")
    killed = processes[-1]
    killed.wait(TIMEOUT)
    began = time.monotonic()
    codes = wait(processes)
    assert codes == [survivor_code, -9], tail(processes[0])
    assert time.monotonic() - began < engine_timeout + 20
    processes = start(folder / "together", 2, "nothing")
    finish(processes)
    for rank, process in enumerate(processes):
        # The step of the kill had not been saved.
        assert "steps 3 6" in process.log.read_text()
        assert_equal_results(
            folder / "alone" / "0.npz", folder / "together" / f"{rank}.npz"
        )


def assert_backup_restores(folder, engine):
    """Kills a `fit` in its second epoch; a second one ends as if not."""

    def fit(name, event):
        return start(
            "killed_fit",
            folder / f"{name}.npz",
            folder / f"{name}_backup",
            event,
            engine=engine,
            log=folder / f"{name}_{event}.log",
        )

    finish([fit("whole", "nothing")])
    assert wait([fit("killed", "kill")]) == [-9]
    assert not (folder / "killed.npz").exists()
    second = fit("killed", "nothing")
    finish([second])
    assert "epochs trained: [1, 2]" in second.log.read_text()
    assert_equal_results(folder / "whole.npz", folder / "killed.npz")


def assert_estimate_is_right(folder, engine):
    """Trains the streaming estimate on two devices."""
    log = folder / "estimate.log"
    finish([start("estimate", engine=engine, log=log)])


def assert_example_learns(
    folder, engine, environments=({},), arguments=((),), program=None
):
    """Runs `docs/examples/replicas_<program>.py` on ratings made up here.

    Args:
        folder: For the ratings, the rows and the logs.
        engine: The backend, and the program unless it is named.
        environments: Of each process.
        arguments: Of each process.
        program: The last part of the program's name.
    """
    _write_ratings(folder)
    shared = ("--data", folder, "--folder", folder, "--epochs", 16)

    def example(name, log, *more, **environment):
        return start(
            f"docs/examples/replicas_{name}.py",
            *shared,
            *more,
            engine=engine,
            log=folder / log,
            **environment,
        )

    finish([example("towers", "rows.log")])
    processes = [
        example(program or engine, f"example{rank}.log", *more, **environment)
        for rank, (environment, more) in enumerate(
            zip(environments, arguments, strict=True)
        )
    ]
    finish(processes)
    text = processes[0].log.read_text()
    found = re.search(r"recall@10 ([0-9.]+), .* by chance ([0-9.]+)", text)
    assert found, tail(processes[0])
    assert float(found.group(1)) > 0.7
    assert float(found.group(2)) < 0.05


def _write_ratings(folder, users=300, kinds=10, items_of_a_kind=30):
    """Writes a `u.data` of users who take items of one kind."""
    random = np.random.default_rng(0)
    lines = []
    for user in range(users):
        taken = random.permutation(items_of_a_kind)[:20] * kinds + user % kinds
        lines += [f"{user} {item} 5 {t}" for t, item in enumerate(taken)]
    (folder / "u.data").write_text("\n".join(lines))

"""JAX: `keras.distribution` on virtual CPU devices, and in two processes."""

import functools
import json

import numpy as np
import pytest

from tests.replicas import launch

ENGINE = "jax"

pytestmark = pytest.mark.backends(ENGINE)


start = functools.partial(launch.start_parts, ENGINE)


@pytest.fixture(scope="module")
def killed(folder):
    """A process of four devices that is killed while it trains."""
    names = ("columns", "compiled", "unequal", "killed fit")
    process = start(folder, "killed", *names)
    assert launch.wait([process]) == [-9], launch.tail(process)
    return process


@pytest.fixture(scope="module")
def devices(folder, killed):
    """A process of four devices, and all that they do."""
    process = start(
        folder,
        "devices",
        *("fit", "fit of a sharded model", "loop", "estimate"),
        *("whole fit", "second fit"),
    )
    launch.finish([process])
    return process


@pytest.fixture(scope="module")
def processes(folder):
    """Two processes; the last one is killed in the end."""
    (port,) = launch.free_ports(1)
    names = ("example", "refusals", "fit of processes", "killed")
    processes = [
        start(
            folder,
            f"process{rank}",
            *names,
            PORT=str(port),
            PROCESS=str(rank),
        )
        for rank in range(2)
    ]
    assert launch.wait(processes) == [4, -9], launch.tail(processes[0])
    return processes


@pytest.mark.parametrize(
    "part, file, cases",
    [
        ("fit", "fit", ()),
        ("fit of a sharded model", "model", ("everything", "memory")),
        ("loop", "loop", ("rotation",)),
    ],
)
def test_four_devices_equal_one_device(
    alone, folder, devices, part, file, cases
):
    launch.said(devices, part)
    launch.assert_equal_results(alone, folder / f"{file}.npz", cases)


def test_two_processes_equal_one_device(alone, folder, processes):
    for rank, process in enumerate(processes):
        launch.said(process, "fit of processes")
        launch.assert_equal_results(
            alone, folder / f"processes{rank}.npz", ("everything", "memory")
        )


def test_processes_refuse_different_arguments(processes):
    for process in processes:
        text = launch.said(process, "refusals")
        launch.assert_refused(text, seeds=[2**40, 2**41])


def test_columns_follow_the_global_batch(folder, killed):
    launch.said(killed, "columns")
    found = np.load(folder / "columns.npz")
    launch.assert_global_columns(found, rows=16)
    # JAX has one global batch, whatever the devices.
    assert found["own_rows"].shape == (16, 16)


def test_candidates_are_communicated_once_and_devices_share_the_rows(killed):
    rows, dimensions = 8192, 64
    lines = launch.said(killed, "compiled").splitlines()
    across, left_alone, table = map(json.loads, lines)
    assert across["collectives"] == [
        f"all-gather f32[{rows},{dimensions}]",  # the candidates
        "all-reduce f32[]",  # the mean loss
        f"reduce-scatter f32[{rows // 4},{dimensions}]",  # their gradients
    ]
    assert across["in_loops"] == []
    # Each device walks over its own quarter of the rows; a second loop is for
    # losses that underflow.
    (trips,) = set(across["trips"])
    assert set(left_alone["trips"]) == {4 * trips}
    chunk = rows // 4 // trips
    # No table of scores but a chunk's; (B_local + B_global) D and a chunk.
    largest = max(
        int(a) * int(b)
        for a, b in (s[4:-1].split(",") for s in across["shapes"])
    )
    assert largest <= chunk * rows
    floats = 12 * rows * dimensions + 3 * chunk * rows
    assert across["temporary_bytes"] < 4 * floats
    # What the compiler makes of the global arrays by itself.
    assert len(left_alone["in_loops"]) >= 4
    # The devices exchange the rows of the batch, and not the sparse table.
    assert f"all-gather s32[{rows}]" in table["collectives"]
    assert not any("99991" in shape for shape in table["collectives"])


def test_rows_that_the_devices_do_not_divide_are_an_error(killed):
    text = launch.said(killed, "unequal")
    assert "must have the same number of rows" in text
    assert "6 rows over 4 devices" in text


def test_the_estimate_counts_the_rows_of_all_devices(devices):
    launch.said(devices, "estimate")


def test_backup_and_restore_after_a_kill(folder, devices):
    launch.said(devices, "whole fit")
    assert "epochs trained: [1, 2]" in launch.said(devices, "second fit")
    launch.assert_equal_results(folder / "whole.npz", folder / "second.npz")


def test_the_example_learns(processes):
    text = launch.said(processes[0], "example")
    launch.assert_example_learned(text)


def test_training_ends_after_a_killed_process(processes):
    text = processes[0].log.read_text().partition("== killed\n")[2]
    seconds, error = launch.ended_after(text)
    assert seconds < 40, error

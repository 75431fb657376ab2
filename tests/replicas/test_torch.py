"""PyTorch: two processes of `torch.distributed` with gloo."""

import numpy as np
import pytest

from tests.replicas import launch

ENGINE = "torch"

pytestmark = pytest.mark.backends(ENGINE)

# What only the timeout of the other process ends.
WAITS = (
    "more batches",
    "no full_batches",
    "unreadable data",
    "unreadable input",
    "unreadable in inference",
    "a layer alone",
)


def start(folder, log, *names):
    """Starts two processes that run the named parts of `on_torch.py`."""
    (port,) = launch.free_ports(1)
    # What `torchrun --nproc-per-node 2` sets.
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        launch.start_parts(
            ENGINE,
            folder,
            f"{log}{rank}",
            *names,
            RANK=rank,
            LOCAL_RANK=rank,
            **shared,
        )
        for rank in "01"
    ]


@pytest.fixture(scope="module")
def uninterrupted(folder):
    """What one process finds that trains as the killed ones do."""
    from tests.replicas import faults_torch, problem

    result = faults_torch.train(folder / "alone", 0, 1)
    problem.save(folder / "uninterrupted.npz", {"resumed": result})
    return folder / "uninterrupted.npz"


@pytest.fixture(scope="module")
def killed(folder):
    """Two processes; the last one is killed in the end."""
    processes = start(folder, "killed", "columns", "killed")
    assert launch.wait(processes) == [4, -9], launch.tail(processes[0])
    return processes


@pytest.fixture(scope="module")
def processes(folder, killed):
    """Two processes, and all that they do."""
    names = ("fit", "uneven", "unequal", *WAITS, "resumed", "example")
    processes = start(folder, "processes", *names)
    launch.finish(processes)
    return processes


def test_two_processes_equal_one_process(alone, folder, processes):
    for rank, process in enumerate(processes):
        launch.said(process, "fit")
        launch.assert_equal_results(alone, folder / f"fit{rank}.npz")


def test_columns_follow_the_global_batch(folder, killed):
    parts = []
    for rank, process in enumerate(killed):
        launch.said(process, "columns")
        parts.append(np.load(folder / f"columns{rank}.npz"))
    found = {
        name: np.concatenate([one[name] for one in parts]) for name in parts[0]
    }
    launch.assert_global_columns(found, rows=8)
    launch.assert_own_columns(found, rows=4, replicas=2)


def test_unequal_rows_are_an_error_on_every_process(processes):
    for process in processes:
        text = launch.said(process, "unequal")
        assert "Received: rows of `query` by replica: [8, 6]" in text


def test_what_differs_on_one_process_is_an_error_on_every_one(processes):
    said = [launch.said(one, "uneven").splitlines() for one in processes]
    # Of eight rows of the second global batch, each process has its four.
    assert [lines.pop(-3) for lines in said] == [
        "[8, 9, 10, 11]",
        "[12, 13, 14, 15]",
    ]
    assert said[0] == said[1]
    *refused, same, last = said[0]
    assert same == "the same rows: passed"
    data, refused = refused[:7], refused[7:]
    assert all(": ValueError: " in line for line in data)
    *data, columns = data
    assert "`columns`, as a hash, by process: [" in columns
    assert [line.split("by process: ")[-1] for line in data] == [
        *("[24, 28]", "[24, 3]", "[4, 5]", "[0, 1]", "[0, 1]", "[0, 1]")
    ]
    assert "rows of `data`" in data[1] and "`seed`" in data[4]
    assert last == "nothing: passed"
    assert [line.split("by replica: ")[-1] for line in refused[:-4]] == [
        *("[8, 5]", "[8, 6]", "[8, 1]", "[4, 3]", "[1, 2]", "[1, 0]", "[1, 0]"),
    ]
    assert all(": PartialBatchError: " in line for line in refused)
    assert "dtype, as a hash, of `candidate_ids`" in refused[-4]
    assert "rows of `candidate` by replica: [8, 9]" in refused[-3]
    assert "rank (0: not passed) of `candidate_ids`" in refused[-2]
    assert "rows of `candidate_ids` by replica: [8, 6]" in refused[-1]


@pytest.mark.parametrize("case", WAITS)
def test_a_process_that_waits_ends_by_the_timeout(processes, case):
    seconds, error = launch.ended_after(launch.said(processes[0], case))
    assert 5 <= seconds < 30, error
    text = launch.said(processes[1], case)
    assert ("alone: " in text) == case.startswith("unreadable")


def test_training_ends_and_goes_on_after_a_killed_process(
    uninterrupted, folder, killed, processes
):
    text = killed[0].log.read_text().partition("== killed\n")[2]
    seconds, error = launch.ended_after(text)
    assert seconds < 40, error
    for rank, process in enumerate(processes):
        # The step of the kill had not been saved.
        assert "steps 3 6" in launch.said(process, "resumed")
        launch.assert_equal_results(
            uninterrupted, folder / f"resumed{rank}.npz"
        )


def test_the_example_learns(processes):
    text = launch.said(processes[0], "example")
    launch.assert_example_learned(text)

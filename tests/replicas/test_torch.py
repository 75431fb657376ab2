"""PyTorch: `torch.distributed` with gloo."""

import pytest

from tests.replicas import launch

ENGINE = "torch"

pytestmark = pytest.mark.backends(ENGINE)


def together(program, folder, number, *event, wanted=None):
    """Starts `number` processes of a program that takes rank, number, port."""
    (port,) = launch.free_ports(1)
    return [
        launch.start(
            program,
            folder if wanted is None else folder / wanted.format(rank),
            rank,
            number,
            port,
            *event,
            engine=ENGINE,
            log=folder / f"{''.join(event)}{rank}.log",
        )
        for rank in range(number)
    ]


def train(folder, number):
    """Starts processes that train every case."""
    return together("run_torch", folder, number, wanted="{}.npz")


def faulty(folder, number, event):
    """Starts processes in which something goes wrong."""
    return together("faults_torch", folder, number, event)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with the global batch."""
    folder = tmp_path_factory.mktemp("alone")
    launch.finish(train(folder, 1))
    return folder / "0.npz"


def test_four_processes_equal_one_process(alone, tmp_path):
    launch.finish(train(tmp_path, 4))
    for rank in range(4):
        launch.assert_equal_results(alone, tmp_path / f"{rank}.npz")


def test_columns_follow_the_global_batch(tmp_path):
    found = launch.columns(tmp_path, ENGINE, replicas=2)
    launch.assert_global_columns(found, rows=8)
    launch.assert_own_columns(found, rows=4, replicas=2)


def test_unequal_rows_are_an_error_on_every_process(tmp_path):
    processes = faulty(tmp_path, 2, "unequal")
    assert launch.wait(processes) == [3, 3]
    for process in processes:
        text = process.log.read_text()
        assert "Received: rows of `query` by replica: [8, 6]" in text


def test_what_differs_on_one_process_is_an_error_on_every_one(tmp_path):
    processes = together("uneven_torch", tmp_path, 2)
    launch.finish(processes)
    said = [process.log.read_text().splitlines() for process in processes]
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


def test_training_survives_a_killed_process(tmp_path):
    launch.assert_survivors_and_resumption(
        tmp_path, faulty, survivor_code=4, engine_timeout=20
    )


def test_the_example_learns(tmp_path):
    (port,) = launch.free_ports(1)
    # What `torchrun --nproc-per-node 2` sets.
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    launch.assert_example_learns(
        tmp_path,
        ENGINE,
        [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"],
        [(), ()],
    )

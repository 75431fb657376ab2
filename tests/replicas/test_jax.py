"""JAX: `keras.distribution` on virtual CPU devices."""

import json

import pytest

from tests.replicas import launch

ENGINE = "jax"

pytestmark = pytest.mark.backends(ENGINE)


# By way of training and distribution: `fit` of one of them takes all cases.
FEW = ("everything", "rotation", "memory", "chunked")


def train(output, *arguments, **environment):
    return launch.start(
        "run_jax",
        output,
        *arguments,
        engine=ENGINE,
        log=f"{output}.log",
        **environment,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One device with the global batch, by way of training."""
    folder = tmp_path_factory.mktemp("alone")
    files = {way: folder / f"{way}.npz" for way in ("fit", "loop")}
    launch.finish([train(files["fit"], "fit", "none", 1)])
    launch.finish([train(files["loop"], "loop", "none", 1, *FEW)])
    return files


@pytest.mark.parametrize(
    "way, kind, cases",
    [
        ("fit", "data", ()),
        ("fit", "model", FEW),
        ("loop", "data", FEW),
    ],
)
def test_four_devices_equal_one_device(alone, tmp_path, way, kind, cases):
    file = tmp_path / "distributed.npz"
    launch.finish([train(file, way, kind, 4, *cases)])
    launch.assert_equal_results(alone[way], file, cases)


def test_two_processes_equal_one_device(alone, tmp_path):
    cases = ("everything", "memory")
    (port,) = launch.free_ports(1)
    processes = [
        train(
            *(tmp_path / f"{process}.npz", "fit", "processes", 1, *cases),
            **{"PORT": str(port), "PROCESSES": "2", "PROCESS": str(process)},
        )
        for process in range(2)
    ]
    launch.finish(processes)
    for number, process in enumerate(processes):
        file = tmp_path / f"{number}.npz"
        launch.assert_equal_results(alone["fit"], file, cases)
        launch.assert_refused(process, seeds=[2**40, 2**41])


def test_columns_follow_the_global_batch(tmp_path):
    found = launch.columns(tmp_path, ENGINE, replicas=4)
    launch.assert_global_columns(found, rows=16)
    # JAX has one global batch, whatever the devices.
    assert found["own_rows"].shape == (16, 16)


def test_candidates_are_communicated_once_and_devices_share_the_rows(tmp_path):
    rows, dimensions = 8192, 64
    log = tmp_path / "compiled.log"
    launch.finish([launch.start("compiled_jax", rows, engine=ENGINE, log=log)])
    lines = [x for x in log.read_text().splitlines() if x.startswith("{")]
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


def test_the_estimate_counts_the_rows_of_all_devices(tmp_path):
    launch.assert_estimate_is_right(tmp_path, ENGINE)


def test_backup_and_restore_after_a_kill(tmp_path):
    launch.assert_backup_restores(tmp_path, ENGINE)


def test_the_example_learns(tmp_path):
    (port,) = launch.free_ports(1)
    launch.assert_example_learns(
        tmp_path,
        ENGINE,
        [{}, {}],
        [
            ("--processes", 2, "--process", process, "--port", port)
            for process in range(2)
        ],
    )


def test_rows_that_the_devices_do_not_divide_are_an_error(tmp_path):
    log = tmp_path / "unequal.log"
    process = launch.start("unequal_jax", engine=ENGINE, log=log)
    assert launch.wait([process]) == [3], launch.tail(process)
    text = log.read_text()
    assert "must have the same number of rows" in text
    assert "6 rows over 4 devices" in text

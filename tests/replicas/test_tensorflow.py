"""TensorFlow: `MirroredStrategy` and `MultiWorkerMirroredStrategy`."""

import json

import pytest

from tests.replicas import launch

ENGINE = "tensorflow"

pytestmark = pytest.mark.backends(ENGINE)


# Enough to see the order of replicas and workers; two devices train every case.
FEW = ("everything", "rotation", "memory", "chunked")


def train(output, *arguments):
    return launch.start(
        "run_tensorflow",
        output,
        *arguments,
        engine=ENGINE,
        log=f"{output}.log",
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One device with the global batch, by way of training."""
    folder = tmp_path_factory.mktemp("alone")
    files = {}
    for way, cases in (("fit", ()), ("loop", FEW)):
        files[way] = folder / f"{way}.npz"
        launch.finish([train(files[way], way, "none", 1, *cases)])
    return files


def workers(program, number, log, *arguments):
    """Starts one process per worker, joined over gRPC on 127.0.0.1.

    `{rank}` in an argument becomes the number of the worker.
    """
    return [
        launch.start(
            program,
            *(str(argument).format(rank=rank) for argument in arguments),
            engine=ENGINE,
            log=f"{log}{rank}.log",
            **environment,
        )
        for rank, environment in enumerate(environments(number))
    ]


def environments(number):
    """Returns the variables of each worker on this machine."""
    cluster = {
        "worker": [f"127.0.0.1:{port}" for port in launch.free_ports(number)]
    }
    tasks = [{"type": "worker", "index": rank} for rank in range(number)]
    return [
        {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}
        for task in tasks
    ]


@pytest.mark.parametrize(
    "way, devices, cases",
    # Four take long to trace, and show the order of replicas.
    [("fit", 2, ()), ("loop", 4, ("everything", "memory"))],
)
def test_mirrored_devices_equal_one_device(
    alone, tmp_path, way, devices, cases
):
    file = tmp_path / "mirrored.npz"
    launch.finish([train(file, way, "mirrored", devices, *cases)])
    launch.assert_equal_results(alone[way], file, cases)


def test_two_workers_equal_one_device(alone, tmp_path):
    launch.finish(
        workers(
            "run_tensorflow",
            2,
            tmp_path / "worker",
            tmp_path / "{rank}.npz",
            "loop",
            "workers",
            2,
            *FEW,
        )
    )
    for rank in range(2):
        launch.assert_equal_results(
            alone["loop"], tmp_path / f"{rank}.npz", FEW
        )


def faulty(folder, number, event):
    """Starts workers in which something goes wrong."""
    arguments = ("faults_tensorflow", folder, number, event)
    if number == 1:
        log = folder / "alone.log"
        return [launch.start(*arguments, engine=ENGINE, log=log)]
    return workers(arguments[0], number, folder / event, *arguments[1:])


def test_columns_follow_the_global_batch(tmp_path):
    found = launch.columns(tmp_path, ENGINE, replicas=2)
    launch.assert_global_columns(found, rows=8)
    launch.assert_own_columns(found, rows=4, replicas=2)


def test_static_shapes_of_a_functional_model_count_the_replicas(tmp_path):
    log = tmp_path / "static.log"
    process = launch.start("static_tensorflow", engine=ENGINE, log=log)
    launch.finish([process])
    text = log.read_text()
    # Of 8 rows and 12 stored ones a replica: 11 by rotation, or 15.
    for name, columns in (("rotation", 1 + 11 + 24), ("all", 16 + 24)):
        shapes = [(20, 4), (8, columns)]
        assert f"{name} {shapes} {shapes}\n" in text
        assert f"{name} loss is finite: True\n" in text
    assert "a row has 15 negatives to choose from" in text


def test_unequal_rows_are_an_error_on_every_worker(tmp_path):
    processes = faulty(tmp_path, 2, "unequal")
    assert launch.wait(processes) == [4, 4]
    for process in processes:
        text = process.log.read_text()
        assert "InvalidArgumentError" in text
        assert "must have the same number of rows" in text
        assert "done 1\n" in text and "done 2\n" not in text
        launch.assert_refused(process, seeds=[2**40, 2**41])


def test_training_survives_a_killed_worker(tmp_path):
    launch.assert_survivors_and_resumption(
        tmp_path, faulty, survivor_code=4, engine_timeout=20
    )


def test_the_estimate_counts_the_rows_of_all_devices(tmp_path):
    launch.assert_estimate_is_right(tmp_path, ENGINE)


def test_backup_and_restore_after_a_kill(tmp_path):
    launch.assert_backup_restores(tmp_path, ENGINE)


def test_the_example_learns(tmp_path):
    launch.assert_example_learns(tmp_path, ENGINE)


def test_the_example_of_two_workers_learns(tmp_path):
    launch.assert_example_learns(
        tmp_path, ENGINE, environments(2), [(), ()], program="workers"
    )

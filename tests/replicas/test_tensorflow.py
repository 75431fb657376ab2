"""TensorFlow: `MirroredStrategy` and `MultiWorkerMirroredStrategy`."""

import functools
import json

import numpy as np
import pytest

from tests.replicas import launch

ENGINE = "tensorflow"

pytestmark = pytest.mark.backends(ENGINE)


start = functools.partial(launch.start_parts, ENGINE)


def start_workers(folder, log, *names):
    """Starts two workers, joined over gRPC on 127.0.0.1."""
    addresses = [f"127.0.0.1:{port}" for port in launch.free_ports(2)]
    return [
        start(
            folder,
            f"{log}{rank}",
            *names,
            TF_CONFIG=json.dumps(
                {
                    "cluster": {"worker": addresses},
                    "task": {"type": "worker", "index": rank},
                }
            ),
        )
        for rank in range(2)
    ]


@pytest.fixture(scope="module")
def uninterrupted(folder):
    """What one device finds that trains as the killed workers do."""
    import tensorflow as tf

    from tests.replicas import faults_tensorflow, problem

    strategy = tf.distribute.get_strategy()
    result = faults_tensorflow.train(folder / "alone", 0, 1, strategy)
    problem.save(folder / "uninterrupted.npz", {"resumed": result})
    return folder / "uninterrupted.npz"


@pytest.fixture(scope="module")
def killed(folder):
    """A process of four devices that is killed while it trains."""
    process = start(
        folder, "killed", "columns", "loop of devices", "killed fit"
    )
    assert launch.wait([process]) == [-9], launch.tail(process)
    return process


@pytest.fixture(scope="module")
def devices(folder, killed):
    """A process of two devices, and of all that they do."""
    names = ("example", "fit", "static", "estimate", "whole fit", "second fit")
    process = start(folder, "devices", *names)
    launch.finish([process])
    return process


@pytest.fixture(scope="module")
def killed_workers(folder):
    """Two workers; the last one is killed while they train."""
    processes = start_workers(
        folder, "killed_workers", "refusals", "loop of workers", "killed"
    )
    assert launch.wait(processes) == [4, -9], launch.tail(processes[0])
    return processes


@pytest.fixture(scope="module")
def workers(folder, killed_workers):
    """Two workers that go on after the kill, and end in other ways."""
    names = ("example of workers", "resumed", "unequal", "more batches")
    processes = start_workers(folder, "workers", *names)
    launch.finish(processes)
    return processes


def test_two_devices_equal_one_device(alone, folder, devices):
    launch.said(devices, "fit")
    launch.assert_equal_results(alone, folder / "fit.npz")


def test_four_devices_in_a_loop_equal_one_device(alone, folder, killed):
    launch.said(killed, "loop of devices")
    launch.assert_equal_results(alone, folder / "loop0.npz", ["rotation"])


def test_two_workers_equal_one_device(alone, folder, killed_workers):
    for rank, process in enumerate(killed_workers):
        launch.said(process, "loop of workers")
        launch.assert_equal_results(
            alone, folder / f"workers{rank}.npz", ["everything", "memory"]
        )


def test_columns_follow_the_global_batch(folder, killed):
    launch.said(killed, "columns")
    found = np.load(folder / "columns.npz")
    launch.assert_global_columns(found, rows=16)
    launch.assert_own_columns(found, rows=4, replicas=4)


def test_static_shapes_of_a_functional_model_count_the_replicas(devices):
    text = launch.said(devices, "static")
    # Of 8 rows and 12 stored ones a replica: 11 by rotation, or 15.
    for name, columns in (("rotation", 1 + 11 + 24), ("all", 16 + 24)):
        shapes = [(20, 4), (8, columns)]
        assert f"{name} {shapes} {shapes}\n" in text
    assert "loss is finite: True\n" in text
    assert "a row has 15 negatives to choose from" in text


def test_the_estimate_counts_the_rows_of_all_devices(devices):
    launch.said(devices, "estimate")


def test_backup_and_restore_after_a_kill(folder, devices):
    launch.said(devices, "whole fit")
    assert "epochs trained: [1, 2]" in launch.said(devices, "second fit")
    launch.assert_equal_results(folder / "whole.npz", folder / "second.npz")


def test_workers_refuse_different_arguments(killed_workers):
    for process in killed_workers:
        text = launch.said(process, "refusals")
        launch.assert_refused(text, seeds=[2**40, 2**41])


def test_training_ends_and_goes_on_after_a_killed_worker(
    uninterrupted, folder, killed_workers, workers
):
    text = killed_workers[0].log.read_text()
    seconds, error = launch.ended_after(text)
    assert seconds < 40, error
    for rank, process in enumerate(workers):
        # The step of the kill had not been saved.
        assert "steps 3 6" in launch.said(process, "resumed")
        launch.assert_equal_results(
            uninterrupted, folder / f"resumed{rank}.npz"
        )


def test_unequal_rows_are_an_error_on_every_worker(workers):
    for process in workers:
        text = launch.said(process, "unequal")
        assert "InvalidArgumentError" in text
        assert "must have the same number of rows" in text
        assert "done 1\n" in text and "done 2\n" not in text


def test_a_worker_with_more_batches_ends_by_the_timeout(workers):
    text = workers[0].log.read_text().partition("== more batches\n")[2]
    assert "done 4\n" in text and "done 5\n" not in text
    seconds, error = launch.ended_after(text)
    assert seconds < 40 and error == "DeadlineExceededError"


def test_the_examples_learn(devices, workers):
    for process, name in (
        (devices, "example"),
        (workers[0], "example of workers"),
    ):
        launch.assert_example_learned(launch.said(process, name))

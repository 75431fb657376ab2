"""TensorFlow: `MirroredStrategy` and `MultiWorkerMirroredStrategy`."""

import json

import pytest

from tests.replicas import launch

ENGINE = "tensorflow"


# Enough to see the order of four replicas; two devices train every case.
FEW = ("everything", "rotation")


def train(output, way, kind, devices, *cases):
    return launch.start(
        "run_tensorflow.py",
        output,
        way,
        kind,
        devices,
        *cases,
        engine=ENGINE,
        log=f"{output}.log",
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One device with the global batch, by way of training."""
    folder = tmp_path_factory.mktemp("alone")
    files = {way: folder / f"{way}.npz" for way in ("fit", "loop")}
    for way, file in files.items():
        launch.finish([train(file, way, "none", 1)])
    return files


def workers(program, number, log, *arguments):
    """Starts one process per worker, joined over gRPC on 127.0.0.1."""
    cluster = {
        "worker": [f"127.0.0.1:{port}" for port in launch.free_ports(number)]
    }
    return [
        launch.start(
            program,
            *(str(argument).format(rank=rank) for argument in arguments),
            engine=ENGINE,
            log=f"{log}{rank}.log",
            TF_CONFIG=json.dumps(
                {"cluster": cluster, "task": {"type": "worker", "index": rank}}
            ),
        )
        for rank in range(number)
    ]


@pytest.mark.parametrize(
    "way, devices, cases",
    [("fit", 2, ()), ("fit", 4, FEW), ("loop", 2, ()), ("loop", 4, FEW)],
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
            "run_tensorflow.py",
            2,
            tmp_path / "worker",
            tmp_path / "{rank}.npz",
            "loop",
            "workers",
            2,
        )
    )
    for rank in range(2):
        launch.assert_equal_results(alone["loop"], tmp_path / f"{rank}.npz")

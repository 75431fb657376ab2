"""JAX: `keras.distribution` on virtual CPU devices."""

import pytest

from tests.replicas import launch

ENGINE = "jax"


def train(output, way, kind, devices):
    return launch.start(
        "run_jax.py",
        output,
        way,
        kind,
        devices,
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


@pytest.mark.parametrize("kind", ["data", "model"])
@pytest.mark.parametrize("way", ["fit", "loop"])
def test_four_devices_equal_one_device(alone, tmp_path, way, kind):
    file = tmp_path / "distributed.npz"
    launch.finish([train(file, way, kind, 4)])
    launch.assert_equal_results(alone[way], file)

"""JAX: `keras.distribution` on virtual CPU devices."""

import pytest

from tests.replicas import launch

ENGINE = "jax"


# By way of training and distribution: `fit` of one of them takes all cases.
FEW = ("everything", "rotation")


def train(output, way, kind, devices, *cases):
    return launch.start(
        "run_jax.py",
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
    launch.finish([train(files["fit"], "fit", "none", 1)])
    launch.finish([train(files["loop"], "loop", "none", 1, *FEW)])
    return files


@pytest.mark.parametrize(
    "way, kind, cases",
    [
        ("fit", "data", ()),
        ("fit", "model", FEW),
        ("loop", "data", FEW),
        ("loop", "model", FEW),
    ],
)
def test_four_devices_equal_one_device(alone, tmp_path, way, kind, cases):
    file = tmp_path / "distributed.npz"
    launch.finish([train(file, way, kind, 4, *cases)])
    launch.assert_equal_results(alone[way], file, cases)

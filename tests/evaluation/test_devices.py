"""Several devices find what one finds, whatever the numbers of rows."""

import keras
import numpy as np
import pytest

import inbatch_neg
from tests.evaluation import on_devices
from tests.helpers import BACKEND
from tests.replicas import launch


def evaluated(folder, kind, devices):
    """Returns the file of what the program finds."""
    file = folder / f"{kind}.npz"
    program = launch.start(
        "tests.evaluation.on_devices",
        file,
        kind,
        devices,
        engine=BACKEND,
        log=folder / f"{kind}.log",
    )
    launch.finish([program])
    return file


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    file = tmp_path_factory.mktemp("alone") / "none.npz"
    on_devices.main(file, "none")
    return file


@pytest.mark.backends("jax")
@pytest.mark.parametrize("kind", ["data", "model"])
def test_a_distribution(alone, tmp_path, kind):
    launch.assert_equal_results(alone, evaluated(tmp_path, kind, 4))


@pytest.mark.backends("tensorflow")
def test_mirrored_strategy(alone, tmp_path):
    launch.assert_equal_results(alone, evaluated(tmp_path, "data", 2))


def test_no_rows():
    tower = keras.Sequential([keras.layers.Embedding(4, 2)])
    rows = np.arange(4)
    evaluation = inbatch_neg.RetrievalEvaluation(
        tower, tower, rows, rows, rows, verbose=0
    )
    with pytest.raises(ValueError, match="`queries` must have at least one r"):
        evaluation.top_k(rows[:0], 2)

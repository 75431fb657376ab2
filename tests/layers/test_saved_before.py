"""Models saved by versions 0.1.0 and 0.2.0 still load, and train on.

The one of 0.1.0 is in its own layout of modules. For how the one of 0.2.0
was made see `every_layer.py`.
"""

import json
import pathlib
import zipfile

import h5py
import keras
import numpy as np
import pytest

import inbatch_neg  # noqa: F401 (registers the layers)
from tests.helpers import BACKEND
from tests.layers import every_layer

PLACE = pathlib.Path(__file__).parent / "saved"
LATEST = PLACE / every_layer.NAME


@pytest.fixture(scope="module")
def expected():
    with np.load(PLACE / "version_0_1.npz") as stored:
        return dict(stored)


def test_weights_losses_and_random_state(expected):
    model = keras.models.load_model(PLACE / "version_0_1.keras")
    shifts = model.get_layer("rotation").seed_generator.state
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(shifts), expected["shifts"]
    )
    weights = model.weights
    assert len(weights) == len(expected) - 2
    for number, weight in enumerate(weights):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(weight), expected[f"w{number}"]
        )
    rows = np.arange(4, dtype="int32")
    losses = model.predict_on_batch({"user": rows, "item": rows})["all"]
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-5)


# The model of 0.2.0, which has every layer.


def test_state_outputs_and_the_next_step():
    model = keras.models.load_model(LATEST.with_suffix(".keras"))
    with np.load(LATEST.with_suffix(".npz")) as stored:
        expected = {
            name: stored[name]
            for name in stored
            if name.split("/")[0] in ("state before", "before", BACKEND)
        }
    values = every_layer.values_of(model)
    assert set(values) == set(expected)
    np.testing.assert_array_equal(
        values["state before"], expected["state before"]
    )
    for name, value in values.items():
        np.testing.assert_allclose(
            value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_a_model_of_today_has_the_same_variables_and_file(tmp_path):
    keras.utils.clear_session(free_memory=False)
    model = every_layer.build()
    model.optimizer.build(model.trainable_variables)
    stored = json.loads(LATEST.with_suffix(".json").read_text())
    assert every_layer.variables_of(model) == stored
    model.save(tmp_path / "model.keras")
    before = arrays_in(LATEST.with_suffix(".keras"))
    assert arrays_in(tmp_path / "model.keras") == before


def arrays_in(file):
    """Returns the shape of every array in a file, by its path."""
    found = {}

    def visit(path, one):
        if isinstance(one, h5py.Dataset):
            found[path] = one.shape

    with zipfile.ZipFile(file) as archive:
        with archive.open("model.weights.h5") as weights:
            with h5py.File(weights) as content:
                content.visititems(visit)
    return found

"""A model saved by version 0.1.0, in its own layout of modules, still loads."""

import pathlib

import keras
import numpy as np
import pytest

import inbatch_neg  # noqa: F401 (registers the layers)

PLACE = pathlib.Path(__file__).parent / "saved"


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

"""Runs the code of docs/serving.md, in its order, in an empty folder."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import inbatch_neg
from tests.docs import fences

pytestmark = pytest.mark.once

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "serving.md"


# The oldest Keras has no keras-rs that fits it.
@pytest.mark.keras_at_least("3.6")
def test_code_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "serving"}
    assert fences.run(PAGE, names) >= 9
    assert {"served", "graph", "retrieve"} <= names.keys()


ELSEWHERE = """
import sys

import keras

ids = keras.ops.arange(4)
assert keras.models.load_model("tower.keras")(ids).shape == (4, 4)
assert not any(name.startswith("inbatch_neg") for name in sys.modules)
try:
    keras.models.load_model("training.keras")
except TypeError as error:
    assert "Could not locate class 'InBatchNegativeSoftmax'" in str(error)
else:  # Keras 3.5 imports the module of a class by itself.
    assert keras.__version__.startswith("3.5."), keras.__version__
import inbatch_neg

loaded = keras.models.load_model("training.keras")
print(loaded.train_on_batch({"user": ids, "item": ids}))
"""


def test_models_in_another_process(tmp_path):
    """The towers load without the package, the training model with it."""
    user, item = (
        keras.Input((), dtype="int32", name=name) for name in ("user", "item")
    )
    tower = keras.Sequential([keras.layers.Embedding(9, 4)])
    model = keras.Model(
        {"user": user, "item": item},
        inbatch_neg.InBatchNegativeSoftmax()(tower(user), tower(item)),
    )
    model.compile("adam", loss=inbatch_neg.InBatchNegativeLoss())
    model.save(tmp_path / "training.keras")
    tower.save(tmp_path / "tower.keras")
    root = pathlib.Path(inbatch_neg.__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert np.isfinite(float(done.stdout.split()[-1]))

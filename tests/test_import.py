"""What the package imports, seen by a fresh process."""

import json
import os
import subprocess
import sys

from tests.helpers import BACKEND

SCRIPT = """
import json
import sys
import keras
import numpy as np

names = ("tensorflow", "jax", "torch", "pandas", "pyarrow", "grain")

def imported():
    return [name for name in names if name in sys.modules]

found = [imported()]
from inbatch_neg import full_batches

found.append(imported())

class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"user": np.arange(3), "item": np.arange(3)}

def generator():
    data = Batches()  # which Keras 3.5 does not end
    yield from (data[index] for index in range(len(data)))

rows = {"user": np.arange(20), "item": np.arange(20)}
for data, batched in ((rows, False), (Batches(), True), (generator, True)):
    for remainder in ("drop", "pad"):
        dataset = full_batches(
            data, 8, shuffle=True, batched=batched, remainder=remainder
        )
        assert len(list(dataset)) > 0
found.append(imported())
print(json.dumps(found))
"""


def test_no_library_but_those_of_keras():
    """Neither the import nor `full_batches` imports one."""
    # Keras imports TensorFlow by itself, on some versions on every backend:
    # what counts is what comes on top.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        check=True,
        capture_output=True,
        text=True,
    )
    keras_alone, with_ours, in_use = json.loads(done.stdout.splitlines()[-1])
    assert keras_alone == with_ours == in_use
    if BACKEND != "tensorflow":
        assert "tensorflow" not in in_use


def test_the_names():
    import inbatch_neg

    for name in (
        "InBatchNegativeSoftmax",
        "InBatchNegativeLoss",
        "full_batches",
        "PartialBatchError",
        "ops",
    ):
        assert name in inbatch_neg.__all__
        assert hasattr(inbatch_neg, name)
    assert inbatch_neg.ops.in_batch_softmax_loss
    assert inbatch_neg.ops.rotation_logits

"""What `full_batches` imports, seen by a fresh process."""

import os
import subprocess
import sys

from tests.data.reading import BACKEND

SCRIPT = """
import sys
import keras
import numpy as np

names = ("tensorflow", "jax", "torch", "pandas", "pyarrow", "grain")
before = {name for name in names if name in sys.modules}
from inbatch_neg import full_batches

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
print(sorted(name for name in names if name in sys.modules), sorted(before))
print(sorted({name for name in names if name in sys.modules} - before))
"""


def test_no_library_but_those_of_keras():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        check=True,
        capture_output=True,
        text=True,
    )
    *_, everything, added = done.stdout.strip().splitlines()
    assert added == "[]"
    if BACKEND != "tensorflow":
        assert "tensorflow" not in everything

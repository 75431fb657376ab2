"""Two devices: every replica gets its static part of the global batch."""

import os
import subprocess
import sys

import numpy as np
import pytest

from inbatch_neg import full_batches
from tests.data.reading import BACKEND, epoch


def run():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.data.on_two_devices"],
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    return [line for line in lines if line.startswith(("arrays", "function"))]


@pytest.mark.backends("tensorflow")
def test_mirrored_strategy():
    dataset = full_batches(np.arange(20), 8, shuffle=True, seed=5)
    order = epoch(dataset)[0].tolist()
    in_order = list(range(8))
    assert run() == [f"arrays 4 {order}", f"function 4 {in_order}"]


@pytest.mark.backends("jax")
def test_data_parallel():
    arrays, function = run()
    assert arrays.startswith("arrays 2 [")
    assert function == f"function 2 {list(range(8))}"

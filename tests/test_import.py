"""What an import costs, seen by a fresh process."""

import os
import subprocess
import sys

from tests.helpers import BACKEND

SCRIPT = """
import sys
import keras
before = {name.split(".")[0] for name in sys.modules}
import inbatch_neg
after = {name.split(".")[0] for name in sys.modules}
print(sorted(after - before))
"""


def test_the_import_adds_no_engine():
    # Keras imports TensorFlow by itself, on some versions on every backend:
    # what counts is what comes on top.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        check=True,
        capture_output=True,
        text=True,
    )
    added = done.stdout.strip().splitlines()[-1]
    assert "'inbatch_neg'" in added
    for engine in ("tensorflow", "jax", "torch", "pandas"):
        assert f"'{engine}'" not in added


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

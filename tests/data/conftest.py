"""Which files need libraries that are not there.

The CPU build of PyTorch is no plain dependency, so the README's test command
does without. `.ci/run` installs it, and nothing is left out there.
"""

import importlib.util
import os

import keras

collect_ignore = []
if importlib.util.find_spec("torch") is None:
    if os.environ.get("CI_HAS_TORCH"):
        raise RuntimeError("The tests were to have PyTorch, and it is missing.")
    collect_ignore = ["test_docs.py", "test_tables.py", "test_torch.py"]
if keras.__version__.startswith("3.5."):
    # The oldest environment holds what Keras 3.5 runs on, and nothing else.
    collect_ignore = [
        "test_docs.py",
        "test_grain.py",
        "test_parquet.py",
        "test_tables.py",
        "test_torch.py",
    ]

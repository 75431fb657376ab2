"""Which files need libraries that go with a new Keras alone."""

import keras

collect_ignore = []
if keras.__version__.startswith("3.5."):
    # The oldest environment holds what Keras 3.5 runs on, and nothing else.
    collect_ignore = [
        "test_docs.py",
        "test_grain.py",
        "test_parquet.py",
        "test_tables.py",
        "test_torch.py",
    ]

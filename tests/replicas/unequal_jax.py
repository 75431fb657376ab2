"""Gives four devices six rows. Ends with 3 after `PartialBatchError`."""

import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import keras  # noqa: E402
import numpy as np  # noqa: E402

import inbatch_neg  # noqa: E402


def main():
    devices = keras.distribution.list_devices("cpu")
    assert len(devices) == 4
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices)
    )
    softmax = inbatch_neg.InBatchNegativeSoftmax(cross_replica=True)
    rows = np.ones((6, 2), "float32")
    try:
        softmax(rows, rows)
    except inbatch_neg.PartialBatchError as error:
        print(error)
        sys.exit(3)


if __name__ == "__main__":
    main()

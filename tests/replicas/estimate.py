"""Trains a functional model with the streaming estimate on two devices.

Ends with 0 if the estimates are near the true probabilities.
"""

import contextlib
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import keras  # noqa: E402
import numpy as np  # noqa: E402

import inbatch_neg  # noqa: E402
from tests import models  # noqa: E402
from tests.replicas import groups  # noqa: E402

TRUTH = np.array([0.5, 0.3, 0.15, 0.05])
ROWS, STEPS, EPOCHS = 64, 40, 3


def scope_of_two_devices():
    if keras.backend.backend() == "tensorflow":
        return groups.mirrored(2).scope()
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    return contextlib.nullcontext()


def main():
    with scope_of_two_devices():
        estimate = inbatch_neg.StreamingSamplingProbability(1009)
        softmax = inbatch_neg.InBatchNegativeSoftmax()
        model = models.two_towers(softmax, estimate=estimate)
        model.compile("sgd", loss=inbatch_neg.InBatchNegativeLoss())
    item = np.random.default_rng(0).choice(4, ROWS * STEPS, p=TRUTH)
    data = inbatch_neg.full_batches({"user": item, "item": item}, ROWS)
    models.fit(model, data, epochs=EPOCHS)
    clock = int(keras.ops.convert_to_numpy(estimate.weights[0]))
    assert clock == ROWS * STEPS * EPOCHS, clock
    found = keras.ops.convert_to_numpy(estimate(np.arange(4)))
    assert (abs(found / TRUTH - 1) < [0.2, 0.25, 0.3, 0.5]).all(), found


if __name__ == "__main__":
    main()

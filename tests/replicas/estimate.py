"""Trains a functional model with the streaming estimate on two devices."""

import keras
import numpy as np

import inbatch_neg
from tests import models

TRUTH = np.array([0.5, 0.3, 0.15, 0.05])
ROWS, STEPS, EPOCHS = 64, 40, 3


def check(scope):
    """Raises unless the estimates are near the true probabilities.

    Args:
        scope: Context to make the model in.
    """
    with scope:
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

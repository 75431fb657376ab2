"""What docs/coming-from/keras-rs.md says, in equations."""

import keras
import keras_rs
import numpy as np
from keras import ops

from tests.docs.coming_from.problem import (
    CANDIDATE,
    IDS,
    PROBABILITY,
    QUERY,
    ROWS,
    clipped,
    our_layer,
    ours,
)
from tests.helpers import to_numpy

RARE = PROBABILITY * np.float32(0.1)


def _losses(scores, labels=None):
    labels = np.eye(ROWS, dtype="float32") if labels is None else labels
    return to_numpy(
        keras.losses.categorical_crossentropy(labels, scores, from_logits=True)
    )


def comparisons():
    """Returns what is compared, theirs and ours."""
    scores = ops.matmul(QUERY, CANDIDATE.T)
    labels = np.eye(ROWS, dtype="float32")
    correct = keras_rs.layers.SamplingProbabilityCorrection()
    remove_hits = keras_rs.layers.RemoveAccidentalHits()
    hardest = keras_rs.layers.HardNegativeMining(3)
    return [
        ("the matrix", _losses(scores), ours()),
        (
            "log q, q of at least 1e-6",
            _losses(correct(scores / 0.2, RARE)),
            ours(temperature=0.2, candidate_sampling_probability=clipped(RARE)),
        ),
        (
            "`RemoveAccidentalHits` removes nothing",
            _losses(remove_hits(scores, labels, IDS)),
            ours(),
        ),
        (
            "hard negatives",
            _losses(*hardest(scores, labels)),
            our_layer(num_negatives=3, sampling="hardest"),
        ),
        (
            "with ids our loss is lower",
            np.all(ours() >= ours(candidate_ids=IDS)),
            np.mean(ours()) > np.mean(ours(candidate_ids=IDS)),
        ),
    ]

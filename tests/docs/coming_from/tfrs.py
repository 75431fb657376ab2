"""What docs/coming-from/tfrs.md says, in equations."""

import numpy as np
import tensorflow as tf
import tensorflow_recommenders

from tests.docs.coming_from.problem import (
    BATCH,
    CANDIDATE,
    IDS,
    PROBABILITY,
    QUERY,
    ROWS,
    WEIGHT,
    clipped,
    our_layer,
    ours,
)
from tests.helpers import batch_of

RARE = PROBABILITY * np.float32(0.1)


def _theirs(query=QUERY, candidate=CANDIDATE, task=None, **tensors):
    """Returns the losses of the rows."""
    by_row = tf.keras.losses.CategoricalCrossentropy(
        from_logits=True, reduction="none"
    )
    retrieval = tensorflow_recommenders.tasks.Retrieval(
        loss=by_row, **(task or {})
    )
    return retrieval(query, candidate, **tensors).numpy()


def comparisons():
    """Returns what is compared, theirs and ours."""
    retrieval = tensorflow_recommenders.tasks.Retrieval
    log_q = {"candidate_sampling_probability": PROBABILITY}
    ids = {"candidate_ids": IDS}
    more = batch_of(ROWS, ROWS + 5, seed=1)["candidate"]
    vectors = np.stack([QUERY, QUERY[::-1], -QUERY], axis=1)
    columns = BATCH["candidate_mask"]
    return [
        ("the default is a sum", retrieval()(QUERY, CANDIDATE), ours().sum()),
        (
            "weights",
            retrieval()(QUERY, CANDIDATE, sample_weight=WEIGHT),
            ours(sample_weight=WEIGHT).sum(),
        ),
        (
            "temperature before log q, q of at least 1e-6",
            _theirs(
                task={"temperature": 0.2}, candidate_sampling_probability=RARE
            ),
            ours(temperature=0.2, candidate_sampling_probability=clipped(RARE)),
        ),
        (
            "equal items",
            _theirs(task={"remove_accidental_hits": True}, **ids, **log_q),
            ours(**ids, candidate_sampling_probability=PROBABILITY.clip(1e-6)),
        ),
        (
            "ids without `remove_accidental_hits`",
            _theirs(**ids),
            ours(),
        ),
        (
            "hard negatives",
            _theirs(task={"num_hard_negatives": 3}),
            our_layer(num_negatives=3, sampling="hardest"),
        ),
        ("more candidates", _theirs(QUERY, more), ours(QUERY, more)),
        ("several vectors", _theirs(vectors), ours(vectors)),
        (
            "`score_mask` of whole columns",
            _theirs(score_mask=columns[None, :] | np.eye(ROWS, dtype="bool")),
            ours(candidate_mask=columns),
        ),
        (
            "`mixed_float16` with masks gives NaN",
            np.mean(np.isnan(_half_precision())),
            1.0,
        ),
    ]


def _half_precision():
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    half = [tf.cast(vectors, "float16") for vectors in (QUERY, CANDIDATE)]
    return _theirs(
        *half, task={"remove_accidental_hits": True}, candidate_ids=IDS
    )

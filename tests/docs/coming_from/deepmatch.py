"""What docs/coming-from/deepmatch.md says, in equations."""

import numpy as np
import requests

from tests.docs.coming_from.problem import CANDIDATE, IDS, QUERY, ours


def _no_network(*args, **kwargs):
    raise requests.ConnectionError


# DeepMatch and DeepCTR look for a newer version when they are imported, and
# the process waits for the answer.
requests.get = _no_network


def comparisons():
    """Returns what is compared, theirs and ours."""
    from deepmatch.layers.core import InBatchSoftmaxLayer

    count = np.arange(1, IDS.max() + 2)
    config = {"item_count": count}
    theirs = InBatchSoftmaxLayer(config, temperature=0.2)(
        [QUERY, CANDIDATE, IDS[:, None]]
    )
    return [
        (
            "temperature before log q, counts serve, equal items stay in",
            np.asarray(theirs)[:, 0],
            ours(
                temperature=0.2,
                candidate_sampling_probability=count[IDS].astype("float32"),
            ),
        ),
    ]

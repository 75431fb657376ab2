"""A small batch, and our losses of it."""

from inbatch_neg import InBatchNegativeSoftmax, ops
from tests.helpers import batch_of, to_numpy

ROWS = 16
BATCH = batch_of(ROWS)
QUERY, CANDIDATE = BATCH["query"], BATCH["candidate"]
IDS = BATCH["candidate_ids"]
PROBABILITY = BATCH["candidate_sampling_probability"]
WEIGHT = BATCH["sample_weight"]


def ours(query=QUERY, candidate=CANDIDATE, **arguments):
    """Returns our (B,) losses."""
    return to_numpy(ops.in_batch_softmax_loss(query, candidate, **arguments))


def our_layer(query=QUERY, candidate=CANDIDATE, tensors=None, **arguments):
    """Returns the (B,) losses of the layer with these arguments."""
    layer = InBatchNegativeSoftmax(**arguments)
    return to_numpy(layer(query, candidate, **(tensors or {}), training=True))


def clipped(probability):
    """Returns probabilities that are at least 1e-6."""
    assert probability.min() < 1e-6
    return probability.clip(1e-6)

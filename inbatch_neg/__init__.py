"""In-batch negatives for two-tower retrieval models in Keras 3."""

from inbatch_neg import ops
from inbatch_neg.data import full_batches
from inbatch_neg.layer import InBatchNegativeSoftmax
from inbatch_neg.loss import InBatchNegativeLoss
from inbatch_neg.partial_batch import PartialBatchError

__version__ = "0.1.0"

__all__ = [
    "InBatchNegativeLoss",
    "InBatchNegativeSoftmax",
    "PartialBatchError",
    "full_batches",
    "ops",
]

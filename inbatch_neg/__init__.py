"""In-batch negatives for two-tower retrieval models in Keras 3."""

from inbatch_neg import ops
from inbatch_neg.data import full_batches
from inbatch_neg.evaluation import RetrievalEvaluation
from inbatch_neg.layer import InBatchNegativeSoftmax
from inbatch_neg.loss import InBatchNegativeLoss
from inbatch_neg.memory import CrossBatchMemory
from inbatch_neg.metrics import InBatchMeanReciprocalRank, InBatchTopKAccuracy
from inbatch_neg.partial_batch import PartialBatchError
from inbatch_neg.sampling_probability import StreamingSamplingProbability

__version__ = "0.1.0"

__all__ = [
    "CrossBatchMemory",
    "InBatchMeanReciprocalRank",
    "InBatchNegativeLoss",
    "InBatchNegativeSoftmax",
    "InBatchTopKAccuracy",
    "PartialBatchError",
    "RetrievalEvaluation",
    "StreamingSamplingProbability",
    "full_batches",
    "ops",
]

"""In-batch negatives for two-tower retrieval models in Keras 3."""

from inbatch_neg import ops
from inbatch_neg.chunked_tower.layer import ChunkedTower
from inbatch_neg.data import full_batches
from inbatch_neg.evaluation.callback import RetrievalEvaluation
from inbatch_neg.layers.cross_batch_memory import CrossBatchMemory
from inbatch_neg.layers.in_batch_negative_softmax import InBatchNegativeSoftmax
from inbatch_neg.layers.partial_batch import PartialBatchError
from inbatch_neg.layers.streaming_sampling_probability import (
    StreamingSamplingProbability,
)
from inbatch_neg.losses import InBatchNegativeLoss
from inbatch_neg.metrics import InBatchMeanReciprocalRank, InBatchTopKAccuracy
from inbatch_neg.sparse_embedding.layer import SparseEmbedding

__version__ = "0.3.0"

__all__ = [
    "ChunkedTower",
    "CrossBatchMemory",
    "InBatchMeanReciprocalRank",
    "InBatchNegativeLoss",
    "InBatchNegativeSoftmax",
    "InBatchTopKAccuracy",
    "PartialBatchError",
    "RetrievalEvaluation",
    "SparseEmbedding",
    "StreamingSamplingProbability",
    "full_batches",
    "ops",
]

"""Calls that mypy must refuse: see installed_types.py. Nobody runs them."""

import numpy as np

import inbatch_neg
from inbatch_neg import ops

VECTORS = np.eye(3)


def refused() -> None:
    inbatch_neg.InBatchNegativeSoftmax("8")  # wrong
    inbatch_neg.InBatchNegativeSoftmax(seed="1")  # wrong
    inbatch_neg.CrossBatchMemory()  # wrong
    inbatch_neg.CrossBatchMemory("1000")  # wrong
    inbatch_neg.StreamingSamplingProbability(100, num_hashes=1.5)  # wrong
    inbatch_neg.full_batches({"user": VECTORS}, "32")  # wrong
    inbatch_neg.InBatchTopKAccuracy(k="10")  # wrong
    ops.in_batch_softmax_loss(VECTORS, VECTORS, temprature=0.5)  # wrong
    evaluation = inbatch_neg.RetrievalEvaluation(
        None, None, VECTORS, [0, 1, 2], VECTORS, k=10
    )
    recall: str = evaluation()["recall@10"]  # wrong
    print(recall)


def accepted() -> None:
    inbatch_neg.InBatchNegativeSoftmax(8, temperature="learned", seed=1)
    inbatch_neg.CrossBatchMemory(1000, warmup_steps=10)
    inbatch_neg.StreamingSamplingProbability(100, num_hashes=2)
    inbatch_neg.full_batches({"user": VECTORS}, 32, shuffle=True)
    inbatch_neg.InBatchTopKAccuracy(k=10)
    ops.in_batch_softmax_loss(VECTORS, VECTORS, temperature=0.5)

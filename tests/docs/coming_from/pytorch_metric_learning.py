"""What docs/coming-from/pytorch-metric-learning.md says, in equations."""

import numpy as np
import torch
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

from tests.docs.coming_from.problem import CANDIDATE, IDS, QUERY, ROWS, ours


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _theirs(candidate, labels, **arguments):
    query, candidate, labels = map(torch.tensor, (QUERY, candidate, labels))
    return NTXentLoss(**arguments)(
        query, labels, ref_emb=candidate, ref_labels=labels.clone()
    ).item()


def comparisons():
    """Returns what is compared, theirs and ours."""
    rows = np.arange(ROWS)
    # Rows with the same id have the same vector, as towers make it.
    of_id = CANDIDATE[[int(np.argmax(IDS == id)) for id in IDS]]
    pairs = (IDS[:, None] == IDS[None, :]).sum(1).astype("float32")
    products = DotProductSimilarity(normalize_embeddings=False)
    labels = torch.tensor(rows)
    no_positives = NTXentLoss()(
        torch.tensor(QUERY),
        labels,
        ref_emb=torch.tensor(CANDIDATE),
        ref_labels=labels,
    )
    return [
        ("the same tensor of labels", no_positives.item(), 0.0),
        (
            "one label for each row, 0.07 by default",
            _theirs(CANDIDATE, rows),
            ours(_unit(QUERY), _unit(CANDIDATE), temperature=0.07).mean(),
        ),
        (
            "dot products",
            _theirs(CANDIDATE, rows, temperature=1.0, distance=products),
            ours().mean(),
        ),
        (
            "`SelfSupervisedLoss`",
            SelfSupervisedLoss(NTXentLoss(), symmetric=False)(
                torch.tensor(QUERY), torch.tensor(CANDIDATE)
            ).item(),
            ours(_unit(QUERY), _unit(CANDIDATE), temperature=0.07).mean(),
        ),
        (
            "an item that occurs n times counts n times in each of its rows",
            _theirs(of_id, IDS),
            ours(
                _unit(QUERY),
                _unit(of_id),
                temperature=0.07,
                candidate_ids=IDS,
                sample_weight=pairs / pairs.mean(),
            ).mean(),
        ),
    ]

"""What docs/coming-from/sentence-transformers.md says, in equations."""

import numpy as np
import torch
from sentence_transformers import util
from sentence_transformers.losses import (
    MultipleNegativesRankingLoss,
)

from tests.docs.coming_from.problem import (
    CANDIDATE,
    QUERY,
    ROWS,
    our_layer,
    ours,
)
from tests.helpers import batch_of


class _Identity(torch.nn.Module):
    def forward(self, features):
        return features


def _theirs(*columns, kind=MultipleNegativesRankingLoss, **arguments):
    features = [{"sentence_embedding": torch.tensor(c)} for c in columns]
    return kind(_Identity(), **arguments)(features, None).item()


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def comparisons():
    """Returns what is compared, theirs and ours."""
    query, candidate = _unit(QUERY), _unit(CANDIDATE)
    negative = batch_of(ROWS, seed=1)["candidate"]
    everything = np.concatenate([candidate, _unit(negative)])
    both = {
        "directions": ("query_to_doc", "doc_to_query"),
        "partition_mode": "per_direction",
    }
    return [
        (
            "cosines times 20",
            _theirs(QUERY, CANDIDATE),
            ours(query, candidate, temperature=0.05).mean(),
        ),
        (
            "dot products",
            _theirs(QUERY, CANDIDATE, scale=1.0, similarity_fct=util.dot_score),
            ours().mean(),
        ),
        (
            "a column of hard negatives",
            _theirs(QUERY, CANDIDATE, negative),
            ours(query, everything, temperature=0.05).mean(),
        ),
        (
            "both directions",
            _theirs(QUERY, CANDIDATE, **both),
            our_layer(
                query, candidate, temperature=0.05, symmetric=True
            ).mean(),
        ),
        (
            "the same document twice stays in",
            _theirs(QUERY, CANDIDATE[np.arange(ROWS) // 2]),
            ours(
                query, candidate[np.arange(ROWS) // 2], temperature=0.05
            ).mean(),
        ),
    ]

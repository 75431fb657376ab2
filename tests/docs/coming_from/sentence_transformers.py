"""What docs/coming-from/sentence-transformers.md says, in equations."""

import numpy as np
import torch
from sentence_transformers import util
from sentence_transformers.losses import (
    CachedMultipleNegativesRankingLoss,
    GISTEmbedLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from inbatch_neg import InBatchNegativeLoss, ops
from tests.docs import fences
from tests.docs.coming_from import pages
from tests.docs.coming_from.problem import (
    CANDIDATE,
    QUERY,
    ROWS,
    our_layer,
    ours,
)
from tests.helpers import batch_of, to_numpy


class _Identity(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Identity())  # they look at the first module

    def forward(self, features):
        return dict(features)

    def get_embedding_dimension(self):
        return QUERY.shape[1]


class _Guide(_Identity):
    """Gives the first half of each vector, which has another similarity."""

    def forward(self, features):
        ((name, vectors),) = features.items()
        return {name: vectors[:, : vectors.shape[1] // 2]}


def _matryoshka(model, widths):
    return MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), widths)


def _theirs(*columns, kind=MultipleNegativesRankingLoss, **arguments):
    features = [{"sentence_embedding": torch.tensor(c)} for c in columns]
    return kind(_Identity(), **arguments)(features, None).item()


def _with_gradients(loss, columns):
    """Returns the loss and its gradients by the columns, as one array.

    The gradients as the largest entry, and shares of it from 1 to 3: small
    entries may round.
    """
    columns = [torch.tensor(c, requires_grad=True) for c in columns]
    value = loss(*columns)
    gradients = torch.autograd.grad(value, columns)
    flat = torch.cat([g.flatten() for g in gradients]).numpy()
    largest = np.abs(flat).max()
    return np.concatenate([[value.item(), largest], 2 + flat / largest])


def _their_tuples(*columns):
    features = [{"sentence_embedding": c} for c in columns]
    return MultipleNegativesRankingLoss(_Identity())(features, None)


def _gist(model, margin):
    # Its constructor wants two tokenizers.
    loss = GISTEmbedLoss.__new__(GISTEmbedLoss)
    torch.nn.Module.__init__(loss)
    loss.model, loss.guide = model, _Guide()
    loss.must_retokenize = loss.gather_across_devices = False
    loss.contrast_anchors = loss.contrast_positives = False
    loss.margin_strategy, loss.margin = "absolute", margin
    loss.temperature = 0.05
    loss.similarity_fct = torch.nn.CosineSimilarity(dim=-1)
    loss.cross_entropy_loss = torch.nn.CrossEntropyLoss()
    return loss


def _our_gist(query, *candidates, margin):
    names = {"__name__": "false-negatives"}
    fences.run(pages.FOLDER.parent / "false-negatives.md", names)
    half = query.shape[1] // 2
    guide = (
        _unit(query[:, :half]),
        _tuples(*(c[:, :half] for c in candidates)),
    )
    logits = names["guided_logits"](
        _unit(query), _tuples(*candidates), guide, margin, 0.05
    )
    return to_numpy(InBatchNegativeLoss()(None, logits))


def _tuples(*candidates):
    return np.stack([_unit(c) for c in candidates], axis=1)


def _our_tuples(query, *candidates):
    normalize = torch.nn.functional.normalize
    candidate = normalize(torch.stack(candidates, dim=1), dim=-1)
    return ops.in_batch_softmax_loss(
        normalize(query), candidate, temperature=0.05
    ).mean()


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def comparisons():
    """Returns what is compared, theirs and ours."""
    query, candidate = _unit(QUERY), _unit(CANDIDATE)
    negative = batch_of(ROWS, seed=1)["candidate"]
    everything = np.concatenate([candidate, _unit(negative)])
    other = batch_of(ROWS, seed=2)["candidate"]
    columns = (QUERY, CANDIDATE, negative, other)
    widths = (8, 4, 2)
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
            "n-tuples of two hard negatives, and the gradients",
            _with_gradients(_their_tuples, columns),
            _with_gradients(_our_tuples, columns),
        ),
        *[
            (
                f"a guide with margin {margin}, and hard negatives",
                _theirs(*columns[:3], kind=_gist, margin=margin),
                _our_gist(*columns[:3], margin=margin),
            )
            for margin in (0.0, 0.3)
        ],
        (
            "in small batches, cached",
            _theirs(
                QUERY,
                CANDIDATE,
                kind=CachedMultipleNegativesRankingLoss,
                mini_batch_size=5,
            ),
            ours(query, candidate, temperature=0.05).mean(),
        ),
        (
            "prefixes of several widths",
            _theirs(QUERY, CANDIDATE, kind=_matryoshka, widths=widths),
            sum(
                ours(
                    _unit(QUERY[:, :width]),
                    _unit(CANDIDATE[:, :width]),
                    temperature=0.05,
                ).mean()
                for width in widths
            ),
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

"""Contenders on PyTorch, eager. See `on_tensorflow.py`."""

import torch


def _differentiated(inputs, loss_of, dtype=torch.float32):
    options = {"dtype": dtype, "requires_grad": True}
    query = torch.tensor(inputs.query, **options)
    candidate = torch.tensor(inputs.candidate, **options)

    def step():
        loss = loss_of(query, candidate)
        gradients = torch.autograd.grad(loss, [query, candidate])
        # NumPy has no bfloat16. PyTorch leaves float32 as it is.
        return loss.detach(), *(gradient.float() for gradient in gradients)

    return step


def ours(inputs, dtype=torch.float32, rules=None):
    """`inbatch_neg.ops.in_batch_softmax_loss`."""
    from inbatch_neg import ops

    rules = inputs.rules if rules is None else rules
    rules = {name: torch.tensor(value) for name, value in rules.items()}

    def loss_of(query, candidate):
        losses = ops.in_batch_softmax_loss(query, candidate, **rules)
        return torch.mean(losses)

    return _differentiated(inputs, loss_of, dtype)


def ours_log_q(inputs, dtype=torch.float32):
    """With probabilities and without ids, which the peers do not have."""
    rules = {"candidate_sampling_probability": inputs.probability}
    return ours(inputs, dtype, rules)


def ours_bfloat16(inputs):
    """Of half-precision towers, as a `mixed_bfloat16` policy has them."""
    return ours(inputs, torch.bfloat16)


def ours_float16(inputs):
    """As a `mixed_float16` policy has them."""
    return ours(inputs, torch.float16)


def ours_mkl(inputs):
    """By PyTorch's public product, without oneDNN's."""
    from inbatch_neg.backends import torch as backend

    backend._onednn_linear = lambda: None
    return ours(inputs)


def ours_returned_memory(inputs):
    """Without the lesson to glibc to keep freed memory."""
    from inbatch_neg.backends import torch as backend

    backend._keep_freed_memory = lambda: None
    return ours(inputs)


def plain(inputs, dtype=torch.float32):
    """A matrix product and PyTorch's cross-entropy."""
    labels = torch.arange(len(inputs.query))
    bias = _minus_log_q(inputs, dtype)

    def loss_of(query, candidate):
        scores = query @ _flat(candidate).T
        if bias is not None:
            scores = scores + bias
        return torch.nn.functional.cross_entropy(scores, labels)

    return _differentiated(inputs, loss_of, dtype)


def linear_cross_entropy(inputs, dtype=torch.float32):
    """PyTorch's own loss in chunks, from 2.13 on."""
    labels = torch.arange(len(inputs.query))
    options = torch.nn.LinearCrossEntropyOptions()
    bias = _minus_log_q(inputs, dtype)

    def loss_of(query, candidate):
        return torch.nn.functional.linear_cross_entropy(
            query, _flat(candidate), labels, linear_bias=bias, options=options
        )

    return _differentiated(inputs, loss_of, dtype)


def _flat(candidate):
    """Returns the positives, then the hard negatives row by row."""
    if candidate.ndim == 2:
        return candidate
    return torch.cat([candidate[:, 0], candidate[:, 1:].flatten(0, 1)])


def _minus_log_q(inputs, dtype):
    if not inputs.with_rules:
        return None
    return -torch.log(torch.tensor(inputs.probability)).to(dtype)


def sentence_transformers(inputs, dtype=torch.float32):
    """Its `MultipleNegativesRankingLoss`, of a model that does nothing.

    With dot products in place of cosines it has the same maths as the others.
    """
    from sentence_transformers import util
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    class Identity(torch.nn.Module):
        def forward(self, features):
            return features

    mnrl = MultipleNegativesRankingLoss(
        Identity(), scale=1.0, similarity_fct=util.dot_score
    )

    def loss_of(query, candidate):
        texts = [candidate] if candidate.ndim == 2 else candidate.unbind(1)
        columns = [{"sentence_embedding": x} for x in (query, *texts)]
        return mnrl(columns, None)

    return _differentiated(inputs, loss_of, dtype)


def cut_cross_entropy(inputs, dtype=torch.float32):
    """Of the library cut-cross-entropy, on a GPU alone."""
    from cut_cross_entropy import linear_cross_entropy

    labels = torch.arange(len(inputs.query))
    bias = _minus_log_q(inputs, dtype)

    def loss_of(query, candidate):
        return linear_cross_entropy(query, candidate, labels, bias=bias)

    return _differentiated(inputs, loss_of, dtype)


def liger(inputs, dtype=torch.float32):
    """The fused loss of Liger, on a GPU alone."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    labels = torch.arange(len(inputs.query))
    bias = _minus_log_q(inputs, dtype)

    def loss_of(query, candidate):
        return loss(candidate, query, labels, bias)

    return _differentiated(inputs, loss_of, dtype)


def own_limit(inputs):
    """The three matrix products that any exact gradient needs."""
    query = torch.tensor(inputs.query)
    candidate = torch.tensor(inputs.candidate)

    def step():
        scores = query @ candidate.T
        return None, scores @ candidate, scores.T @ query

    return step

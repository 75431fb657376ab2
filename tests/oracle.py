"""The truth that the package is tested against: float64 loops in NumPy.

Written from the definition of the in-batch softmax, row by row, and importing
nothing of the package. `test_oracle.py` pins it by hand-worked cases and by
finite differences.
"""

import math

import numpy as np

SMALLEST_FLOAT32 = 2.0**-126


def negatives_of(
    i, candidates, candidate_ids=None, query_ids=None, candidate_mask=None
):
    """Returns the numbers of the candidates that are negatives of row i."""
    negatives = []
    for j in range(candidates):
        if j == i:
            continue
        if candidate_mask is not None and not candidate_mask[j]:
            continue
        if candidate_ids is not None and candidate_ids[j] == candidate_ids[i]:
            continue
        if query_ids is not None and j < len(query_ids):
            if query_ids[j] == query_ids[i]:
                continue
        negatives.append(j)
    return negatives


def softmax_loss(
    query,
    candidate,
    candidate_ids=None,
    query_ids=None,
    candidate_sampling_probability=None,
    candidate_mask=None,
    sample_weight=None,
    temperature=1.0,
    upstream=None,
    hardest=None,
    query_mask=None,
):
    """Returns the losses (B,) and a dict of gradients.

    One side may have P vectors a row, (B, P, D): the best product scores, of
    equal ones the first. `query_mask` (B, P) leaves vectors out.

    The gradients are those of the sum of `upstream` times the losses, by
    "query", "candidate", "sample_weight" and "temperature". `hardest` keeps
    that many negatives, those of the highest scores, of equal ones the first.
    """
    query = np.asarray(query, "float64")
    candidate = np.asarray(candidate, "float64")
    rows, candidates = len(query), len(candidate)
    weight = np.ones(rows) if sample_weight is None else sample_weight
    weight = np.asarray(weight, "float64")
    upstream = np.ones(rows) if upstream is None else upstream
    temperature = float(temperature)
    log_q = np.zeros(candidates)
    if candidate_sampling_probability is not None:
        for j, q in enumerate(candidate_sampling_probability):
            log_q[j] = math.log(max(float(q), SMALLEST_FLOAT32))
    plain = [
        np.asarray(x).tolist() if x is not None else None
        for x in (candidate_ids, query_ids, candidate_mask)
    ]
    losses = np.zeros(rows)
    gradients = {
        "query": np.zeros_like(query),
        "candidate": np.zeros_like(candidate),
        "sample_weight": np.zeros(rows),
        "temperature": 0.0,
    }
    for i in range(rows):
        # The positive first, then the negatives.
        members = [i, *negatives_of(i, candidates, *plain)]
        products, of_query, of_candidate = best_products(
            query[i],
            candidate[members],
            None if query_mask is None else query_mask[i],
        )
        scores = products / temperature - log_q[members]
        if hardest is not None:
            order = sorted(
                range(1, len(members)), key=lambda n: (-scores[n], members[n])
            )
            kept = [0, *order[:hardest]]
            members = [members[n] for n in kept]
            scores, products = scores[kept], products[kept]
            of_query, of_candidate = of_query[kept], of_candidate[kept]
        largest = scores.max()
        exponentials = np.exp(scores - largest)
        total = exponentials.sum()
        loss = math.log(total) + largest - scores[0]
        losses[i] = weight[i] * loss
        # d loss / d score: the softmax, less 1 for the positive.
        d_scores = exponentials / total
        d_scores[0] = -exponentials[1:].sum() / total
        d_products = upstream[i] * weight[i] * d_scores / temperature
        # As if each row had several vectors: views of the gradients.
        vectors, d_query = several(query[i]), several(gradients["query"][i])
        for j, d_product, p, r in zip(
            members, d_products, of_query, of_candidate
        ):
            d_candidate = several(gradients["candidate"][j])
            d_query[p] += d_product * several(candidate[j])[r]
            d_candidate[r] += d_product * vectors[p]
        gradients["sample_weight"][i] = upstream[i] * loss
        gradients["temperature"] -= d_products @ products / temperature
    return losses, gradients


def several(row):
    """Returns a view (P, D) of a row (P, D) or (D,)."""
    return row if row.ndim == 2 else row[None]


def best_products(query, candidates, allowed=None):
    """Returns the best products of a row, and whose they are.

    Args:
        query: (D,), or (P, D), P vectors of which the first best one counts.
        candidates: (K, D), or (K, P, D).
        allowed: P bools, False for vectors that do not count, or None.

    Returns:
        (K,) products, and the numbers of the query's and of the candidates'
        vectors that have them, (K,) each.
    """
    query = several(query)
    if candidates.ndim == 2:
        candidates = candidates[:, None]
    table = np.einsum("pd,krd->kpr", query, candidates)
    if allowed is not None:
        table[:, ~np.asarray(allowed)] = -np.inf
    table = table.reshape(len(table), -1)
    first = table.argmax(axis=1)  # of equal ones the first
    products = table[np.arange(len(table)), first]
    return products, *np.divmod(first, candidates.shape[1])


def rotation_logits(query, candidate, shifts, upstream=None):
    """Returns the logits (B, 1 + N) and a dict of gradients."""
    query = np.asarray(query, "float64")
    candidate = np.asarray(candidate, "float64")
    rows = len(query)
    logits = np.zeros((rows, 1 + len(shifts)))
    upstream = np.ones_like(logits) if upstream is None else upstream
    gradients = {
        "query": np.zeros_like(query),
        "candidate": np.zeros_like(candidate),
    }
    for i in range(rows):
        for k, shift in enumerate([0, *shifts]):
            j = (i + shift) % rows
            logits[i, k] = query[i] @ candidate[j]
            gradients["query"][i] += upstream[i, k] * candidate[j]
            gradients["candidate"][j] += upstream[i, k] * query[i]
    return logits, gradients


def first_column_loss(logits):
    """Returns (B,) softmax cross-entropies with column 0."""
    logits = np.asarray(logits, "float64")
    largest = logits.max(axis=1)
    total = np.exp(logits - largest[:, None]).sum(axis=1)
    return np.log(total) + largest - logits[:, 0]

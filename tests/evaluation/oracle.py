"""The figures of an evaluation from their definitions: full sorts and loops.

Imports nothing of ours. Exact for vectors of small integers, whose dot
products float64 holds without rounding.
"""

import math

import numpy as np


def ranked_list(query, candidates, ids, targets, seen):
    """Returns the ids in the order of a query's list, worst case first.

    Seen ids that are no targets are left out; of a tie, targets come last; a
    score that is no number is ahead of all.
    """
    kept = []
    for vector, one in zip(candidates, ids):
        if one in seen and one not in targets:
            continue
        score = 0.0
        for a, b in zip(query, vector):
            score += float(a) * float(b)
        if math.isnan(score):
            score = math.inf
        kept.append((-score, one in targets, one))
    return [one for _, _, one in sorted(kept, key=lambda entry: entry[:2])]


def evaluate(queries, candidates, ids, targets, seen, k, weights=None):
    """Returns {name: figure}, except for the coverage."""
    totals, total_weight = {}, 0.0
    for number, query in enumerate(queries):
        wanted = set(targets[number])
        if not wanted:
            continue
        order = ranked_list(query, candidates, ids, wanted, set(seen[number]))
        weight = 1.0 if weights is None else weights[number]
        total_weight += weight
        for name, value in figures(order, wanted, k).items():
            totals[name] = totals.get(name, 0.0) + weight * value
    return {name: value / total_weight for name, value in totals.items()}


def figures(order, wanted, k):
    """Returns the figures of one list."""
    results = {}
    for length in k:
        top = order[:length]
        hits = [one in wanted for one in top]
        gain = sum(
            1.0 / math.log2(place + 2) for place, hit in enumerate(hits) if hit
        )
        ideal = sum(
            1.0 / math.log2(place + 2)
            for place in range(min(length, len(wanted)))
        )
        results[f"recall@{length}"] = sum(hits) / len(wanted)
        results[f"hit_rate@{length}"] = float(any(hits))
        results[f"ndcg@{length}"] = gain / ideal
    results["mrr"] = 0.0
    for place, one in enumerate(order):
        if one in wanted:
            results["mrr"] = 1.0 / (place + 1)
            break
    return results


def coverage(queries, candidates, ids, targets, seen, k):
    """Returns the share of the ids in any list, for scores without ties."""
    found = set()
    for number, query in enumerate(queries):
        wanted = set(targets[number])
        scores = np.asarray(candidates, "float64") @ query
        order = [ids[place] for place in np.argsort(-scores)]
        left_out = set(seen[number]) - wanted
        order = [one for one in order if one not in left_out]
        found |= set(order[:k])
    return len(found) / len(ids)

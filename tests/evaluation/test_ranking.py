"""Ranks and lists against definitions, where float noise could deceive."""

import numpy as np
import pytest

from inbatch_neg.evaluation import ranking

pytestmark = pytest.mark.once


def places(*pairs):
    rows, columns = zip(*pairs) if pairs else ((), ())
    return ranking.Places(np.array(rows, "int64"), np.array(columns, "int64"))


def vectors(rows, dimensions, seed, integers=False):
    rng = np.random.default_rng(seed)
    if integers:
        drawn = rng.integers(-2, 3, (rows, dimensions))
    else:
        drawn = rng.normal(size=(rows, dimensions))
    return drawn.astype("float32")


def test_rank_by_hand():
    query = np.array([[1.0, 0.0]], "float32")
    candidate = np.array([[3, 0], [2, 5], [2, 7], [1, 0]], "float32")
    for target, rank in enumerate((1, 3, 3, 4)):
        assert ranking.target_ranks(query, candidate, places((0, target))) == [
            rank
        ]


def test_targets_of_one_query_stand_in_one_list():
    query = np.array([[1.0, 0.0]], "float32")
    candidate = np.array([[3, 0], [2, 5], [2, 7], [2, 0]], "float32")
    found = ranking.target_ranks(
        query, candidate, places((0, 1), (0, 2), (0, 3))
    )
    assert sorted(found) == [2, 3, 4]
    found = ranking.target_ranks(query, candidate, places((0, 1), (0, 2)))
    assert sorted(found) == [3, 4]


@pytest.mark.parametrize("integers", (True, False))
@pytest.mark.parametrize("queries, candidates", ((300, 5000), (256, 4096)))
def test_ranks_over_several_chunks(queries, candidates, integers):
    query = vectors(queries, 8, 0, integers)
    candidate = vectors(candidates, 8, 1, integers)
    target = np.random.default_rng(2).integers(0, candidates, queries)
    scores = query.astype("float64") @ candidate.T.astype("float64")
    own = scores[np.arange(queries), target][:, None]
    found = ranking.target_ranks(
        query, candidate, ranking.Places(np.arange(queries), target)
    )
    expected = np.sum(scores >= own, axis=1)
    if integers:
        np.testing.assert_array_equal(found, expected)
    else:
        # Random float scores may come closer than float32 can tell.
        near = np.sum(np.abs(scores - own) < 2e-5, axis=1)
        assert np.all(found >= expected)
        assert np.all(found - expected <= near - 1)
        assert np.mean(found == expected) > 0.95


@pytest.mark.parametrize("dimensions", (7, 64, 100))
def test_duplicates_tie_wherever_they_stand(dimensions):
    # Columns of a matrix product may be summed in different orders.
    query = vectors(40, dimensions, 3)
    base = vectors(1, dimensions, 4)
    candidate = np.repeat(base, 5000, axis=0)
    target = np.linspace(0, 4999, 40).astype("int64")
    found = ranking.target_ranks(
        query, candidate, ranking.Places(np.arange(40), target)
    )
    np.testing.assert_array_equal(found, 5000)


def test_seen_duplicates_are_subtracted():
    query = vectors(20, 64, 5)
    candidate = np.repeat(vectors(1, 64, 6), 100, axis=0)
    seen = places(*((row, j) for row in range(20) for j in range(row)))
    target = places(*((row, 50) for row in range(20)))
    found = ranking.target_ranks(query, candidate, target, seen)
    np.testing.assert_array_equal(found, 100 - np.arange(20))


def test_a_score_that_is_no_number_is_ahead():
    query = np.ones((2, 2), "float32")
    candidate = np.array([[1, 1], [np.nan, 0], [0, 0]], "float32")
    found = ranking.target_ranks(query, candidate, places((0, 0), (1, 1)))
    np.testing.assert_array_equal(found, [2, 3])
    scores, listed = next(iter(ranking.top_k(query, candidate, 3)))
    np.testing.assert_array_equal(listed[0], [0, 2, -1])
    assert scores[0, 2] == -np.inf


def test_infinite_scores():
    query = np.full((1, 1), 1e30, "float32")
    candidate = np.array([[1e30], [1.0], [-1e30]], "float32")
    for target, rank in enumerate((1, 2, 3)):
        found = ranking.target_ranks(query, candidate, places((0, target)))
        # The slack of an infinite score is infinite: all count against it.
        assert found >= rank


@pytest.mark.parametrize("k", (1, 100, 5000))
def test_top_k_equals_a_full_sort(k):
    query, candidate = vectors(300, 8, 7), vectors(40_000, 8, 8)
    left_out = places(*((row, j) for row in range(0, 300, 7) for j in (5, 9)))
    scores = query @ candidate.T
    scores[left_out.row, left_out.place] = -np.inf
    if k == 5000:  # as long as the lists of k = 100 permit groups
        query, scores = query[:16], scores[:16]
        left_out = places(*((0, 5), (0, 9), (7, 5), (7, 9), (14, 5), (14, 9)))
    found = list(ranking.top_k(query, candidate, k, left_out))
    values = np.concatenate([chunk for chunk, _ in found])
    listed = np.concatenate([chunk for _, chunk in found])
    expected = -np.sort(-scores, axis=1)[:, :k]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
    by_place = np.take_along_axis(scores, listed, axis=1)
    np.testing.assert_allclose(by_place, expected, rtol=1e-5, atol=1e-5)
    assert all(len(set(row)) == k for row in listed)


def test_lists_end_where_candidates_do():
    query, candidate = vectors(2, 4, 9), vectors(3, 4, 10)
    left_out = places((1, 0), (1, 1), (1, 2))
    (_, listed), *_ = ranking.top_k(query, candidate, 5, left_out)
    assert sorted(listed[0]) == [-1, -1, 0, 1, 2]
    assert list(listed[1]) == [-1] * 5

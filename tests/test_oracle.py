"""The oracle itself, against cases worked by hand and finite differences."""

import math

import numpy as np
import pytest

from tests import oracle

pytestmark = pytest.mark.once

EYE2 = [[1.0, 0.0], [0.0, 1.0]]
EYE3 = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_two_rows_by_hand():
    # Scores [[1, 0], [0, 1]]: log(e^1 + e^0) - 1 = log(1 + e^-1).
    losses, gradients = oracle.softmax_loss(EYE2, EYE2)
    np.testing.assert_allclose(losses, [math.log(1 + math.exp(-1))] * 2)
    # The softmax of the negative is 1 / (1 + e).
    p = 1 / (1 + math.e)
    np.testing.assert_allclose(gradients["query"], [[-p, p], [p, -p]])
    np.testing.assert_allclose(gradients["candidate"], [[-p, p], [p, -p]])
    np.testing.assert_allclose(gradients["sample_weight"], losses)
    # d/dT log(1 + e^(-1/T)) at T = 1 is p, for each of two rows.
    np.testing.assert_allclose(gradients["temperature"], 2 * p)


def test_temperature_divides_by_hand():
    losses, _ = oracle.softmax_loss(EYE2, EYE2, temperature=0.5)
    np.testing.assert_allclose(losses, [math.log(1 + math.exp(-2))] * 2)


def test_probability_by_hand():
    # Zero scores, q = (1/2, 1/8): corrected scores log 2 and log 8.
    losses, _ = oracle.softmax_loss(
        np.zeros((2, 2)), EYE2, candidate_sampling_probability=[0.5, 0.125]
    )
    np.testing.assert_allclose(losses, [math.log(10 / 2), math.log(10 / 8)])


def test_three_rows_masked_by_hand():
    zeros = np.zeros((3, 3))
    for arguments, counts in (
        ({}, [3, 3, 3]),
        ({"candidate_ids": [7, 7, 8]}, [2, 2, 3]),
        ({"query_ids": [1, 2, 1]}, [2, 3, 2]),
        # The row of the masked candidate keeps its own positive.
        ({"candidate_mask": [True, False, True]}, [2, 3, 2]),
        ({"candidate_ids": [7, 7, 7]}, [1, 1, 1]),
        ({"candidate_ids": [7, 7, 8], "query_ids": [1, 2, 1]}, [1, 2, 2]),
    ):
        losses, _ = oracle.softmax_loss(zeros, EYE3, **arguments)
        np.testing.assert_allclose(losses, np.log(counts), err_msg=arguments)


def test_extra_candidate_by_hand():
    losses, gradients = oracle.softmax_loss(
        np.zeros((2, 2)), EYE2 + [[1.0, 1.0]], query_ids=[5, 5]
    )
    np.testing.assert_allclose(losses, [math.log(2)] * 2)
    # Half of (1, 1) less half of the positive.
    np.testing.assert_allclose(gradients["query"], [[0, 0.5], [0.5, 0]])


def test_weight_by_hand():
    losses, gradients = oracle.softmax_loss(
        np.zeros((2, 2)), EYE2, sample_weight=[3.0, 0.0], upstream=[2.0, 5.0]
    )
    np.testing.assert_allclose(losses, [3 * math.log(2), 0])
    np.testing.assert_allclose(gradients["query"], [[-3, 3], [0, 0]])
    np.testing.assert_allclose(
        gradients["sample_weight"], [2 * math.log(2), 5 * math.log(2)]
    )


# From the tests of TensorFlow Recommenders' `Retrieval`.
MULTIPOINT = {
    "query": [[[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]], [[2, 3, 4], [4, 3, 2]]],
    "candidate": [[0.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]],
}
MULTIPOINT_LOSSES = [
    -math.log(1 / (1 + 2 * math.exp(3))),
    -math.log(math.exp(5) / (math.e + 2 * math.exp(5))),
]


def test_several_vectors_by_hand():
    losses, gradients = oracle.softmax_loss(**MULTIPOINT)
    np.testing.assert_allclose(losses, MULTIPOINT_LOSSES)
    # Row 0: 2 of both vectors, so the first has it; 5 of the second and of
    # the first. p = 1 / (2 + e^-3) of both negatives.
    p = 1 / (2 + math.exp(-3))
    np.testing.assert_allclose(
        gradients["query"][0], [[p, p - 2 * p, 0], [0, p, p]]
    )
    # Only the second vector: 2, 5, 3.
    losses, _ = oracle.softmax_loss(
        **MULTIPOINT, query_mask=[[False, True], [True, True]]
    )
    expected = math.log(1 + math.exp(3) + math.exp(1))
    np.testing.assert_allclose(losses[0], expected)


def test_rotation_by_hand():
    query = [[1.0], [2.0], [3.0]]
    candidate = [[1.0], [10.0], [100.0]]
    logits, _ = oracle.rotation_logits(query, candidate, [1, 2])
    np.testing.assert_allclose(
        logits, [[1, 10, 100], [20, 200, 2], [300, 3, 30]]
    )
    np.testing.assert_allclose(
        oracle.first_column_loss([[0.0, 0.0], [5.0, 5.0]]), [math.log(2)] * 2
    )


@pytest.mark.parametrize("several", [None, "query", "candidate"])
@pytest.mark.parametrize("name", ["query", "candidate", "sample_weight"])
def test_gradients_are_finite_differences(name, several):
    rng = np.random.default_rng(1)
    upstream = rng.normal(size=3)
    rules = {
        "candidate_ids": [1, 2, 1, 3, 2],
        "query_ids": [1, 2, 3],
        "candidate_sampling_probability": [0.1, 0.5, 0.2, 0.9, 0.3],
        "candidate_mask": [True, True, False, True, True],
    }
    values = {
        "query": rng.normal(size=(3, 2)),
        "candidate": rng.normal(size=(5, 2)),
        "sample_weight": rng.uniform(0.5, 2, size=3),
    }
    if several is not None:
        values[several] = rng.normal(size=(len(values[several]), 4, 2))

    def total(temperature=0.7, **changed):
        losses, _ = oracle.softmax_loss(
            **{**values, **changed}, **rules, temperature=temperature
        )
        return losses @ upstream

    _, gradients = oracle.softmax_loss(
        **values, **rules, temperature=0.7, upstream=upstream
    )
    expected = np.zeros_like(values[name])
    for place in np.ndindex(expected.shape):
        step = np.zeros_like(expected)
        step[place] = 1e-6
        higher = total(**{name: values[name] + step})
        lower = total(**{name: values[name] - step})
        expected[place] = (higher - lower) / 2e-6
    np.testing.assert_allclose(gradients[name], expected, atol=1e-8)
    np.testing.assert_allclose(
        gradients["temperature"],
        (total(0.7 + 1e-6) - total(0.7 - 1e-6)) / 2e-6,
        atol=1e-7,
    )


@pytest.mark.parametrize("name", ["query", "candidate"])
def test_rotation_gradients_are_finite_differences(name):
    rng = np.random.default_rng(2)
    values = {
        "query": rng.normal(size=(3, 2)),
        "candidate": rng.normal(size=(3, 2)),
    }
    upstream = rng.normal(size=(3, 2))
    _, gradients = oracle.rotation_logits(
        **values, shifts=[2], upstream=upstream
    )
    for place in np.ndindex(3, 2):
        step = np.zeros((3, 2))
        step[place] = 1e-6
        totals = [
            (
                oracle.rotation_logits(
                    **{**values, name: values[name] + sign * step}, shifts=[2]
                )[0]
                * upstream
            ).sum()
            for sign in (1, -1)
        ]
        np.testing.assert_allclose(
            gradients[name][place], (totals[0] - totals[1]) / 2e-6, atol=1e-8
        )

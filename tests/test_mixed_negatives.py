"""In-batch and uniform negatives together: the probability of each column.

A batch's B rows, drawn by frequency p, and M uniformly drawn candidates of a
catalogue of V. An item can come from either, so that a column, of all B + M,
holds it with q_j = (B p_j + M / V) / (B + M), as `docs/negatives.md` derives.
"""

import numpy as np
import pytest
from helpers import to_numpy

import inbatch_neg

ROWS, UNIFORM, ITEMS = 40, 24, 8
FREQUENCY = np.array([0.4, 0.25, 0.15, 0.1, 0.05, 0.05, 0.0, 0.0])
SCORES = np.array([0.3, -0.5, 1.0, 0.2, -1.0, 0.8, 1.5, -0.2])
CATALOGUE = np.exp(SCORES).sum()
MIXTURE = (ROWS * FREQUENCY + UNIFORM / ITEMS) / (ROWS + UNIFORM)


def draw(frequency, steps, seed=0):
    """Returns the items of batches (steps, B), and uniform ones (steps, M)."""
    rng = np.random.default_rng(seed)
    return (
        rng.choice(ITEMS, (steps, ROWS), p=frequency),
        rng.integers(0, ITEMS, (steps, UNIFORM)),
    )


def mean_and_error(batch, uniform, q_batch, q_uniform):
    """Returns the mean over columns of exp(s) / q, and its standard error."""
    terms = np.concatenate(
        [
            np.exp(SCORES[batch]) / q_batch[batch],
            np.exp(SCORES[uniform]) / q_uniform[uniform],
        ],
        axis=1,
    ).mean(axis=1)
    return terms.mean(), terms.std() / len(terms) ** 0.5


def test_the_mixture_is_a_distribution():
    assert MIXTURE.sum() == pytest.approx(1.0)


def test_the_mixture_gives_the_sum_over_the_catalogue():
    mean, error = mean_and_error(*draw(FREQUENCY, 20_000), MIXTURE, MIXTURE)
    assert error < 0.002 * CATALOGUE
    assert abs(mean - CATALOGUE) < 4 * error


def test_the_columns_hold_an_item_as_often_as_the_mixture_says():
    columns = np.concatenate(draw(FREQUENCY, 20_000), axis=1)
    share = np.bincount(columns.reshape(-1), minlength=ITEMS) / columns.size
    np.testing.assert_allclose(share, MIXTURE, atol=0.002)


def test_the_source_s_own_probability_misses_items_without_rows():
    uniform = np.full(ITEMS, 1 / ITEMS)
    mean, error = mean_and_error(
        *draw(FREQUENCY, 20_000), np.maximum(FREQUENCY, 1e-9), uniform
    )
    # Two items come from one source alone, in M of B + M columns.
    absent = np.exp(SCORES[FREQUENCY == 0]).sum() * ROWS / (ROWS + UNIFORM)
    assert abs(mean - (CATALOGUE - absent)) < 4 * error
    assert CATALOGUE - mean > 50 * error


def test_the_source_s_own_probability_scatters_more():
    # Where every item has rows it is right on average, at a larger variance.
    frequency = np.array([0.4, 0.3, 0.2, 0.09, 0.004, 0.003, 0.002, 0.001])
    mixture = (ROWS * frequency + UNIFORM / ITEMS) / (ROWS + UNIFORM)
    drawn = draw(frequency, 20_000)
    mean, error = mean_and_error(*drawn, mixture, mixture)
    own, own_error = mean_and_error(
        *drawn, frequency, np.full(ITEMS, 1 / ITEMS)
    )
    assert abs(mean - CATALOGUE) < 4 * error
    assert abs(own - CATALOGUE) < 4 * own_error
    assert own_error > 3 * error


@pytest.mark.parametrize("wrong", [FREQUENCY, np.full(ITEMS, 1 / ITEMS)])
def test_one_source_s_probability_for_both_is_wrong(wrong):
    wrong = np.maximum(wrong, 1e-3)
    mean, error = mean_and_error(*draw(FREQUENCY, 20_000), wrong, wrong)
    assert abs(mean - CATALOGUE) > 50 * error


def test_the_layer_s_loss_has_the_catalogue_for_its_denominator():
    # A batch that holds each item exactly as often as expected: its mean is
    # the expectation, and the negatives' sum that of all other items.
    counts = np.rint(ROWS * FREQUENCY).astype(int)
    items = np.repeat(np.arange(ITEMS), counts)
    uniform = np.repeat(np.arange(ITEMS), UNIFORM // ITEMS)
    assert (len(items), len(uniform)) == (ROWS, UNIFORM)
    ids = np.concatenate([items, uniform])
    losses = inbatch_neg.InBatchNegativeSoftmax()(
        np.ones((ROWS, 1), "float32"),
        SCORES[ids][:, None].astype("float32"),
        candidate_ids=ids.astype("int32"),
        candidate_sampling_probability=MIXTURE[ids].astype("float32"),
    )
    positive = np.exp(SCORES[items]) / MIXTURE[items]
    others = (ROWS + UNIFORM) * (CATALOGUE - np.exp(SCORES[items]))
    expected = np.log(positive + others) - np.log(positive)
    np.testing.assert_allclose(to_numpy(losses), expected, rtol=1e-5)

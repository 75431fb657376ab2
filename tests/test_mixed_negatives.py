"""Mixed negatives: what a column is worth that may come from two sources."""

import importlib
import pathlib
import sys

import keras
import numpy as np
import pytest

from inbatch_neg import InBatchNegativeSoftmax
from tests import helpers

EXAMPLES = pathlib.Path(__file__).parents[1] / "docs" / "examples"

ITEMS, ROWS, DRAWN = 50, 40, 20


@pytest.fixture(scope="module")
def recipes():
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("movielens_recipes")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def shares():
    shares = 1.0 / np.arange(1, ITEMS + 1)
    return shares / shares.sum()


def test_the_layer_adds_uniform_ids(recipes, shares):
    layer = recipes.AddUniform(shares, DRAWN, seed=1)
    batch = np.arange(ROWS, dtype="int32")
    ids, probability = map(helpers.to_numpy, layer(batch))
    again, _ = map(helpers.to_numpy, layer(batch))
    assert ids.shape == probability.shape == (ROWS + DRAWN,)
    assert ids[:ROWS].tolist() == batch.tolist()
    assert np.all((ids >= 0) & (ids < ITEMS))
    assert not np.array_equal(ids, again)
    expected = (ROWS * shares + DRAWN / ITEMS) / (ROWS + DRAWN)
    helpers.assert_close(probability, expected[ids])


def test_the_sum_over_the_columns_is_that_over_the_catalogue(recipes, shares):
    """The identity that the correction rests on, by simulation."""
    rng = np.random.default_rng(0)
    exponentials = np.exp(rng.normal(size=ITEMS))
    truth = exponentials.sum()
    layer = recipes.AddUniform(shares, DRAWN, seed=1)
    mixed, by_source = [], []
    for _ in range(1000):
        batch = rng.choice(ITEMS, ROWS, p=shares).astype("int32")
        ids, probability = map(helpers.to_numpy, layer(batch))
        mixed.append(np.mean(exponentials[ids] / probability))
        # As if all columns came from the rows of the data.
        by_source.append(np.mean(exponentials[ids] / shares[ids]))
    error = np.std(mixed) / np.sqrt(len(mixed))
    assert abs(np.mean(mixed) - truth) < 4 * error
    assert error < 0.02 * truth
    assert np.mean(by_source) > 1.2 * truth


def test_the_softmax_takes_them(recipes, shares):
    user = keras.Input((4,), name="user")
    item_id = keras.Input((), dtype="int32", name="item")
    tower = keras.layers.Embedding(ITEMS, 4)
    ids, probability = recipes.AddUniform(shares, DRAWN, seed=1)(item_id)
    losses = InBatchNegativeSoftmax()(
        user,
        tower(ids),
        candidate_ids=ids,
        candidate_sampling_probability=probability,
    )
    model = keras.Model([user, item_id], losses)
    batch = [np.ones((ROWS, 4), "float32"), np.arange(ROWS, dtype="int32")]
    assert model.predict(batch, batch_size=ROWS, verbose=0).shape == (ROWS,)

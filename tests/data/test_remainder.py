"""`remainder="pad"`: all rows evaluated, exactly."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from inbatch_neg import full_batches
from tests import oracle
from tests.data import reading
from tests.data.reading import BACKEND, epoch

ROWS, BATCH = 19, 8
RNG = np.random.default_rng(0)
DATA = {
    "user": RNG.integers(0, 40, ROWS),
    "item": RNG.integers(0, 6, ROWS),
}
MASK = [True] * 3 + [False] * 5


def rows_of(data):
    return tf.data.Dataset.from_tensor_slices(data)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 7

    def __getitem__(self, index):
        return {n: v[3 * index : 3 * index + 3] for n, v in DATA.items()}


SOURCES = {
    "arrays": (lambda: DATA, False),
    "tf.data": (lambda: rows_of(DATA), False),
    "tf.data batches": (lambda: rows_of(DATA).batch(3), True),
    "unknown": (lambda: rows_of(DATA).filter(lambda _: True), False),
    "PyDataset": (Batches, True),
    "generator": (lambda: lambda: (Batches()[i] for i in range(7)), True),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_rows_their_weights_and_the_mask(kind):
    source, batched = SOURCES[kind]
    dataset = full_batches(source(), BATCH, batched=batched, remainder="pad")
    if BACKEND == "tensorflow":
        reading.assert_static(dataset, BATCH)
    batches = epoch(dataset)
    assert len(batches) == 3
    for x, y, weight in batches:
        assert y is None and weight.dtype == "float32"
        assert x["candidate_mask"].dtype == bool
        np.testing.assert_array_equal(x["candidate_mask"], weight == 1)
        np.testing.assert_array_equal(x["candidate_mask"], weight != 0)
        assert all(len(column) == BATCH for column in x.values())
    for name, values in DATA.items():
        found = np.concatenate([x[name] for x, _, _ in batches])
        np.testing.assert_array_equal(found[:ROWS], values)
        assert (found[ROWS:] == values[-1]).all()
    assert batches[2][0]["candidate_mask"].tolist() == MASK


def losses_by_hand(model):
    """Returns the loss of each row: its batch's rows alone are candidates."""
    users, items = (w.astype("float64") for w in model.get_weights())
    losses = []
    for start in range(0, ROWS, BATCH):
        user = DATA["user"][start : start + BATCH]
        item = DATA["item"][start : start + BATCH]
        loss, _ = oracle.softmax_loss(
            users[user], items[item], candidate_ids=item
        )
        losses.extend(loss)
    assert len(losses) == ROWS
    return np.array(losses)


@pytest.mark.parametrize("kind", ["arrays", "unknown", "PyDataset"])
def test_the_loss_over_all_rows(kind):
    model = reading.two_towers(mask=True)
    source, batched = SOURCES[kind]
    dataset = full_batches(source(), BATCH, batched=batched, remainder="pad")
    expected = losses_by_hand(model)
    # The losses of the rows, the copies at the end.
    losses = model.predict(dataset, verbose=0)
    np.testing.assert_allclose(losses.ravel()[:ROWS], expected, rtol=1e-5)
    # Keras averages over the copies, too, whose losses are 0.
    found = model.evaluate(dataset, verbose=0) * 3 * BATCH / ROWS
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)
    # A weighted metric does not.
    per_row = keras.metrics.MeanMetricWrapper(
        lambda y_true, y_pred: y_pred, name="per_row"
    )
    model.compile(loss=model.loss, weighted_metrics=[per_row])
    labels = np.zeros(ROWS, "float32")
    if kind == "arrays":
        dataset = full_batches((DATA, labels), BATCH, remainder="pad")
        found = model.evaluate(dataset, verbose=0, return_dict=True)
        np.testing.assert_allclose(found["per_row"], expected.mean(), 1e-5)


def test_forms_of_data():
    a, w = np.arange(5.0), np.arange(5.0) + 2
    x, y, weight = epoch(full_batches(a, 4, remainder="pad"))[1]
    assert y is None and x[0].tolist() == [4] * 4
    assert x[1].tolist() == [True, False, False, False]
    x, y, weight = epoch(full_batches(((a, a), a, w), 4, remainder="pad"))[1]
    assert len(x) == 3 and y.tolist() == [4] * 4
    assert weight.tolist() == [6, 0, 0, 0]
    data = ({"a": a}, (a, None), (w, w[:, None]))
    x, y, weight = epoch(full_batches(data, 4, remainder="pad"))[1]
    assert sorted(x) == ["a", "candidate_mask"] and y[1] is None
    assert weight[0].tolist() == [6, 0, 0, 0]
    assert weight[1].tolist() == [[6], [0], [0], [0]]


def test_no_rest_and_few_rows():
    (batch,) = epoch(full_batches(np.arange(4), 4, remainder="pad"))
    assert batch[0][1].all()
    (batch,) = epoch(full_batches(np.arange(1), 4, remainder="pad"))
    assert batch[2].tolist() == [1, 0, 0, 0]
    with pytest.raises(ValueError, match="`data` must have rows"):
        full_batches(np.arange(0), 4, remainder="pad")


def test_shuffled():
    dataset = full_batches(
        np.arange(10), 4, shuffle=True, seed=1, remainder="pad"
    )
    assert len(dataset) == 3
    for _ in range(2):
        rows = np.concatenate([x[0][x[1]] for x, _, _ in epoch(dataset)])
        assert sorted(rows) == list(range(10))


def test_what_is_refused():
    a = np.arange(5)
    with pytest.raises(ValueError, match="'candidate_mask'"):
        epoch(full_batches({"candidate_mask": a > 1}, 4, remainder="pad"))
    with pytest.raises(ValueError, match="tuple of 4"):
        epoch(full_batches((a, a, a, a), 4, remainder="pad"))

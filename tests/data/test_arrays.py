"""Rows in memory: arrays, lists, frames, tables, and nests of these."""

import logging
import pickle

import keras
import numpy as np
import pandas
import pytest

import inbatch_neg
from inbatch_neg import full_batches
from inbatch_neg.data import keras_dataset
from tests.data import reading
from tests.data.reading import BACKEND, epoch

NUMBERS = np.arange(10)
PAIRS = {"user": np.arange(20), "item": np.arange(20)[::-1].copy()}

ONE_COLUMN = {
    "array": NUMBERS,
    "list": NUMBERS.tolist(),
    "series": pandas.Series(NUMBERS, index=NUMBERS[::-1]),
    "Int64": pandas.Series(NUMBERS, dtype="Int64"),
    "big-endian": NUMBERS.astype(">i8"),
    "objects": np.array(NUMBERS.tolist(), object),
    "keras": keras.ops.arange(10),
}


@pytest.mark.parametrize("kind", ONE_COLUMN)
def test_one_column(kind):
    dataset = full_batches(ONE_COLUMN[kind], 4)
    assert len(dataset) == 2
    batches = epoch(dataset)
    np.testing.assert_array_equal(batches, [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(epoch(dataset), batches)  # every epoch
    assert batches[0].dtype.kind == "i" and batches[0].dtype.isnative


def test_the_kind_of_result():
    dataset = full_batches(PAIRS, 8)
    if BACKEND == "tensorflow":
        reading.assert_static(dataset, 8)
    else:
        assert isinstance(dataset, keras.utils.PyDataset)
        assert len(dataset[1]["user"]) == 8
        with pytest.raises(IndexError):
            dataset[2]


def test_frame():
    frame = pandas.DataFrame(PAIRS, index=PAIRS["item"] % 3)
    batches = epoch(full_batches(frame, 8))
    assert list(batches[0]) == ["user", "item"]
    assert reading.column(batches, "user").tolist() == list(range(16))
    assert reading.column(batches, "item").tolist() == list(range(19, 3, -1))
    ((x, y),) = epoch(full_batches((frame, frame["user"]), 20))
    np.testing.assert_array_equal(x["user"], y)


@pytest.mark.parametrize("data", [PAIRS, (PAIRS, None), (PAIRS,)])
def test_fit(data):
    reading.check_fit(full_batches(data, 8, shuffle=True, seed=1), 2)


@pytest.mark.parametrize("shuffle", [False, True])
def test_nests_stay_together(shuffle):
    a = np.arange(10)
    data = (
        {"a": a, "deep": {"twice": 2 * a}, "pair": (3 * a, 4.0 * a)},
        [5 * a, a > 4],
    )
    for x, y in epoch(full_batches(data, 4, shuffle=shuffle)):
        np.testing.assert_array_equal(x["deep"]["twice"], 2 * x["a"])
        np.testing.assert_array_equal(x["pair"][0], 3 * x["a"])
        np.testing.assert_array_equal(x["pair"][1], 4.0 * x["a"])
        np.testing.assert_array_equal(y[0], 5 * x["a"])
        np.testing.assert_array_equal(y[1], x["a"] > 4)


def test_large_ids_survive():
    ids = np.array([2**24, 2**24 + 1, 2**53 + 1, 7], "int64")
    for data in (ids, pandas.Series(ids, dtype="Int64"), ids.tolist()):
        (batch,) = epoch(full_batches({"id": data}, 4))
        assert batch["id"].tolist() == ids.tolist()


LARGE = 2**53 + 1


@pytest.mark.parametrize(
    "ids",
    [[np.nan, LARGE], [0.5, LARGE], [2**63, -1], [[0.5, 1], [LARGE, 1]]],
)
def test_large_ids_are_not_rounded(ids):
    with pytest.raises(ValueError, match=r"data\['id'\].*integers.*round"):
        full_batches({"id": ids}, 2)
    with pytest.raises(ValueError, match=r"data\['id'\].*integers.*round"):
        next(iter(full_batches([{"id": ids}], 2, batched=True)))


def test_floats_in_lists():
    (batch,) = epoch(full_batches([np.nan, 1, 2.0**60, np.inf], 4))
    np.testing.assert_array_equal(batch, [np.nan, 1, 2.0**60, np.inf])


def test_masked_arrays():
    whole = np.ma.masked_array(NUMBERS, mask=False)
    np.testing.assert_array_equal(epoch(full_batches(whole, 10))[0], NUMBERS)
    masked = np.ma.masked_array(NUMBERS, mask=NUMBERS % 2 == 0)
    reading.check_refused(masked, r"missing values \(masked int64\)", "Fill")


def test_columns_of_one_name():
    frame = pandas.DataFrame([[1, 2, 3]] * 8, columns=["user", "item", "item"])
    with pytest.raises(ValueError, match="different names.*'item'"):
        full_batches(frame, 4)


def test_long_doubles():
    if np.dtype(np.longdouble).itemsize > 8:
        column = NUMBERS.astype(np.longdouble)
        reading.check_refused(column, "float128", "64 bits")


def test_where_columns_can_be_left_out():
    days = NUMBERS.astype("datetime64[D]")
    for data in (days, (NUMBERS, days), ({"a": {"b": days}},), (days,)):
        with pytest.raises(TypeError, match="dates") as caught:
            full_batches(data, 4)
        assert "columns=" not in str(caught.value)
    with pytest.raises(TypeError, match="dates.*`columns=`"):
        full_batches(({"a": days}, NUMBERS), 4)


@pytest.mark.parametrize("label", [None, (None, NUMBERS)], ids=["None", "list"])
def test_no_label_stays(label):
    batches = epoch(full_batches((NUMBERS, label), 4))
    assert [len(batch) for batch in batches] == [2, 2]
    for x, y in batches:
        if label is None:
            assert y is None
        else:
            assert y[0] is None
            np.testing.assert_array_equal(y[1], x)


def test_no_label_in_a_list():
    (batch,) = epoch(full_batches((NUMBERS, [None, NUMBERS]), 10))
    assert batch[1][0] is None
    np.testing.assert_array_equal(batch[1][1], NUMBERS)


def test_fit_of_two_losses_with_one_label():
    """`[None, rating]`: the losses of the softmax have no label."""
    towers = reading.two_towers()
    rating = keras.layers.Dense(1, name="rating")(
        towers.get_layer("users").output
    )
    model = keras.Model(towers.inputs, [towers.output, rating])
    losses = [inbatch_neg.InBatchNegativeLoss(), "mse"]
    model.compile("sgd", loss=losses)
    data = (PAIRS, [None, np.ones((20, 1), "float32")])
    model.fit(full_batches(data, 8), shuffle=False, verbose=0)
    assert reading.steps_of(model) == 2


def test_one_order_on_every_backend():
    expected = []
    for number in range(2):
        places = np.arange(10, dtype="int32")
        np.random.default_rng((5, number)).shuffle(places)
        expected.append(places[:8].tolist())
    dataset = full_batches(NUMBERS, 4, shuffle=True, seed=5)
    found = [np.concatenate(epoch(dataset)).tolist() for _ in range(2)]
    assert found == expected
    assert found[0] == [7, 6, 1, 3, 2, 4, 0, 9]


def test_shuffled_anew_and_reproducible():
    def epochs(seed):
        dataset = full_batches(np.arange(20), 4, shuffle=True, seed=seed)
        orders = [np.concatenate(epoch(dataset)).tolist() for _ in range(3)]
        for order in orders:
            assert sorted(order) == list(range(20))
        return orders

    first = epochs(1)
    assert first[0] != first[1] != first[2]
    assert first == epochs(1)
    assert first != epochs(2)
    assert epochs(None) != epochs(None)
    keras.utils.set_random_seed(3)
    one = epochs(None)
    keras.utils.set_random_seed(3)
    assert one == epochs(None)


def test_other_rows_are_left_out_in_other_epochs():
    dataset = full_batches(np.arange(5), 4, shuffle=True, seed=3)
    seen = {int(row) for _ in range(12) for row in epoch(dataset)[0]}
    assert seen == {0, 1, 2, 3, 4}


def test_too_few_rows():
    for data in (np.arange(3), {"a": np.arange(3)}, np.arange(0)):
        with pytest.raises(ValueError, match=r"`batch_size`.*4.*\d rows"):
            full_batches(data, 4)


def test_lengths():
    with pytest.raises(ValueError, match=r"data\['a'\]: 5, data\['b'\]: 6"):
        full_batches({"a": np.arange(5), "b": np.arange(6)}, 2)


def test_a_list_of_arrays_is_refused():
    """It could be `x, y` or two inputs, and is neither one array."""
    users, items = np.arange(64), np.arange(64)
    for size in (2, 16):
        with pytest.raises(TypeError, match=r"list of arrays.*\(x, y\)"):
            full_batches([users, items], size)
    (batch,) = epoch(full_batches(((users, items),), 64))
    assert len(batch) == 1 and len(batch[0]) == 2
    ((x, y),) = epoch(full_batches(([users, items], users), 64))
    assert len(x) == 2 and len(y) == 64


def test_a_list_of_dicts_is_refused():
    rows = [{"user": 1, "item": 2}] * 8
    with pytest.raises(TypeError, match=r"pandas\.DataFrame\(data\).*batched"):
        full_batches(rows, 4)


def test_it_logs_what_is_left_out(caplog):
    with caplog.at_level(logging.INFO, "inbatch_neg"):
        plain = full_batches(NUMBERS, 4)
        shuffled = full_batches(NUMBERS, 4, shuffle=True)
        for _ in range(2):
            epoch(plain), epoch(shuffled)
    first, second = caplog.messages
    assert "last 2 of 10 rows in every epoch" in first
    assert "2 of 10 rows in each epoch" in second
    caplog.clear()
    full_batches(NUMBERS, 5)
    assert not caplog.messages


@pytest.mark.backends("jax", "torch")
def test_epochs_of_fit(monkeypatch):
    """Every epoch reads every batch once, in the order of that epoch."""
    read = []
    batch_of = keras_dataset.ArrayBatches._batch

    def spy(self, index, number):
        read.append((number, index))
        return batch_of(self, index, number)

    monkeypatch.setattr(keras_dataset.ArrayBatches, "_batch", spy)
    many = {name: np.tile(ids, 10) for name, ids in PAIRS.items()}
    dataset = full_batches(many, 8, shuffle=True, seed=7)
    reading.two_towers().fit(dataset, epochs=3, shuffle=False, verbose=0)
    # Before the first epoch, Keras reads a batch to build the model.
    assert len(read) <= 75 + 1
    assert read[-75:] == [(n, i) for n in range(3) for i in range(25)]


@pytest.mark.backends("jax", "torch")
@pytest.mark.parametrize("data", [np.arange(20), [np.arange(20)].__iter__])
@pytest.mark.parametrize("name", ["workers", "use_multiprocessing"])
def test_workers_are_refused(data, name):
    """Keras would train twice on what they read ahead."""
    dataset = full_batches(data, 4, batched=callable(data))
    setattr(dataset, name, 1 if name == "workers" else False)
    with pytest.raises(ValueError, match=f"`{name}`.*PyDataset.*DataLoader"):
        setattr(dataset, name, 2)
    assert dataset.workers == 1
    assert not dataset.use_multiprocessing


@pytest.mark.backends("jax", "torch")
def test_it_can_be_copied():
    dataset = full_batches(np.arange(20), 4, shuffle=True, seed=1)
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[1], dataset[1])
    dataset.on_epoch_begin()
    first = dataset[0].tolist()
    dataset.on_epoch_end()  # after two batches: the epoch is not over
    assert dataset[0].tolist() == first

"""`full_batches`: every kind of data, every batch full."""

import logging

import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf

import inbatch_neg
from inbatch_neg import full_batches


def rows_of(dataset):
    """Returns the batches of a dataset as nested NumPy arrays."""
    return [
        tf.nest.map_structure(lambda t: t.numpy(), batch) for batch in dataset
    ]


def unknown_size(dataset):
    return dataset.filter(lambda *_: True)


NUMBERS = np.arange(10)


@pytest.mark.parametrize(
    "data",
    [
        NUMBERS,
        NUMBERS.tolist(),
        tf.constant(NUMBERS),
        pandas.Series(NUMBERS),
        tf.data.Dataset.range(10),
        unknown_size(tf.data.Dataset.range(10)),
    ],
    ids=["array", "list", "tensor", "series", "dataset", "unknown"],
)
def test_one_column(data):
    dataset = full_batches(data, 4)
    assert dataset.element_spec.shape == (4,)
    batches = rows_of(dataset)
    np.testing.assert_array_equal(batches, [[0, 1, 2, 3], [4, 5, 6, 7]])
    # Again: every epoch.
    np.testing.assert_array_equal(rows_of(dataset), batches)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("size", [3, 4, 7])
def test_batches_are_regrouped(batched, size):
    data = {"a": np.arange(24), "b": np.arange(48).reshape(24, 2)}
    rows = tf.data.Dataset.from_tensor_slices(data)
    data = rows.batch(size) if batched else rows
    for dataset in (data, unknown_size(data)):
        full = full_batches(dataset, 5, batched=batched)
        assert full.element_spec["b"].shape == (5, 2)
        batches = rows_of(full)
        np.testing.assert_array_equal(
            [b["a"] for b in batches], np.arange(20).reshape(4, 5)
        )
        shuffled = rows_of(
            full_batches(dataset, 5, shuffle=True, seed=1, batched=batched)
        )
        assert [b["a"].shape for b in shuffled] == [(5,)] * 4
        seen = np.concatenate([b["a"] for b in shuffled])
        assert len(set(seen)) == 20 and list(seen) != sorted(seen)


@pytest.mark.parametrize("shuffle", [False, True])
def test_structures_stay_together(shuffle):
    a = np.arange(10)
    data = (
        {"a": a, "deep": {"twice": 2 * a}, "pair": (3 * a, 4.0 * a)},
        np.array([str(i) for i in a]),
    )
    for batch, names in rows_of(full_batches(data, 4, shuffle=shuffle)):
        np.testing.assert_array_equal(batch["deep"]["twice"], 2 * batch["a"])
        np.testing.assert_array_equal(batch["pair"][0], 3 * batch["a"])
        np.testing.assert_array_equal(batch["pair"][1], 4.0 * batch["a"])
        assert [int(n) for n in names] == batch["a"].tolist()


def test_frame():
    frame = pandas.DataFrame(
        {"user": [5, 6, 7, 8, 9], "item": ["a", "b", "c", "d", "e"]},
        index=[9, 3, 3, 1, 0],
    )
    dataset = full_batches(frame, 2)
    assert dataset.element_spec["item"].dtype == tf.string
    batches = rows_of(dataset)
    assert [b["user"].tolist() for b in batches] == [[5, 6], [7, 8]]
    assert batches[1]["item"].tolist() == [b"c", b"d"]
    x, y = rows_of(full_batches((frame, frame["user"]), 5))[0]
    np.testing.assert_array_equal(x["user"], y)


def test_int64_ids_survive():
    ids = np.array([2**24, 2**24 + 1, 2**40, 7], "int64")
    (batch,) = rows_of(full_batches({"id": ids}, 4))
    assert batch["id"].tolist() == ids.tolist()


SOURCES = {
    "arrays": lambda: np.arange(20),
    "rows": lambda: tf.data.Dataset.range(20),
    "unknown": lambda: unknown_size(tf.data.Dataset.range(20)),
    "batches": lambda: tf.data.Dataset.range(20).batch(3),
}


@pytest.mark.parametrize("source", SOURCES)
def test_shuffled_anew_in_every_epoch_and_reproducible(source):
    def epochs(seed):
        dataset = full_batches(
            SOURCES[source](),
            4,
            shuffle=True,
            seed=seed,
            batched=source == "batches",
        )
        orders = [np.concatenate(rows_of(dataset)) for _ in range(3)]
        for order in orders:
            assert sorted(order) == list(range(20))
        return [order.tolist() for order in orders]

    first = epochs(1)
    assert first[0] != first[1] != first[2]
    assert first == epochs(1)
    assert first != epochs(2)
    assert epochs(None) != epochs(None)


def test_other_rows_are_left_out_in_other_epochs():
    dataset = full_batches(np.arange(5), 4, shuffle=True, seed=3)
    seen = {int(row) for _ in range(12) for row in next(iter(dataset))}
    assert seen == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "data",
    [
        np.arange(3),
        {"a": np.arange(3)},
        np.arange(0),
        tf.data.Dataset.range(3),
    ],
    ids=["array", "dict", "empty", "dataset"],
)
def test_too_few_rows(data):
    with pytest.raises(ValueError, match=r"`batch_size`.*4.*Received: \d row"):
        full_batches(data, 4)


def test_too_few_rows_in_known_batches():
    batches = tf.data.Dataset.range(3).batch(2)
    with pytest.raises(ValueError, match="`batch_size`.*4.*Received"):
        next(iter(full_batches(batches, 4, batched=True)))


@pytest.mark.parametrize("shuffle", [False, True])
def test_too_few_rows_of_unknown_size(shuffle):
    dataset = full_batches(
        unknown_size(tf.data.Dataset.range(3)), 4, shuffle=shuffle
    )
    for _ in range(2):
        with pytest.raises(ValueError, match="`batch_size`.*4.*Received"):
            iter(dataset)
    batched = unknown_size(tf.data.Dataset.range(3).batch(2))
    with pytest.raises(ValueError, match="`batch_size`.*4.*Received"):
        iter(full_batches(batched, 4, shuffle=shuffle, batched=True))


def test_lengths():
    with pytest.raises(ValueError, match=r"same number of rows.*\[5, 6\]"):
        full_batches({"a": np.arange(5), "b": np.arange(6)}, 2)


@pytest.mark.parametrize("size", [0, -1, 1])
def test_batch_size_too_small(size):
    with pytest.raises(ValueError, match=f"`batch_size`.*Received.*{size}"):
        full_batches(NUMBERS, size)


@pytest.mark.parametrize("size", [2.5, 2.0, True, "4", None])
def test_batch_size_of_a_wrong_type(size):
    with pytest.raises(TypeError, match="`batch_size`.*Received"):
        full_batches(NUMBERS, size)


def test_numpy_integers():
    dataset = full_batches(NUMBERS, np.int64(4), seed=np.int32(1))
    assert dataset.element_spec.shape == (4,)


@pytest.mark.parametrize(
    "argument", [{"shuffle": 1}, {"batched": "no"}, {"seed": 1.5}]
)
def test_other_arguments(argument):
    (name,) = argument
    with pytest.raises(TypeError, match=f"`{name}`.*Received"):
        full_batches(NUMBERS, 4, **argument)


@pytest.mark.parametrize(
    "data", ["abc", 3, None, object(), {"a": 3}, (x for x in "ab"), {1, 2}, {}]
)
def test_data_of_a_wrong_type(data):
    with pytest.raises((TypeError, ValueError), match="`data`"):
        full_batches(data, 4)


def test_a_scalar_array():
    with pytest.raises(ValueError, match="`data`.*scalar"):
        full_batches(np.array(3), 4)


def test_batched_arrays():
    with pytest.raises(TypeError, match="`batched=True`.*ndarray"):
        full_batches(NUMBERS, 4, batched=True)


def test_it_logs_what_is_left_out(caplog):
    with caplog.at_level(logging.INFO, "inbatch_neg"):
        full_batches(NUMBERS, 4)
        full_batches(NUMBERS, 4, shuffle=True)
        full_batches(tf.data.Dataset.range(11), 4)
    plain, shuffled, dataset = caplog.messages
    assert "last 2 of 10 rows in every epoch" in plain
    assert "2 of 10 rows an epoch" in shuffled
    assert "last 3 of 11 rows" in dataset
    caplog.clear()
    full_batches(NUMBERS, 5)
    assert not caplog.messages


@pytest.mark.parametrize("source", ["arrays", "unknown"])
def test_fit(source):
    ids = {"user": np.arange(20), "item": np.arange(20)[::-1].copy()}
    if source == "unknown":
        ids = unknown_size(tf.data.Dataset.from_tensor_slices(ids))
    user = keras.Input((), dtype="int64", name="user")
    item = keras.Input((), dtype="int64", name="item")
    loss = inbatch_neg.InBatchNegativeSoftmax()(
        keras.layers.Embedding(20, 4)(user),
        keras.layers.Embedding(20, 4)(item),
        candidate_ids=item,
    )
    model = keras.Model({"user": user, "item": item}, loss)
    model.compile(
        keras.optimizers.Adam(0.05), loss=inbatch_neg.InBatchNegativeLoss()
    )
    dataset = full_batches(ids, 8, shuffle=True, seed=1)
    losses = model.fit(dataset, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    steps = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    # Two full batches of 20 rows, in each of three epochs. On TensorFlow,
    # Keras also counts the attempt that finds a dataset's unknown end.
    assert steps == 6 or (source == "unknown" and steps == 9)

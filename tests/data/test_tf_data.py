"""`tf.data` as a source, on every backend."""

import logging

import numpy as np
import pytest
import tensorflow as tf

from inbatch_neg import full_batches
from tests.data import reading
from tests.data.reading import epoch

RANGE = tf.data.Dataset.range


def unknown(dataset):
    return dataset.filter(lambda *_: True)


@pytest.mark.parametrize("source", [RANGE(10), unknown(RANGE(10))])
def test_one_column(source):
    dataset = full_batches(source, 4)
    assert dataset.element_spec.shape == (4,)
    batches = epoch(dataset)
    np.testing.assert_array_equal(batches, [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(epoch(dataset), batches)


@pytest.mark.once
@pytest.mark.parametrize(
    "batched, size", [(False, None), (True, 3), (True, 4), (True, 7)]
)
def test_batches_are_regrouped(batched, size):
    data = {"a": np.arange(24), "b": np.arange(48).reshape(24, 2)}
    rows = tf.data.Dataset.from_tensor_slices(data)
    data = rows.batch(size) if batched else rows
    for dataset in (data, unknown(data)):
        full = full_batches(dataset, 5, batched=batched)
        assert full.element_spec["b"].shape == (5, 2)
        batches = epoch(full)
        np.testing.assert_array_equal(
            [b["a"] for b in batches], np.arange(20).reshape(4, 5)
        )
        shuffled = epoch(
            full_batches(dataset, 5, shuffle=True, seed=1, batched=batched)
        )
        assert [b["a"].shape for b in shuffled] == [(5,)] * 4
        seen = reading.column(shuffled, "a")
        assert len(set(seen)) == 20 and list(seen) != sorted(seen)


SOURCES = {
    "rows": lambda: RANGE(20),
    "unknown": lambda: unknown(RANGE(20)),
    "batches": lambda: RANGE(20).batch(3),
}


@pytest.mark.once
@pytest.mark.parametrize("source", SOURCES)
def test_shuffled_anew_and_reproducible(source):
    def epochs(seed):
        dataset = full_batches(
            SOURCES[source](),
            4,
            shuffle=True,
            seed=seed,
            batched=source == "batches",
        )
        orders = [np.concatenate(epoch(dataset)).tolist() for _ in range(3)]
        for order in orders:
            assert sorted(order) == list(range(20))
        return orders

    first = epochs(1)
    assert first[0] != first[1] != first[2]
    assert first == epochs(1)
    assert first != epochs(2)
    assert epochs(None) != epochs(None)


def test_too_few_rows():
    with pytest.raises(ValueError, match="`batch_size`.*4.*Received: 3 rows"):
        full_batches(RANGE(3), 4)
    with pytest.raises(ValueError, match="`batch_size`.*4.*Received"):
        next(iter(full_batches(RANGE(3).batch(2), 4, batched=True)))


@pytest.mark.parametrize("shuffle", [False, True])
def test_too_few_rows_of_unknown_size(shuffle):
    batched = unknown(RANGE(3).batch(2))
    for source in (unknown(RANGE(3)), batched):
        with pytest.raises(ValueError, match="`batch_size`.*4.*: 3 rows"):
            full_batches(source, 4, shuffle=shuffle, batched=source is batched)


def test_data_without_an_end():
    dataset = full_batches(RANGE(3).repeat(), 4)
    (batch,) = epoch(dataset.take(1))
    assert batch.tolist() == [0, 1, 2, 0]


@pytest.mark.once
def test_batches_that_pass_for_rows(caplog):
    rows = tf.data.Dataset.from_tensor_slices(
        {"user": np.arange(64), "item": np.arange(64)}
    )
    # 4 batches of 16: too few "rows".
    with pytest.raises(ValueError, match="batch of 16 rows.*`batched=True`"):
        full_batches(rows.batch(16, drop_remainder=True), 32)
    # Enough of them, but vectors of ids.
    caplog.clear()
    full_batches(rows.batch(16, drop_remainder=True), 2)
    (message,) = caplog.messages
    assert "batch of 16 rows" in message and "`batched=True`" in message
    # The number of rows is not declared: enough batches, but no rows.
    with pytest.raises(ValueError, match="look like batches.*`batched=True`"):
        full_batches(rows.batch(16), 2)
    # Rows that are vectors stay rows, and get no hint.
    vectors = tf.data.Dataset.from_tensor_slices(np.ones((3, 8), "float32"))
    caplog.clear()
    both = tf.data.Dataset.zip((vectors.take(2), vectors.take(2)))
    assert len(epoch(full_batches(both, 2))) == 1
    assert not caplog.messages
    with pytest.raises(ValueError) as caught:
        full_batches(RANGE(3), 4)
    assert "batched=True" not in str(caught.value)


def test_ragged_rows_are_refused():
    ragged = tf.data.Dataset.from_tensor_slices(
        {"tags": tf.ragged.constant([[1], [2, 3]])}
    )
    with pytest.raises(TypeError, match=r"data\['tags'\].*Ragged.*Pad"):
        full_batches(ragged, 2)


UNEQUAL = r"`data\[.*tags.*\]` holds rows of unequal length\. Pad .*`columns=`"


def tags(lengths, batch=None):
    """Rows, or batches, whose static shape does not say how long they are."""
    spec = {"id": tf.TensorSpec((), tf.int64)}
    spec["tags"] = tf.TensorSpec((None,), tf.int64)

    def rows():
        for row, length in enumerate(lengths):
            yield {"id": row, "tags": np.full(length, row)}

    dataset = tf.data.Dataset.from_generator(rows, output_signature=spec)
    return dataset.padded_batch(batch) if batch else dataset


@pytest.mark.once
@pytest.mark.parametrize(
    "batched, remainder", [(False, "drop"), (False, "pad"), (True, "drop")]
)
def test_rows_of_unknown_length(batched, remainder):
    def full(*lengths, size=4, **arguments):
        return full_batches(
            tags(lengths, 2 if batched else None),
            size,
            batched=batched,
            remainder=remainder,
            **arguments,
        )

    for shuffle in (False, True):
        unequal = (3, 3, 2, 2)
        with pytest.raises(tf.errors.InvalidArgumentError, match=UNEQUAL):
            epoch(full(*unequal, shuffle=shuffle))
        for batch in epoch(full(3, 3, 3, 3, shuffle=shuffle)):
            x = batch[0] if remainder == "pad" else batch
            np.testing.assert_array_equal(x["tags"], np.c_[[x["id"]] * 3].T)
    # Every batch may have a length of its own.
    batches = epoch(full(3, 3, 2, 2, size=2))
    batches = [b[0] if remainder == "pad" else b for b in batches]
    assert [batch["tags"].shape for batch in batches] == [(2, 3), (2, 2)]


@pytest.mark.parametrize("remainder", ["drop", "pad"])
@pytest.mark.parametrize("known", [True, False])
def test_no_label_stays(known, remainder):
    rows = RANGE(8).map(lambda row: ({"user": row}, None))
    dataset = full_batches(
        rows if known else unknown(rows), 4, remainder=remainder
    )
    for batch in epoch(dataset):
        assert batch[0]["user"].shape == (4,) and batch[1] is None


@pytest.mark.once
@pytest.mark.parametrize("label", [False, True])
def test_columns(label):
    rows = {"user": np.arange(8), "age": np.arange(8), "item": np.arange(8)}
    dataset = tf.data.Dataset.from_tensor_slices(
        (rows, np.arange(8)) if label else rows
    )
    for data in (dataset, dataset.batch(3)):
        spec = full_batches(
            data, 4, columns=["item", "user"], batched=data is not dataset
        ).element_spec
        spec = spec[0] if label else spec
        assert sorted(spec) == ["item", "user"]
    with pytest.raises(ValueError, match=r"\['itm'\]"):
        full_batches(dataset, 4, columns=["itm"])


@pytest.mark.parametrize("source", [RANGE(11), unknown(RANGE(11))])
def test_it_logs_once_what_is_left_out(source, caplog):
    with caplog.at_level(logging.INFO, "inbatch_neg"):
        dataset = full_batches(source, 4)
        for _ in range(2):
            epoch(dataset)
    (message,) = caplog.messages
    assert "last 3 of 11 rows" in message


@pytest.mark.parametrize("known", [True, False])
def test_fit(known):
    ids = {"user": np.arange(20), "item": np.arange(20)[::-1].copy()}
    rows = tf.data.Dataset.from_tensor_slices(ids)
    rows = rows if known else unknown(rows)
    dataset = full_batches(rows, 8, shuffle=True, seed=1)
    reading.assert_static(dataset, 8)
    model = reading.two_towers()
    model.fit(dataset, epochs=3, verbose=0, shuffle=False)
    # On TensorFlow, Keras also counts the attempt that finds an unknown end.
    assert reading.steps_of(model) in ((6,) if known else (6, 9))


@pytest.mark.parametrize("known", [True, False])
def test_a_tuple_of_one_tuple_is_two_inputs(known):
    rows = RANGE(6).map(lambda row: ((row, 2 * row),))
    rows = rows if known else unknown(rows)
    padded = epoch(full_batches(rows, 4, remainder="pad"))
    for (a, b, mask), y, weight in padded:
        np.testing.assert_array_equal(b, 2 * a)
        assert y is None and mask.tolist() == (weight == 1).tolist()
    assert padded[1][0][0].tolist() == [4, 5, 5, 5]
    for batch in epoch(full_batches(rows, 4)):
        assert len(batch) == 1 and len(batch[0]) == 2


def test_padded_data_of_unknown_size_without_rows():
    with pytest.raises(ValueError, match="`data` must have rows.*: 0 rows"):
        full_batches(unknown(RANGE(0)), 4, remainder="pad")

"""Sources of batches of any size: PyDatasets, generators, iterables."""

import logging
import pickle
import threading
import time
import warnings

import keras
import numpy as np
import pandas
import pytest

import inbatch_neg
from inbatch_neg import full_batches
from inbatch_neg.data import stream
from tests.data import reading
from tests.data.reading import BACKEND, column, epoch

ROWS = 20


def batch_of(start, end):
    ids = np.arange(start, end)
    return {"user": ids, "item": ids[::-1].copy()}


class Batches(keras.utils.PyDataset):
    """20 rows in batches of 3, the last one of 2."""

    def __init__(self, size=3, **arguments):
        super().__init__(**arguments)
        self.size = size
        self.threads = set()
        self.epochs = []

    def __len__(self):
        return -(-ROWS // self.size)

    def __getitem__(self, index):
        self.threads.add(threading.get_ident())
        time.sleep(0.001)  # so that one thread cannot do it all
        start = self.size * index
        return batch_of(start, min(start + self.size, ROWS))

    def on_epoch_begin(self):
        self.epochs.append("begin")

    def on_epoch_end(self):
        self.epochs.append("end")


class Endless(keras.utils.PyDataset):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return batch_of(3 * index % 30, 3 * index % 30 + 3)


def function():
    data = Batches()  # which Keras 3.5 does not end
    yield from (data[index] for index in range(len(data)))


class Iterable:
    def __iter__(self):
        return function()


SOURCES = {
    "PyDataset": Batches,
    "threads": lambda: Batches(workers=2),
    "full PyDataset": lambda: Batches(size=8),
    "function": lambda: function,
    "lambda": lambda: lambda: function(),
    "iterable": Iterable,
    "list": lambda: list(function()),
    "frames": lambda: [pandas.DataFrame(b) for b in function()],
    "tuples": lambda: [(b,) for b in function()],
    "lists": lambda: [[b, None] for b in function()],
}


@pytest.mark.parametrize("kind", SOURCES)
def test_regrouped_by_row(kind):
    dataset = full_batches(SOURCES[kind](), 8, batched=True)
    for _ in range(2):
        batches = epoch(dataset)
        assert len(batches) == 2
        assert column(batches, "user").tolist() == list(range(16))
        # Rows stay together.
        expected = np.concatenate([b["item"] for b in SOURCES["list"]()])
        if kind != "full PyDataset":
            np.testing.assert_array_equal(
                column(batches, "item"), expected[:16]
            )


@pytest.mark.parametrize("kind", SOURCES)
def test_fit(kind):
    """Also on TensorFlow, where Keras alone would lose the batch size."""
    dataset = full_batches(SOURCES[kind](), 8, batched=True)
    reading.check_fit(dataset, batches=2)
    if BACKEND != "tensorflow":
        assert len(dataset) == 2


@pytest.mark.parametrize("kind", SOURCES)
def test_shuffled_by_row(kind):
    def epochs(seed):
        dataset = full_batches(
            SOURCES[kind](), 4, shuffle=True, seed=seed, batched=True
        )
        orders = [column(epoch(dataset), "user").tolist() for _ in range(2)]
        for order in orders:
            assert sorted(order) == list(range(ROWS))
        return orders

    first = epochs(1)
    assert first[0] != first[1]
    assert first == epochs(1)
    assert first != epochs(2)


def test_a_small_buffer_loses_no_row(monkeypatch):
    monkeypatch.setattr(stream, "SHUFFLE_BUFFER", 7)
    for size in (1, 3, 8, 20):
        dataset = full_batches(
            Batches(size), 4, shuffle=True, seed=1, batched=True
        )
        batches = epoch(dataset)
        order = column(batches, "user").tolist()
        assert sorted(order) == list(range(ROWS)) and order != sorted(order)
        if size == 20:  # one chunk: its rows stay together
            np.testing.assert_array_equal(
                column(batches, "item"), 19 - np.array(order)
            )


def test_what_the_source_hears():
    source = Batches(workers=3)
    dataset = full_batches(source, 4, batched=True)
    epoch(dataset)
    assert source.epochs == ["begin", "end"]
    assert len(source.threads) > 1
    assert threading.get_ident() not in source.threads


def test_processes():
    source = Batches(workers=2, use_multiprocessing=True)
    dataset = full_batches(source, 8, batched=True)
    for _ in range(2):
        batches = epoch(dataset)
        assert column(batches, "user").tolist() == list(range(16))
    assert not source.threads  # nothing was read here


def test_batched_is_required():
    for source in (Batches(), function, function(), iter([1])):
        with pytest.raises(TypeError, match="`data`.*`batched=True`"):
            full_batches(source, 8)


def test_too_few_rows():
    for source in (Batches(), function, function()):
        with pytest.raises(ValueError, match="`batch_size`.*24.*: 20 rows"):
            epoch(full_batches(source, 24, batched=True))
    for source in ([], iter([])):
        with pytest.raises(ValueError, match="`batch_size`.*8.*: 0 rows"):
            epoch(full_batches(source, 8, batched=True))


def test_it_logs_once_what_is_left_out(caplog):
    with caplog.at_level(logging.INFO, "inbatch_neg"):
        dataset = full_batches(Batches(), 8, batched=True)
        for _ in range(2):
            epoch(dataset)
        if BACKEND != "tensorflow":
            len(dataset)
    (message,) = caplog.messages
    assert "last 4 of 20 rows" in message


BAD = {
    "columns": ([{"a": [1]}, {"b": [1]}], "same columns"),
    "dtype": ([{"a": [1, 2]}, {"a": [1.5]}], r"data\['a'\].*int64.*float64"),
    "shape": ([{"a": [[1]]}, {"a": [[1, 2]]}], r"data\['a'\].*Pad"),
    "rows": (
        [{"a": [1, 2], "b": [1]}],
        r"same number of rows.*\['a'\]: 2.*\['b'\]: 1",
    ),
    "scalar": ([{"a": np.int64(1)}], r"data\['a'\], a scalar"),
    "row": ([{"a": 1}], r"batch them first.*data\['a'\], a scalar"),
    "number": (range(5), "batch them first.*data, a scalar"),
    "missing": ([{"a": [1, None]}], r"data\['a'\].*missing values"),
}


@pytest.mark.parametrize("kind", BAD)
def test_batches_that_do_not_fit(kind):
    batches, words = BAD[kind]
    # On TensorFlow an error after the first batch becomes one of tf.data.
    with pytest.raises(Exception, match=words):
        epoch(full_batches(batches, 2, batched=True))


def test_columns():
    dataset = full_batches(Batches(), 8, batched=True, columns=["item"])
    assert [list(batch) for batch in epoch(dataset)] == [["item"]] * 2
    with pytest.raises(ValueError, match=r"\['itm'\]"):
        epoch(full_batches(Batches(), 8, batched=True, columns=["itm"]))


def test_a_generator_is_read_once():
    dataset = full_batches(function(), 8, batched=True)
    model = reading.two_towers()
    model.fit(dataset, verbose=0, shuffle=False)
    assert reading.steps_of(model) in (2, 3)
    left = full_batches(function(), 8, batched=True)
    assert column(epoch(left), "user").tolist() == list(range(16))
    if BACKEND == "tensorflow":
        with pytest.raises(Exception, match="read to its end.*function"):
            epoch(left)
    else:
        assert epoch(left) == []  # as with every generator


def endless():
    while True:
        yield batch_of(0, 3)
        yield batch_of(3, 7)


@pytest.mark.parametrize("source", [endless, Endless])
def test_endless_data(source):
    dataset = full_batches(source(), 8, batched=True)
    model = reading.two_towers()
    model.fit(dataset, epochs=2, steps_per_epoch=3, shuffle=False, verbose=0)
    assert reading.steps_of(model) == 6
    if source is Endless and BACKEND != "tensorflow":
        with pytest.raises(TypeError, match="never ends"):
            len(dataset)


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("kind", ["PyDataset", "function"])
def test_keras_alone_loses_the_size(kind):
    """Why these come as `tf.data`."""
    model = reading.two_towers()
    data = {
        "PyDataset": Batches(size=4),
        "function": ((b,) for b in Batches(size=4)),
    }[kind]
    with pytest.raises(inbatch_neg.PartialBatchError):
        model.fit(data, verbose=0, shuffle=False)


def batches_of_fit(dataset, **arguments):
    """Returns the first user of every batch that `fit` trains on."""
    seen = []
    model = reading.two_towers()
    original = type(dataset).__getitem__
    try:
        type(dataset).__getitem__ = lambda self, index: (
            seen.append(original(self, index)) or seen[-1]
        )
        model.fit(dataset, verbose=0, **arguments)
    finally:
        type(dataset).__getitem__ = original
    return [int(batch["user"][0]) for batch in seen]


@pytest.mark.backends("jax", "torch")
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_epoch_begins_with_the_first_batch(shuffle):
    """Though Keras reads one before, to build the model."""
    dataset = full_batches(Batches(), 4, batched=True)
    found = batches_of_fit(dataset, epochs=2, shuffle=shuffle)
    assert found[-10:] == [0, 4, 8, 12, 16] * 2


@pytest.mark.backends("jax", "torch")
def test_steps_per_epoch_go_on():
    dataset = full_batches(Batches(), 4, batched=True)
    found = batches_of_fit(dataset, epochs=3, steps_per_epoch=4, shuffle=False)
    # Keras ends an epoch early where the data ends.
    assert found == [0, *(0, 4, 8, 12), 16, *(0, 4, 8, 12)]


def test_a_list_of_batches_is_counted():
    """On TensorFlow, Keras takes no further step then to find the end."""
    data = list(function())
    assert len(full_batches(data, 6, batched=True)) == 3
    dataset = full_batches(data, 6, batched=True, shuffle=True)
    assert len(dataset) == 3
    model = reading.two_towers()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Your input ran out of data")
        model.fit(dataset, epochs=2, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 6


@pytest.mark.backends("jax", "torch")
def test_counting_says_so(caplog, monkeypatch):
    monkeypatch.setattr(stream, "_SECONDS_UNTIL_LOG", -1.0)
    dataset = full_batches(function, 4, batched=True)
    with caplog.at_level(logging.WARNING, "inbatch_neg"):
        assert len(dataset) == 5
    (message,) = caplog.messages
    assert "never ends" in message and "steps_per_epoch" in message


@pytest.mark.backends("jax", "torch")
def test_a_stream_cannot_be_copied():
    dataset = full_batches(Batches(), 4, batched=True)
    with pytest.raises(TypeError, match="sent to another process"):
        pickle.dumps(dataset)


@pytest.mark.backends("jax", "torch")
@pytest.mark.parametrize("steps", [1, 3, 4])
@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_a_pass_after_one_that_stopped_early(steps, remainder):
    """`predict` after `predict(steps=...)`: from the first row again."""
    dataset = full_batches(Batches(), 3, batched=True, remainder=remainder)
    user = keras.Input((), dtype="int32", name="user")
    item = keras.Input((), dtype="int32", name="item")
    mask = keras.Input((), dtype="bool", name="candidate_mask")
    inputs = {"user": user, "item": item}
    if remainder == "pad":
        inputs["candidate_mask"] = mask
    model = keras.Model(inputs, keras.ops.cast(user, "int32"))
    whole = model.predict(dataset, verbose=0).tolist()
    rows = list(range(18)) if remainder == "drop" else [*range(20), 19]
    assert whole == rows
    model.predict(dataset, steps=steps, verbose=0)
    assert model.predict(dataset, verbose=0).tolist() == rows


class StopAfter(keras.callbacks.Callback):
    """Stops `fit` in its fourth step, in one way or another."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            if self.error is not None:
                raise self.error
            self.model.stop_training = True


@pytest.mark.backends("jax", "torch")
@pytest.mark.parametrize(
    "error, shuffle",
    [
        (None, False),
        (None, True),
        (KeyboardInterrupt(), True),
        (ValueError(), False),
    ],
)
def test_every_row_in_the_epoch_after_a_fit_that_stopped(error, shuffle):
    dataset = full_batches(Batches(), 2, shuffle=True, seed=1, batched=True)
    model = reading.two_towers()
    seen = []
    original = type(dataset).__getitem__

    def spy(self, index):
        seen.append(original(self, index)["user"])
        return {"user": seen[-1], "item": seen[-1]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(dataset), "__getitem__", spy)
        for _ in range(3):  # since the order of `fit` is random
            arguments = {"shuffle": shuffle, "verbose": 0}
            stop = StopAfter(error)
            if error is None:
                model.fit(dataset, callbacks=[stop], **arguments)
            else:
                with pytest.raises(type(error)):
                    model.fit(dataset, callbacks=[stop], **arguments)
                model = reading.two_towers()
                model.fit(dataset, steps_per_epoch=1, **arguments)
            seen.clear()
            model.fit(dataset, **arguments)
            rows = np.concatenate(seen[-10:])
            assert sorted(rows.tolist()) == list(range(ROWS))

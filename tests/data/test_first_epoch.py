"""`first_epoch`: training that goes on sees the orders that come next."""

import grain
import keras
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow as tf
from torch.utils import data as torch_data

from inbatch_neg import full_batches
from tests.data import reading
from tests.data.reading import column, epoch

ROWS = {"user": np.arange(20), "item": np.arange(20)[::-1].copy()}
LIST = [{"user": i, "item": 19 - i} for i in range(20)]


class Batches(keras.utils.PyDataset):
    """20 rows in batches of 4."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        part = slice(4 * index, 4 * index + 4)
        return {name: values[part] for name, values in ROWS.items()}


def function():
    data = Batches()
    yield from (data[index] for index in range(5))


class Stream(torch_data.IterableDataset):
    def __iter__(self):
        return iter(LIST)


def parquet(folder):
    pyarrow.parquet.write_table(pyarrow.table(ROWS), folder / "a.parquet")
    return folder


SOURCES = {
    "arrays": lambda folder: ROWS,
    "parquet": parquet,
    "PyDataset": lambda folder: Batches(),
    "function": lambda folder: function,
    "torch": lambda folder: Rows(),
    "torch stream": lambda folder: Stream(),
    "grain": lambda folder: grain.MapDataset.source(LIST),
    "grain stream": lambda folder: grain.MapDataset.source(
        LIST
    ).to_iter_dataset(),
}


class Rows(torch_data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return LIST[index]


def batches_of(kind, folder, size=6, **arguments):
    arguments = {"shuffle": True, "seed": 1, **arguments}
    return full_batches(
        SOURCES[kind](folder),
        size,
        batched=kind in ("PyDataset", "function"),
        **arguments,
    )


@pytest.mark.parametrize("kind", SOURCES)
def test_the_order_starts_there(kind, tmp_path):
    whole = batches_of(kind, tmp_path)
    orders = [column(epoch(whole), "user").tolist() for _ in range(3)]
    for first in (np.int64(1), lambda: 1):
        rest = batches_of(kind, tmp_path, first_epoch=first)
        found = [column(epoch(rest), "user").tolist() for _ in range(2)]
        assert found == orders[1:]


class Epoch(keras.callbacks.Callback):
    """Knows which epoch `fit` trains."""

    number = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.number = epoch


class Stop(keras.callbacks.Callback):
    """Stops in the middle of the second epoch, as a kill would."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == 5:
            raise KeyboardInterrupt


def train(kind, folder, callbacks, backup):
    """Trains as a script that is started, perhaps again."""
    keras.utils.set_random_seed(0)
    model = reading.two_towers()
    begun = Epoch()
    data = folder / "data"
    data.mkdir(exist_ok=True)
    model.fit(
        batches_of(kind, data, first_epoch=lambda: begun.number),
        epochs=4,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.BackupAndRestore(backup), begun, *callbacks],
    )
    return model.get_weights()


@pytest.mark.parametrize("kind", ["arrays", "parquet"])
def test_as_if_never_stopped(kind, tmp_path):
    """`BackupAndRestore` sets the epoch after Keras has looked at the data."""
    whole = train(kind, tmp_path, [], tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        train(kind, tmp_path, [Stop()], tmp_path / "two")
    again = train(kind, tmp_path, [], tmp_path / "two")
    for one, other in zip(whole, again):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.once
def test_data_with_an_order_of_its_own():
    loader = torch_data.DataLoader(Rows(), 6, drop_last=True)
    tensors = tf.data.Dataset.from_tensor_slices(ROWS)
    for data, batched, remedy in (
        (loader, False, "Pass its dataset"),
        (loader, True, "Pass its dataset"),
        (tensors, False, "arrays or as parquet"),
        (function(), True, "generator function"),
    ):
        full_batches(data, 6, batched=batched)
        for first in (2, lambda: 0):
            with pytest.raises(ValueError, match=f"`first_epoch`.*{remedy}"):
                full_batches(data, 6, batched=batched, first_epoch=first)


@pytest.mark.once
def test_other_values():
    for first, error in ((-1, ValueError), (1.0, TypeError), ("1", TypeError)):
        with pytest.raises(error, match="`first_epoch`.*Received"):
            full_batches(ROWS, 6, first_epoch=first)
    data = full_batches(Batches(), 6, batched=True, shuffle=True)
    assert len(epoch(data)) == 3
    with pytest.raises(TypeError, match="`first_epoch`.*Received"):
        epoch(
            full_batches(
                Batches(),
                6,
                batched=True,
                shuffle=True,
                first_epoch=lambda: "a",
            )
        )

"""PyTorch's datasets and loaders."""

import _thread
import logging
import threading

import numpy as np
import pytest
import torch
from torch.utils import data as torch_data

from inbatch_neg import full_batches
from inbatch_neg.data import stream
from inbatch_neg.data import torch as source
from tests.data import reading
from tests.data.reading import BACKEND, column, epoch

ROWS = 20


class Rows(torch_data.Dataset):
    """Rows of random access: a dict each."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        if not 0 <= index < ROWS:
            raise IndexError
        return {"user": index, "item": ROWS - 1 - index}


class Stream(torch_data.IterableDataset):
    """The same rows, in order."""

    def __iter__(self):
        yield from Rows()


class Pairs(Rows):
    """A tuple each: `(x, y)`."""

    def __getitem__(self, index):
        return super().__getitem__(index), float(index)


DATASETS = {"map": Rows, "iterable": Stream, "pairs": Pairs}


@pytest.mark.parametrize("kind", DATASETS)
def test_datasets(kind):
    dataset = full_batches(DATASETS[kind](), 8)
    for _ in range(2):
        batches = epoch(dataset)
        assert column(batches, "user").tolist() == list(range(16))
        assert column(batches, "item").tolist() == list(range(19, 3, -1))
    if kind != "iterable":
        assert len(dataset) == 2
    if BACKEND == "tensorflow":
        reading.assert_static(dataset, 8)
    else:
        assert isinstance(dataset, torch_data.DataLoader)
        for batch in dataset:
            assert isinstance(batch, tuple)
            assert isinstance(batch[0]["user"], torch.Tensor)


class Sized(Stream):
    def __len__(self):
        return ROWS


def test_an_iterable_dataset_with_a_length():
    for data in (Sized(), loader(Sized())):
        assert len(full_batches(data, 8)) == 2


@pytest.mark.parametrize("kind", DATASETS)
def test_fit(kind):
    dataset = full_batches(DATASETS[kind](), 8, shuffle=True, seed=1)
    reading.check_fit(dataset, batches=2)


@pytest.mark.parametrize("kind", DATASETS)
def test_shuffled_with_the_seed(kind, monkeypatch):
    monkeypatch.setattr(stream, "SHUFFLE_BUFFER", 7)

    def epochs(seed):
        dataset = full_batches(DATASETS[kind](), 4, shuffle=True, seed=seed)
        orders = [column(epoch(dataset), "user").tolist() for _ in range(2)]
        for order in orders:
            assert sorted(order) == list(range(ROWS))
        return orders

    first = epochs(1)
    assert first[0] != first[1]
    assert first == epochs(1)
    assert first != epochs(2)


def test_too_few_rows():
    with pytest.raises(ValueError, match="`batch_size`.*24.*: 20 rows"):
        full_batches(Rows(), 24)
    with pytest.raises(ValueError, match="`batch_size`.*24.*: 20 rows"):
        epoch(full_batches(Stream(), 24))


class Empty(torch_data.Dataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        return {}[index]


def test_no_rows():
    with pytest.raises(ValueError, match="`batch_size`.*8.*: 0 rows"):
        full_batches(Empty(), 8)
    with pytest.raises(ValueError, match="`data` must have rows.*: 0 rows"):
        full_batches(Empty(), 8, remainder="pad")


class InBatches(Rows):
    def __getitem__(self, index):
        return {"user": torch.arange(16), "item": torch.arange(16)}


def test_batches_that_pass_for_rows():
    with pytest.raises(ValueError, match="batch of 16 rows.*`batched=True`"):
        full_batches(InBatches(), 64)


@pytest.mark.parametrize("kind", DATASETS)
def test_it_logs_once_what_is_left_out(kind, caplog):
    with caplog.at_level(logging.INFO, "inbatch_neg"):
        dataset = full_batches(DATASETS[kind](), 8)
        for _ in range(2):
            epoch(dataset)
    (message,) = caplog.messages
    assert "last 4 of 20 rows" in message


@pytest.mark.parametrize("kind", ["map", "pairs"])
def test_columns(kind):
    batches = epoch(full_batches(DATASETS[kind](), 8, columns=["item"]))
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple) else batch
        assert list(x) == ["item"]
    with pytest.raises(ValueError, match=r"\['itm'\]"):
        epoch(full_batches(DATASETS[kind](), 8, columns=["itm"]))


class Ragged(Rows):
    def __getitem__(self, index):
        return {"user": index, "tags": torch.ones(index)}


class Names(Rows):
    def __getitem__(self, index):
        return {"user": index, "day": np.datetime64("2020-01-01")}


@pytest.mark.parametrize("rows, name", [(Ragged, "tags"), (Names, "day")])
def test_rows_that_cannot_be_joined(rows, name):
    with pytest.raises(ValueError, match=rf"data\['{name}'\].*Pad"):
        epoch(full_batches(rows(), 8))


def loader(dataset=None, size=8, **arguments):
    arguments = {"drop_last": True, **arguments}
    return torch_data.DataLoader(
        Rows() if dataset is None else dataset, size, **arguments
    )


@pytest.mark.parametrize(
    "kind, workers", [("map", 0), ("map", 2), ("iterable", 0), ("pairs", 0)]
)
def test_a_full_loader(kind, workers):
    data = loader(DATASETS[kind](), num_workers=workers)
    dataset = full_batches(data, 8)
    if BACKEND == "torch":
        # An iterable dataset may have too few rows, which nobody knows yet.
        assert (dataset is data) == (kind != "iterable")
    batches = epoch(dataset)
    assert column(batches, "user").tolist() == list(range(16))
    reading.check_fit(dataset, batches=2)


LOADERS = {
    "size": ({"size": 4}, {}, "`batch_size=8`.*batched=True"),
    "partial": ({"drop_last": False}, {}, "`drop_last=True`"),
    "no size": ({"size": None, "drop_last": False}, {}, "batched=True"),
    "few": ({"dataset": torch_data.Subset(Rows(), [1])}, {}, ": 1 rows"),
    "shuffle": ({}, {"shuffle": True}, "`shuffle=True`"),
    "pad": ({}, {"remainder": "pad"}, "`drop_last=False`"),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_loaders_that_are_not_full(kind):
    arguments, options, words = LOADERS[kind]
    with pytest.raises(ValueError, match=words):
        full_batches(loader(**arguments), 8, **options)


def test_a_loader_is_regrouped():
    data = loader(size=3, drop_last=False)
    batches = epoch(full_batches(data, 8, batched=True))
    assert column(batches, "user").tolist() == list(range(16))


class Workers(Rows):
    """Says which worker has read a row; -1 is the process itself."""

    def __getitem__(self, index):
        worker = torch_data.get_worker_info()
        return {"user": index, "worker": worker.id if worker else -1}


@pytest.mark.parametrize("options", [{}, {"columns": ["worker"]}])
def test_the_workers_of_a_loader(options):
    batches = epoch(
        full_batches(loader(Workers(), num_workers=2), 8, **options)
    )
    assert column(batches, "worker").tolist() == [0] * 8 + [1] * 8


def test_columns_of_a_loader():
    data = loader()
    batches = epoch(full_batches(data, 8, columns=["item"]))
    names = [
        list(batch[0] if isinstance(batch, tuple) else batch)
        for batch in batches
    ]
    assert names == [["item"]] * 2
    assert sorted(next(iter(data))) == ["item", "user"]  # not the same one


@pytest.mark.parametrize("kind", ["map", "iterable", "loader"])
def test_padded(kind):
    if kind == "loader":
        data = loader(drop_last=False)
    else:
        data = DATASETS[kind]()
    dataset = full_batches(data, 8, remainder="pad")
    batches = epoch(dataset)
    assert len(batches) == 3
    x, y, weight = batches[2]
    assert x["user"].tolist() == [16, 17, 18, 19, 19, 19, 19, 19]
    assert y is None and weight.tolist() == [1] * 4 + [0] * 4
    assert x["candidate_mask"].tolist() == [True] * 4 + [False] * 4
    model = reading.two_towers(mask=True)
    assert np.isfinite(model.evaluate(dataset, verbose=0))


def test_workers_end_well_in_a_thread_of_another_library():
    """PyTorch takes the exit code 1 of a worker for a crash."""
    codes, done = [], threading.Event()

    def read():
        threading.current_thread()  # Python gets to know the thread
        batches = source._opened(loader(num_workers=2))
        workers = batches._workers
        codes.append(len(list(batches)))
        for worker in workers:
            worker.join()
            codes.append(worker.exitcode)
        done.set()

    _thread.start_new_thread(read, ())
    assert done.wait(60)
    assert codes == [2, 0, 0]


class Share(torch_data.IterableDataset):
    """14 rows; each worker has its share."""

    def __iter__(self):
        worker = torch_data.get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for row in range(start, 14, step):
            yield {"user": row, "item": row}


@pytest.mark.parametrize("size, workers", [(16, 0), (8, 2)])
def test_a_loader_without_a_full_batch(size, workers):
    data = loader(Share(), size, num_workers=workers)
    words = "`batch_size`.*otherwise.*empty"
    if workers:
        words += ".*num_workers=2, and each worker makes batches of its own"
    with pytest.raises(ValueError, match=words):
        epoch(full_batches(data, size))
    if not workers:
        assert len(epoch(full_batches(loader(Share(), 7), 7))) == 2


class WithoutLength(torch_data.Dataset):
    def __getitem__(self, index):
        return index


class SamplerWithoutLength(torch_data.Sampler):
    def __iter__(self):
        return iter(range(ROWS))


def test_without_a_length():
    with pytest.raises(TypeError, match="`data` must have a length.*__len__"):
        full_batches(WithoutLength(), 8)
    with pytest.raises(TypeError, match="sampler.*must have a length"):
        full_batches(loader(sampler=SamplerWithoutLength()), 8)


class LacksAKey(Rows):
    def __getitem__(self, index):
        row = {"user": index, "item": index}
        return row if index < 5 else {"user": index}


def test_a_row_that_lacks_a_key():
    with pytest.raises(ValueError, match=r"\['user', 'item'\].*\['user'\]"):
        epoch(full_batches(LacksAKey(), 8))


class RaggedInputs(Rows):
    def __getitem__(self, index):
        return {"user": index, "tags": torch.ones(index)}, 1.0


def test_a_nested_column_is_named_in_full():
    with pytest.raises(ValueError, match=r"`data\[0\]\['tags'\]`"):
        epoch(full_batches(RaggedInputs(), 8))


class TwoInputs(Rows):
    def __getitem__(self, index):
        return ((index, 2 * index),)


def test_a_tuple_of_one_tuple_is_two_inputs():
    for data in (TwoInputs(), loader(TwoInputs(), drop_last=False)):
        batches = epoch(full_batches(data, 8, remainder="pad"))
        for (a, b, _mask), y, _weight in batches:
            np.testing.assert_array_equal(b, 2 * a)
            assert y is None
        assert batches[2][0][2].tolist() == [True] * 4 + [False] * 4


class Strings(Rows):
    def __getitem__(self, index):
        return {"user": index, "name": "a"}


def test_strings():
    if BACKEND == "tensorflow":
        batches = epoch(full_batches(Strings(), 8))
        assert column(batches, "name").tolist() == [b"a"] * 16
    else:
        with pytest.raises(TypeError, match=r"data\['name'\].*strings"):
            epoch(full_batches(Strings(), 8))

"""Datasets of grain as a source, and as the result on JAX and PyTorch."""

import itertools
from collections.abc import Iterator
from typing import Any

import grain

from inbatch_neg.data.options import Options, hint_of_rows
from inbatch_neg.data.stream import Stream


def from_dataset(
    dataset: grain.MapDataset | grain.IterDataset, options: Options
) -> Stream:
    """Returns the stream of a dataset of rows.

    grain shuffles a `MapDataset` as a whole, without a list of its rows.

    Raises:
        ValueError: if it is known to have fewer rows than a batch.
    """
    random_access = isinstance(dataset, grain.MapDataset)

    def open_epoch(number: int | None, rng: Any) -> Iterator[Any]:
        del number
        source = dataset
        if random_access:
            if rng is not None:
                source = source.shuffle(int(rng.integers(2**32)))
            source = source.to_iter_dataset()
        return iter(source.batch(options.batch_size))

    return Stream(
        open_epoch,
        options,
        len(dataset) if random_access else None,
        random_access=random_access,
        hint=lambda: hint_of_rows(dataset),
    )


def as_dataset(stream: Stream) -> grain.IterDataset:
    """Returns the batches of a stream as grain's, for `fit`."""
    return _Batches(stream) if stream.rows is None else _Counted(stream)


class _Batches(grain.IterDataset):
    """The batches of a stream; each iteration is the next epoch."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._epochs = itertools.count()

    def __iter__(self) -> grain.DatasetIterator:
        return _Iterator(self._stream, next(self._epochs))


class _Counted(_Batches):
    def __len__(self) -> int:
        return self._stream.count()


class _Iterator(grain.DatasetIterator):
    """The batches of an epoch.

    A position is restored by reading the epoch up to it.
    """

    def __init__(self, stream: Stream, epoch: int) -> None:
        super().__init__()
        self._stream = stream
        self.set_state({"epoch": epoch, "read": 0})

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._read += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position of the iterator."""
        return {"epoch": self._epoch, "read": self._read}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a position from `get_state`."""
        self._epoch, self._read = state["epoch"], state["read"]
        epoch = self._stream.epoch(self._epoch)
        self._batches = itertools.islice(epoch, self._read, None)

"""Datasets of grain as a source."""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from grain import experimental

from inbatch_neg.data import nests
from inbatch_neg.data.options import SHUFFLE_BUFFER, Options, batch_hint
from inbatch_neg.data.padding import padded
from inbatch_neg.data.stream import Stream


def from_map_dataset(
    dataset: grain.MapDataset, options: Options
) -> grain.MapDataset | grain.IterDataset:
    """Returns the rows in full batches; as an `IterDataset` if shuffled.

    Raises:
        ValueError: if there are fewer rows than a batch.
    """
    few = 0 < len(dataset) < options.batch_size
    options.check_rows(len(dataset), _hint(dataset[0]) if few else "")
    if options.shuffle:
        return _Epochs(dataset, options)
    return _batched(dataset, options)


def from_iter_dataset(
    dataset: grain.IterDataset, options: Options
) -> grain.IterDataset:
    """Returns the rows in full batches.

    The first iteration raises a `ValueError` if there are too few rows.
    """
    return _Epochs(dataset, options)


def as_stream(dataset: Any, options: Options, rows: int | None) -> Stream:
    """Returns the stream of a dataset of full batches."""

    def open_epoch(number: int | None, rng: Any) -> Iterator[Any]:
        del number, rng
        return iter(dataset)

    plain = options._replace(shuffle=False, columns=None, pad=False)
    if rows is not None:
        rows = options.num_batches(rows) * options.batch_size
    return Stream(open_epoch, plain, rows)


def _hint(row: Any) -> str:
    leaves = nests.leaves(nests.as_nest(row))
    return batch_hint([getattr(leaf, "shape", ()) for leaf in leaves])


def _batched(dataset: Any, options: Options) -> Any:
    dataset = dataset.batch(
        options.batch_size,
        drop_remainder=not options.pad
        and isinstance(dataset, grain.MapDataset),
    )
    if options.columns or options.pad:
        dataset = dataset.map(_Finish(options))
    return dataset


class _Finish(grain.transforms.Map):
    """Selects a batch's columns, and pads it."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def map(self, element: Any) -> Any:
        batch = nests.select(nests.as_nest(element), self._options.columns)
        if self._options.pad:
            rows = len(nests.leaves(batch)[0])
            return padded(batch, rows, self._options.batch_size)
        return batch


class _Epochs(grain.IterDataset):
    """Full batches; if shuffled, in a different order in every iteration.

    Args:
        dataset: Rows, with random access or not.
        options: The `Options`.
    """

    def __init__(self, dataset: Any, options: Options) -> None:
        super().__init__()
        self._dataset = dataset
        self._options = options
        self._first_seed = options.order_seed()
        self._epoch = 0
        self.logged = isinstance(dataset, grain.MapDataset)

    def __iter__(self) -> grain.DatasetIterator:
        dataset = self._dataset
        if self._options.shuffle:
            # NumPy mixes seed and epoch, so that neighbouring seeds do not
            # share the order of an epoch.
            mixed = np.random.SeedSequence((self._first_seed, self._epoch))
            seed = int(mixed.generate_state(1)[0])
            self._epoch += 1
            if isinstance(dataset, grain.MapDataset):
                dataset = dataset.shuffle(seed)
            else:
                dataset = experimental.WindowShuffleIterDataset(
                    dataset, window_size=SHUFFLE_BUFFER, seed=seed
                )
        if isinstance(dataset, grain.MapDataset):
            dataset = dataset.to_iter_dataset()
        batches = _batched(dataset, self._options)
        return _FullBatches(iter(batches), self._options, self)


class _FullBatches(grain.DatasetIterator):
    """Leaves out the partial batch, logs it once, and refuses too few rows.

    Args:
        batches: Iterator over all batches.
        options: The `Options`.
        owner: The dataset, which records whether it was logged.
    """

    def __init__(
        self, batches: grain.DatasetIterator, options: Options, owner: _Epochs
    ) -> None:
        super().__init__(batches)
        self._batches = batches
        self._options = options
        self._owner = owner
        self._read = 0

    def __next__(self) -> Any:
        try:
            batch = next(self._batches)
        except StopIteration:
            self._end(0)
            raise
        rows = len(nests.leaves(batch)[0])
        if rows < self._options.batch_size:
            self._end(rows)
            raise StopIteration
        self._read += 1
        return batch

    def _end(self, rest: int) -> None:
        options = self._options
        if not self._read:
            options.refuse_too_few(f"{rest} rows")
        if not self._owner.logged:
            self._owner.logged = True
            options.log_left_out(self._read * options.batch_size + rest)

    def get_state(self) -> dict[str, Any]:
        """Returns the position of the iterator."""
        return {"batches": self._batches.get_state(), "read": self._read}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a position from `get_state`."""
        self._batches.set_state(state["batches"])
        self._read = state["read"]

"""Rows in memory: the same order on all backends, batches by index."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from inbatch_neg.data import columns, nests
from inbatch_neg.data.one_reader import OneReader
from inbatch_neg.data.options import Options
from inbatch_neg.data.padding import padded


class Rows:
    """A nest of arrays with the same number of rows.

    Args:
        data: Arrays, lists, frames, tables, or a dict or tuple of these.
        names: Columns to keep, or None for all.

    Raises:
        TypeError: for anything else.
        ValueError: if the numbers of rows differ.
    """

    def __init__(self, data: Any, names: tuple[str, ...] | None) -> None:
        nest = nests.select(nests.as_nest(data), names)
        self.arrays = nests.map_leaves(columns.as_array, nest)
        if not nests.leaves(self.arrays):
            raise ValueError(
                f"`data` must have columns. Received: data={data!r}"
            )
        self.rows = nests.number_of_rows(self.arrays, "The arrays in `data`")

    def take(self, places: np.ndarray) -> Any:
        """Returns the nest of the rows with these indices."""
        return nests.map_leaves(
            lambda array, name: np.take(array, places, axis=0), self.arrays
        )

    def between(self, start: int, end: int) -> Any:
        """Returns the nest of the rows from `start` to before `end`."""
        return nests.map_leaves(
            lambda array, name: array[start:end], self.arrays
        )


def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of the rows in an epoch, equal on every backend."""
    # 32 bits, where they suffice, halve the memory traffic.
    dtype = "int32" if rows < 2**31 else "int64"
    places: np.ndarray = np.arange(rows, dtype=dtype)
    np.random.default_rng((seed, epoch)).shuffle(places)
    return places


class ArrayBatches(OneReader):
    """Full batches of rows in memory, for `fit` on JAX and PyTorch.

    If the rows are shuffled, every iteration has a new order, as every epoch
    of `fit` has. Pass `shuffle=False` to `fit`, which would otherwise permute
    the batches too.

    Args:
        rows: The `Rows`.
        options: The `Options`.
    """

    def __init__(self, rows: Rows, options: Options) -> None:
        super().__init__()
        self._rows = rows
        self._options = options
        self._seed = options.order_seed() if options.shuffle else 0
        self._epoch = 0
        self._served = 0
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._options.num_batches(self._rows.rows)

    def __getitem__(self, index: int) -> Any:
        """Returns a batch of the current epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} batches, not {index + 1}")
        self._served += 1
        return self._batch(index, self._epoch)

    def __iter__(self) -> Iterator[Any]:
        epoch = self._epoch
        self._epoch += 1
        for index in range(len(self)):
            yield self._batch(index, epoch)

    def on_epoch_end(self) -> None:
        """Changes to the order of the next epoch, if this one has been read.

        Keras calls this more than once per epoch, and also after it has read
        a single batch to build the model.
        """
        if self._served >= len(self):
            self._epoch += 1
            self._served = 0

    def _batch(self, index: int, epoch: int) -> Any:
        size = self._options.batch_size
        start, end = index * size, min((index + 1) * size, self._rows.rows)
        if self._options.shuffle:
            batch = self._rows.take(self._places(epoch)[start:end])
        else:
            batch = self._rows.between(start, end)
        if self._options.pad:
            batch = padded(batch, end - start, size)
        return batch

    def _places(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            places = permutation(self._rows.rows, self._seed, epoch)
            self._order = epoch, places
        return self._order[1]


def places_of_batches(
    rows: int, options: Options, seed: int, epoch: int
) -> np.ndarray:
    """Returns the row indices of an epoch, (batches, batch_size).

    The last, partial batch is padded with its last row, or left out.
    """
    places = permutation(rows, seed, epoch)
    batches = options.num_batches(rows)
    size = batches * options.batch_size
    if size > rows:
        places = np.pad(places, (0, size - rows), mode="edge")
    return places[:size].reshape(batches, options.batch_size)

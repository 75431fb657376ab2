"""Rows in memory, in the same order on all backends."""

from typing import Any

import numpy as np

from inbatch_neg.data import columns, nests
from inbatch_neg.data.options import Options


class Rows:
    """A nest of arrays with the same number of rows.

    Args:
        data: Arrays, lists, frames, tables, or a dict or tuple of these.
        options: The `Options`.

    Raises:
        TypeError: for anything else.
        ValueError: if the numbers of rows differ, or fill no batch.
    """

    def __init__(self, data: Any, options: Options) -> None:
        self.options = options
        nest = nests.select(nests.as_nest(data), options.columns)
        self.arrays = nests.map_leaves(columns.as_array, nest)
        if not nests.leaves(self.arrays):
            raise ValueError(
                f"`data` must have columns. Received: data={data!r}"
            )
        self.rows = nests.number_of_rows(self.arrays, "The arrays in `data`")
        options.compare(self.rows)
        options.check_rows(self.rows)

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


def permutation(rows: Rows, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of the rows in an epoch, equal on every backend."""
    # 32 bits, where they suffice, halve the memory traffic.
    dtype = "int32" if rows.rows < 2**31 else "int64"
    places: np.ndarray = np.arange(rows.rows, dtype=dtype)
    rows.options.rng(seed, epoch).shuffle(places)
    return places


def places_of_batches(rows: Rows, seed: int, epoch: int) -> np.ndarray:
    """Returns the row indices of this process's epoch, (batches, batch_size).

    The last, partial batch is padded with its last row, or left out.
    """
    places = permutation(rows, seed, epoch)
    options = rows.options
    size = options.num_batches(rows.rows) * options.global_size
    if size > rows.rows:
        places = np.pad(places, (0, size - rows.rows), mode="edge")
    places = places[:size].reshape(-1, options.processes, options.batch_size)
    return places[:, options.process]

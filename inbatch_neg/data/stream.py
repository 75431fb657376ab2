"""Data that is read in order: regrouped into full batches, and shuffled.

A chunk is a nest of arrays that holds some rows. A source yields chunks of any
size, and `Stream` yields batches.
"""

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from inbatch_neg import keras_private
from inbatch_neg.data import columns, nests
from inbatch_neg.data.options import SHUFFLE_BUFFER, Options
from inbatch_neg.data.padding import padded

_logger = logging.getLogger("inbatch_neg")

# Seconds after which a running count of the rows is logged.
_SECONDS_UNTIL_LOG = 10.0


@dataclasses.dataclass
class Stream:
    """Full batches of a source, which is opened anew for every epoch.

    Args:
        open_epoch: Takes the number of the epoch, or None to count the rows,
            and a NumPy generator if the data is shuffled, else None. Returns
            an iterator over chunks.
        options: The `Options`.
        rows: The number of rows, if it is known.
        endless: Whether the source never ends.
        once: Whether the source can be read only once.
        random_access: Whether the source itself yields its rows in random
            order, so that no buffer is needed.
        hint: Returns what to say of the source if it has too few rows.
        dealt: Whether the source yields the rows of this process alone. If
            not, all rows are read, and every global batch is cut.
        left_over: The number of rows that the source deals to no process.

    Raises:
        ValueError: if it is known to have fewer rows than a batch.
    """

    open_epoch: Callable[[int | None, Any], Iterator[Any]]
    options: Options
    rows: int | None = None
    endless: bool = False
    once: bool = False
    random_access: bool = False
    hint: Callable[[], str] = str
    dealt: bool = False
    left_over: int = 0

    def __post_init__(self) -> None:
        shuffle = self.options.shuffle
        self._seed = self.options.order_seed() if shuffle else None
        self._epoch = -1
        self._ended = False  # whether an epoch was read to its end
        self._logged = False
        self.options.compare(self.rows)
        if self.rows is not None:
            self._check(self.rows)

    def num_batches(self) -> int | None:
        """The number of batches in an epoch, or None if it is unknown."""
        return (
            None if self.rows is None else self.options.num_batches(self.rows)
        )

    def next_epoch(self, again: bool = False) -> Iterator[Any]:
        """Returns the batches of the epoch after the last one returned here.

        Args:
            again: Whether to return those of the last one again.
        """
        self._epoch += not again
        return self.epoch(self._epoch)

    def epoch(self, number: int) -> Iterator[Any]:
        """Yields the full batches of an epoch.

        They share no memory with the source, which may use its arrays again.

        Raises:
            ValueError: at the end, if there was no batch.
        """
        with keras_private.restore_model_state:
            yield from self._batches(number)

    def _batches(self, number: int) -> Iterator[Any]:
        rng = None
        if not self._ended:  # what was read before was only a look
            self.options.first_epoch.forget()
        if self._seed is not None:
            rng = self.options.rng(self._seed, number)
        chunks = self._chunks(number, rng)
        if rng is not None and not self.random_access:
            chunks = _shuffled(chunks, rng)
        options = self.options
        rows = 0
        whole = options.batch_size if self.dealt else options.global_size
        for batch, size in _regrouped(chunks, whole):
            rows += size
            if size == whole or options.pad:
                if options.pad:
                    batch = padded(batch, size, whole)
                if whole > options.batch_size:
                    start = options.offset
                    batch = _copied(batch, start, start + options.batch_size)
                yield batch
        if self.dealt:
            rows *= options.processes
        self._ended = True
        self._check(rows)

    def _check(self, rows: int) -> None:
        self.options.check_rows(
            rows, self.hint, not self._logged, self.left_over
        )
        self._logged = True

    def count(self) -> int:
        """Reads the source once, unless its number of rows is known.

        Returns:
            The number of batches.

        Raises:
            ValueError: if there are fewer rows than a batch.
        """
        if self.rows is None:
            self.rows = self._count()
            self._check(self.rows)
        return self.options.num_batches(self.rows)

    def _count(self) -> int:
        start, warned, rows = time.monotonic(), False, 0
        for chunk in self._chunks(None, None):
            rows += _rows_of(chunk)
            if not warned and time.monotonic() - start > _SECONDS_UNTIL_LOG:
                warned = True
                _logger.warning(
                    "full_batches is reading `data` once to count its rows, "
                    "since `fit` must know the number of batches: %d rows so "
                    "far. If it never ends, pass the generator itself, not "
                    "its function, and `steps_per_epoch` to `fit`.",
                    rows,
                )
        return rows

    def _chunks(self, number: int | None, rng: Any) -> Iterator[Any]:
        first = None
        for chunk in self.open_epoch(number, rng):
            chunk = as_chunk(chunk, self.options.columns)
            if not _rows_of(chunk):  # its lists have no length
                continue
            if first is None:
                first = chunk
            else:
                _require_same_form(first, chunk)
            yield chunk


def read_to_end(batches: Iterator[Any], known: int) -> Iterator[Any]:
    """Yields the batches; lets the source end before it yields the last one.

    `fit` stops at the number of batches it knows, and what a source does after
    its last batch would not be done.

    Args:
        batches: Iterator over the batches.
        known: The number of batches, 1 if it is unknown. From this one on, a
            batch is yielded after the next one has been read.
    """
    yield from itertools.islice(batches, known - 1)
    following = list(itertools.islice(batches, 1))
    while following:
        batch = following.pop()
        following += itertools.islice(batches, 1)
        yield batch


def as_chunk(chunk: Any, names: tuple[str, ...] | None) -> Any:
    """Returns a chunk as a nest of checked arrays.

    Args:
        chunk: A batch in any form that `full_batches` takes.
        names: Columns to keep, or None for all.

    Raises:
        ValueError: if its arrays differ in length.
    """
    nest = nests.select(nests.as_nest(chunk), names)
    nests.map_leaves(_refuse_row, nest)
    nest = nests.map_leaves(columns.as_array, nest)
    _rows_of(nest)
    return nest


def _refuse_row(leaf: Any, name: str) -> None:
    scalar = isinstance(leaf, (bool, int, float, str, bytes))
    if scalar or getattr(leaf, "shape", None) == ():
        raise ValueError(
            "With `batched=True`, `data` must yield batches. If it yields "
            "single rows, batch them first, in batches of any size. Received: "
            f"{name}, a scalar"
        )


def _rows_of(chunk: Any) -> int:
    return nests.number_of_rows(chunk, "The arrays of a batch of `data`")


def _require_same_form(first: Any, chunk: Any) -> None:
    """Refuses a batch that cannot be concatenated with the first one."""
    if nests.form(first) != nests.form(chunk):
        raise ValueError(
            "All batches of `data` must have the same columns. Received: "
            f"{nests.form(first)} and {nests.form(chunk)}"
        )

    def compare(one: np.ndarray, other: np.ndarray, name: str) -> None:
        if one.shape[1:] != other.shape[1:]:
            raise ValueError(
                f"`{name}` holds rows of shape {one.shape[1:]} in one batch "
                f"and {other.shape[1:]} in another. Pad them to one shape."
            )
        strings = one.dtype.kind in "OSU" and other.dtype.kind in "OSU"
        if one.dtype != other.dtype and not strings:
            raise ValueError(
                f"`{name}` has dtype {one.dtype} in one batch and "
                f"{other.dtype} in another. Convert it to one dtype. (Missing "
                "values turn integers into floats.)"
            )

    nests.map_leaves(compare, first, chunk)


def _regrouped(
    chunks: Iterator[Any], batch_size: int
) -> Iterator[tuple[Any, int]]:
    """Yields full batches and their size; at the end a partial one, if any."""
    pending: list[Any] = []
    waiting = 0
    for chunk in chunks:
        rows, start = _rows_of(chunk), 0
        while start < rows:
            end = min(start + batch_size - waiting, rows)
            pending.append(_copied(chunk, start, end))
            waiting += end - start
            start = end
            if waiting == batch_size:
                yield _joined(pending), batch_size
                pending, waiting = [], 0
    if waiting:
        yield _joined(pending), waiting


def _shuffled(chunks: Iterator[Any], rng: np.random.Generator) -> Iterator[Any]:
    """Yields the rows in random order, through a buffer.

    The buffer is filled first. After that, each new row replaces a random row
    of the buffer, which is yielded.
    """
    filling: list[Any] = []
    held = 0
    pool: Any = None
    for chunk in chunks:
        if pool is None:
            filling.append(_copied(chunk, 0, _rows_of(chunk)))
            held += _rows_of(chunk)
            if held < SHUFFLE_BUFFER:
                continue
            whole, filling = _joined(filling), []
            pool = _part(whole, 0, SHUFFLE_BUFFER)
            chunk = _part(whole, SHUFFLE_BUFFER, held)
        for start in range(0, _rows_of(chunk), SHUFFLE_BUFFER):
            part = _part(chunk, start, start + SHUFFLE_BUFFER)
            places = rng.choice(SHUFFLE_BUFFER, _rows_of(part), replace=False)
            yield _exchanged(pool, places, part)
    if pool is None and held:
        pool = _joined(filling)
    if pool is not None:
        places = rng.permutation(_rows_of(pool))
        yield nests.map_leaves(lambda leaf, name: leaf[places], pool)


def _exchanged(pool: Any, places: np.ndarray, part: Any) -> Any:
    """Returns the pool's rows at `places`, and replaces them by `part`."""

    def exchange(kept: np.ndarray, new: np.ndarray, name: str) -> np.ndarray:
        taken = kept[places]
        kept[places] = new
        return taken

    return nests.map_leaves(exchange, pool, part)


def _part(chunk: Any, start: int, end: int) -> Any:
    return nests.map_leaves(lambda leaf, name: leaf[start:end], chunk)


def _copied(chunk: Any, start: int, end: int) -> Any:
    """Returns a part that the source does not change, nor keeps in memory."""
    return nests.map_leaves(lambda leaf, name: leaf[start:end].copy(), chunk)


def _joined(chunks: list[Any]) -> Any:
    if len(chunks) == 1:
        return chunks[0]
    return nests.map_leaves(
        lambda *leaves_and_name: np.concatenate(leaves_and_name[:-1]), *chunks
    )

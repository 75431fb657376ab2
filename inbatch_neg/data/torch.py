"""Datasets and loaders of PyTorch as a source."""

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np
import torch
from torch.utils import data as torch_data

from inbatch_neg import keras_private
from inbatch_neg.data import columns, nests
from inbatch_neg.data.options import SHUFFLE_BUFFER, Options, hint_of_row
from inbatch_neg.data.padding import marked
from inbatch_neg.data.stream import Stream, read_to_end
from inbatch_neg.data.training_backend import uses_torch


def from_dataset(
    dataset: torch_data.Dataset, options: Options
) -> torch_data.DataLoader:
    """Returns a loader of full batches over a map-style or iterable dataset.

    Raises:
        ValueError: if it has fewer rows than a batch: at once, or at the end
            of the first iteration of an iterable dataset.
    """
    generator = torch.Generator(device="cpu")
    generator.manual_seed(options.order_seed())
    iterable = isinstance(dataset, torch_data.IterableDataset)
    if iterable:
        dataset = _CheckedRows(dataset, options)
    else:
        rows = _length(dataset, "`data`")
        options.check_rows(rows, lambda: hint_of_row(dataset[0]))
    return torch_data.DataLoader(
        dataset,
        batch_size=options.batch_size,
        shuffle=None if iterable else options.shuffle,
        drop_last=not options.pad,
        generator=generator,
        collate_fn=_Collate(_collate_rows, options),
    )


def from_loader(
    loader: torch_data.DataLoader, options: Options
) -> torch_data.DataLoader:
    """Returns the loader, if it yields full batches of this size.

    The result is a copy if the batches must change: for `columns`, for
    `remainder="pad"`, and on backends other than PyTorch, where Keras takes
    only tuples from a loader. It is a copy, too, if the dataset is iterable, or
    if a sampler or the loader is of a class of the user's: each iteration reads
    them to their end, and raises a `ValueError` if there was no batch.

    Raises:
        ValueError: if its batches have another size, or the last is partial.
    """
    _check_loader(loader, options)
    iterable = isinstance(loader.dataset, torch_data.IterableDataset)
    if not iterable:
        options.check_rows(_length(loader.sampler, "The sampler of `data`"))
    changed = not uses_torch() or options.pad or options.columns
    parts = (loader, loader.sampler, loader.batch_sampler)
    read_on = iterable or any(map(_is_of_the_user, parts))
    if not changed and not read_on:
        return loader
    loader = copy.copy(loader)
    loader._iterator = None  # belongs to the persistent workers
    if changed:
        loader.collate_fn = _Collate(loader.collate_fn, options)
    if read_on:
        _read_to_end(loader, options)
    return loader


def _is_of_the_user(part: Any) -> bool:
    package = type(part).__module__.split(".")[0]
    return package not in ("torch", "torchdata")


def _length(data: Any, what: str) -> int:
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        raise TypeError(
            f"{what} must have a length, which Keras needs: define `__len__`, "
            "or pass an IterableDataset. Received: "
            f"{type(data).__name__}, without `__len__`"
        ) from None


def _read_to_end(loader: torch_data.DataLoader, options: Options) -> None:
    """Makes an iteration of the loader read its source to the end.

    It fails there if it has no batch.
    """
    kind = type(loader)

    class FullBatches(kind):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Any:
            batches = iter(super().__iter__())
            if hasattr(self.dataset, "__len__"):  # where Keras stops at `len`
                batches = read_to_end(batches, max(len(self), 1))
            return self._checked(batches)

        def _checked(self, batches: Iterator[Any]) -> Iterator[Any]:
            empty = True
            for batch in batches:
                empty = False
                yield batch
            if empty:
                received = "a DataLoader without a full batch"
                if self.num_workers:
                    received += (
                        f", with num_workers={self.num_workers}. Each worker "
                        "makes batches of its own rows"
                    )
                options.refuse_too_few(received)

    loader.__class__ = FullBatches


def _check_loader(loader: torch_data.DataLoader, options: Options) -> None:
    """Refuses a loader whose batches differ from what `options` ask for."""
    size = options.batch_size
    received = (
        f"Received: a DataLoader with batch_size={loader.batch_size}, "
        f"drop_last={loader.drop_last}"
    )
    if loader.batch_size is None:
        raise ValueError(
            "`data` is a DataLoader without a batch size. Pass "
            "`batched=True` to regroup its batches. " + received
        )
    if loader.batch_size != size:
        raise ValueError(
            "`batch_size` must be that of the DataLoader: build it with "
            f"`batch_size={size}`, or pass `batched=True` to regroup its "
            f"batches. {received}; batch_size={size}"
        )
    if not options.pad and not loader.drop_last:
        raise ValueError(
            "`data` is a DataLoader whose last batch may be partial: build it "
            f"with `drop_last=True`. {received}"
        )
    if options.pad and loader.drop_last:
        raise ValueError(
            '`remainder="pad"` needs the last batch: build the DataLoader '
            f"with `drop_last=False`. {received}"
        )
    if options.shuffle:
        raise ValueError(
            "`shuffle=True` does not apply to a DataLoader: build it with "
            "`shuffle=True` and a `generator`. " + received
        )


def as_stream(loader: torch_data.DataLoader, options: Options) -> Stream:
    """Returns the stream of a loader whose batches already are full."""

    def open_epoch(number: int | None, rng: Any) -> Iterator[Any]:
        del number, rng
        return _opened(loader)

    # The loader already shuffles, selects columns and pads.
    plain = options._replace(shuffle=False, columns=None, pad=False)
    rows = None
    if not isinstance(loader.dataset, torch_data.IterableDataset):
        rows = len(loader) * options.batch_size
    return Stream(open_epoch, plain, rows)


def _opened(loader: torch_data.DataLoader) -> Iterator[Any]:
    """Returns an iterator whose workers were started in a Python thread.

    tf.data reads in a thread that Python did not start. A process that is
    forked there ends with exit code 1, since `threading` finds no main thread,
    and PyTorch reports a crash.
    """
    if not loader.num_workers:
        return iter(loader)
    opened: futures.Future = futures.Future()

    def open_it() -> None:
        try:
            opened.set_result(iter(loader))
        except BaseException as error:
            opened.set_exception(error)

    thread = threading.Thread(target=open_it)
    thread.start()
    thread.join()
    return opened.result()


class _Collate:
    """Collates rows, selects columns, pads the batch, makes it a tuple.

    An object, not a closure, so that it can be sent to worker processes.
    """

    def __init__(self, collate: Callable[[Any], Any], options: Options) -> None:
        self._collate = collate
        self._options = options

    @keras_private.restore_model_state
    def __call__(self, rows: Any) -> tuple:
        return self._batch(rows)

    def _batch(self, rows: Any) -> tuple:
        batch = nests.as_nest(_with_tuples(self._collate(rows)))
        batch = nests.select(batch, self._options.columns)
        nests.map_leaves(_refuse_strings, batch)
        if self._options.pad:
            return _padded(batch, self._options.batch_size)
        return batch if isinstance(batch, tuple) else (batch,)


def _with_tuples(batch: Any) -> Any:
    """Returns the batch with tuples, of which PyTorch makes lists."""
    if isinstance(batch, dict):
        return {name: _with_tuples(value) for name, value in batch.items()}
    if isinstance(batch, list) and not all(
        isinstance(value, (str, bytes)) for value in batch
    ):
        return tuple(_with_tuples(value) for value in batch)
    return batch


def _refuse_strings(leaf: Any, name: str) -> None:
    if isinstance(leaf, list):
        columns.as_array(leaf, name)


def _padded(batch: Any, batch_size: int) -> tuple:
    rows = len(nests.leaves(batch)[0])
    places = torch.arange(batch_size).clamp(max=rows - 1)
    batch = nests.map_leaves(lambda leaf, name: leaf[places], batch)
    mask = torch.arange(batch_size) < rows
    return marked(batch, mask, mask.float(), torch)


def _collate_rows(rows: list[Any]) -> Any:
    """Collates rows to a batch, or names the column for which it fails."""
    try:
        return torch_data.default_collate(rows)
    except (TypeError, RuntimeError, KeyError) as error:
        name = _column_that_fails(rows, "data")
        raise ValueError(
            f"The rows of `{name}` cannot be collated to a batch. Pad them to "
            "one shape, and encode values that are not numbers. PyTorch's "
            f"error: {error}"
        ) from error


def _column_that_fails(rows: list[Any], name: str) -> str:
    """Returns the full name of the first column that cannot be collated.

    Raises:
        ValueError: if the rows do not have the same columns.
    """
    first = rows[0]
    keys: Any = ()
    if isinstance(first, dict):
        keys = first
        other = next((row for row in rows if set(keys) - set(row)), None)
        if other is not None:
            raise ValueError(
                f"All rows of `{name}` must have the same columns. Received: "
                f"a row with {list(first)} and one with {list(other)}"
            )
    elif isinstance(first, (tuple, list)):
        if len({len(row) for row in rows}) == 1:
            keys = range(len(first))
    for key in keys:
        values = [row[key] for row in rows]
        try:
            torch_data.default_collate(values)
        except (TypeError, RuntimeError, KeyError):
            return _column_that_fails(values, f"{name}[{key!r}]")
    return name


class _CheckedRows(torch_data.IterableDataset):
    """An iterable dataset, shuffled in a buffer; raises if it is too short.

    Args:
        dataset: The dataset of rows.
        options: The `Options`.
    """

    def __init__(self, dataset: torch_data.Dataset, options: Options) -> None:
        super().__init__()
        self._dataset = dataset
        self._options = options
        self._seed = options.order_seed()
        self._epoch = 0
        self._logged = False

    def __iter__(self) -> Iterator[Any]:
        rng = np.random.default_rng((self._seed, self._epoch))
        self._epoch += 1
        source = iter(self._dataset)
        rows = 0
        for row in _shuffled(source, rng) if self._options.shuffle else source:
            rows += 1
            yield row
        options = self._options
        if rows < (1 if options.pad else options.batch_size):
            options.refuse_too_few(f"{rows} rows")
        if not self._logged:
            self._logged = True
            options.log_left_out(rows)


def _shuffled(rows: Iterator[Any], rng: np.random.Generator) -> Iterator[Any]:
    buffer: list[Any] = []
    for row in rows:
        if len(buffer) < SHUFFLE_BUFFER:
            buffer.append(row)
            continue
        place = int(rng.integers(SHUFFLE_BUFFER))
        buffer[place], row = row, buffer[place]
        yield row
    for place in rng.permutation(len(buffer)).tolist():
        yield buffer[place]

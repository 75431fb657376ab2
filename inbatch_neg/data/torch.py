"""PyTorch's datasets and loaders as a source, and a loader as the result."""

import threading
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any

import torch
from torch.utils import data as torch_data

from inbatch_neg.data import nests
from inbatch_neg.data.options import Options, hint_of_rows
from inbatch_neg.data.stream import Stream, read_to_end


def from_dataset(dataset: torch_data.Dataset, options: Options) -> Stream:
    """Returns the stream of the rows of a map-style or iterable dataset.

    Raises:
        ValueError: if it is known to have fewer rows than a batch.
    """
    random_access = not isinstance(dataset, torch_data.IterableDataset)
    rows = None
    if random_access or hasattr(dataset, "__len__"):
        rows = _length(dataset, "`data`")

    def open_epoch(number: int | None, rng: Any) -> Iterator[Any]:
        del number
        order = None
        if random_access and rng is not None:
            order = rng.permutation(rows).tolist()
        return iter(
            torch_data.DataLoader(
                dataset,
                options.batch_size,
                sampler=order,
                collate_fn=_collate,
                generator=_generator(),
            )
        )

    return Stream(
        open_epoch,
        options,
        rows,
        random_access=random_access,
        hint=lambda: hint_of_rows(dataset) if rows != 0 else "",
    )


def from_loader(loader: torch_data.DataLoader, options: Options) -> Stream:
    """Returns the stream of a loader that yields full batches of this size.

    Raises:
        ValueError: if its batches have another size, or the last is partial.
    """
    _check_loader(loader, options)
    rows = None
    if not isinstance(loader.dataset, torch_data.IterableDataset):
        rows = _length(loader.sampler, "The sampler of `data`")
    elif hasattr(loader.dataset, "__len__") and not loader.num_workers:
        rows = _length(loader.dataset, "`data`")

    def open_epoch(number: int | None, rng: Any) -> Iterator[Any]:
        del number, rng
        return map(_with_tuples, _opened(loader))

    def hint() -> str:
        if not loader.num_workers:
            return ""
        return (
            f" The DataLoader has num_workers={loader.num_workers}, and each "
            "worker makes batches of its own rows."
        )

    return Stream(open_epoch, options, rows, hint=hint)


def refuse_order(options: Options) -> None:
    """Refuses what the sampler of a loader decides."""
    options.refuse_first_epoch("a DataLoader", "Pass its dataset.")
    if options.processes > 1:
        raise ValueError(
            "`shard` does not apply to a DataLoader: build it with "
            "`sampler=torch.utils.data.DistributedSampler(dataset, "
            "drop_last=True)`, or pass its dataset. Received: shard="
            f"{(options.process, options.processes)}"
        )


def has_sampler(loader: torch_data.DataLoader) -> bool:
    """Returns whether the loader has a sampler that the user chose."""
    plain = (
        torch_data.RandomSampler,
        torch_data.SequentialSampler,
        torch_data.BatchSampler,
        type(None),
    )
    parts = (loader.sampler, loader.batch_sampler)
    return not all(type(part) in plain for part in parts)


def is_full(loader: torch_data.DataLoader, options: Options) -> bool:
    """Returns whether `fit` on PyTorch can take a checked loader as it is.

    An iterable dataset may have too few rows. A sampler or a loader of a class
    of the user's may have something to do after the last batch.
    """
    parts = (loader, loader.sampler, loader.batch_sampler)
    return not (
        options.pad
        or options.columns
        or isinstance(loader.dataset, torch_data.IterableDataset)
        or any(map(_is_of_the_user, parts))
    )


def as_loader(stream: Stream) -> torch_data.DataLoader:
    """Returns a loader that yields the batches of a stream, as tuples."""
    kind = _Batches if stream.rows is None else _Counted
    return torch_data.DataLoader(
        kind(stream),
        batch_size=None,
        collate_fn=_as_tensors,
        generator=_generator(),
    )


class _Batches(torch_data.IterableDataset):
    """The batches of a stream; each iteration is the next epoch."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def __iter__(self) -> Iterator[Any]:
        # A generator: Keras makes iterators of which it reads nothing.
        known = self._stream.num_batches() or 1
        yield from read_to_end(self._stream.next_epoch(), known)


class _Counted(_Batches):
    def __len__(self) -> int:
        return self._stream.count()


def _as_tensors(batch: Any) -> tuple:
    """Returns a tuple: on JAX, Keras takes only these from a loader."""
    batch = nests.map_leaves(lambda leaf, name: torch.as_tensor(leaf), batch)
    return batch if isinstance(batch, tuple) else (batch,)


def _generator() -> torch.Generator:
    """Returns a generator, or a loader would draw from PyTorch's own."""
    return torch.Generator(device="cpu")


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


def _with_tuples(batch: Any) -> Any:
    """Returns the batch with tuples, of which PyTorch makes lists."""
    if isinstance(batch, Mapping):
        return {name: _with_tuples(value) for name, value in batch.items()}
    if isinstance(batch, list) and not all(
        isinstance(value, (str, bytes)) for value in batch
    ):
        return tuple(_with_tuples(value) for value in batch)
    return batch


def _collate(rows: list[Any], name: str = "data") -> Any:
    """Collates rows to a batch as PyTorch does, or names what fails."""
    first = rows[0]
    if isinstance(first, Mapping):
        try:
            return {key: _column(rows, key, name) for key in first}
        except KeyError:
            other = next(row for row in rows if set(first) - set(row))
            raise ValueError(
                f"All rows of `{name}` must have the same columns. Received: "
                f"a row with {list(first)} and one with {list(other)}"
            ) from None
    is_tuple = isinstance(first, (tuple, list)) and not hasattr(
        first, "_fields"
    )
    if is_tuple and len(set(map(len, rows))) == 1:
        return tuple(_column(rows, place, name) for place in range(len(first)))
    try:
        return torch_data.default_collate(rows)
    except (TypeError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"The rows of `{name}` cannot be collated to a batch. Pad them to "
            "one shape, and encode values that are not numbers. PyTorch's "
            f"error: {error}"
        ) from error


def _column(rows: list[Any], key: Any, name: str) -> Any:
    return _collate([row[key] for row in rows], f"{name}[{key!r}]")

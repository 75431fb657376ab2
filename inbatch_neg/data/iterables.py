"""Sources of batches: a `PyDataset`, a generator, any iterable."""

import collections
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

import keras

from inbatch_neg.data import nests
from inbatch_neg.data.options import Options
from inbatch_neg.data.stream import Stream, as_chunk


def from_py_dataset(dataset: keras.utils.PyDataset, options: Options) -> Stream:
    """Returns the stream of a `PyDataset`, read by its own workers.

    A shuffled epoch also reads the batches in random order. The dataset hears
    of the begin and the end of every epoch, but not of the counting.
    """
    if options.processes > 1 and not options.pad:
        return _dealt(dataset, options)
    return Stream(
        _epochs_of(dataset, lambda indices: indices),
        options,
        endless=dataset.num_batches is None,
    )


def _dealt(dataset: keras.utils.PyDataset, options: Options) -> Stream:
    """Returns a stream that reads only the batches of this process.

    All processes read as many full batches, so that all have as many rows.
    """
    batches = dataset.num_batches
    places = slice(options.process, None, options.processes)
    if batches is None:

        def endless(indices: Iterable[int]) -> Iterable[int]:
            return itertools.islice(indices, *places.indices(sys.maxsize))

        return Stream(
            _epochs_of(dataset, endless), options, endless=True, dealt=True
        )
    first, last = (_rows_of(dataset[i], options) for i in (0, batches - 1))
    full = batches - (last != first)
    each = full // options.processes

    def part(indices: Iterable[int]) -> Iterable[int]:
        return [i for i in indices if i < full][places][:each]

    def check(batch: Any) -> Any:
        rows = _rows_of(batch, options)
        if rows != first:
            raise ValueError(
                "With `shard`, all batches of a PyDataset but the last one "
                "must have the same number of rows. Pass the rows themselves, "
                f"or a generator function. Received: {first} and {rows} rows"
            )
        return batch

    read = _epochs_of(dataset, part)
    dealt = each * options.processes
    return Stream(
        lambda number, rng: map(check, read(number, rng)),
        options,
        dealt * first,
        dealt=True,
        left_over=(full - dealt) * first + (last if full < batches else 0),
    )


def _rows_of(batch: Any, options: Options) -> int:
    return nests.number_of_rows(as_chunk(batch, options.columns), "A batch")


def _epochs_of(
    dataset: keras.utils.PyDataset,
    choose: Callable[[Iterable[int]], Iterable[int]],
) -> Callable[[int | None, Any], Iterator[Any]]:
    """Returns `open_epoch` of the chosen ones of the batches of an epoch."""

    def open_epoch(number: int | None, rng: Any) -> Iterator[Any]:
        batches = dataset.num_batches
        indices: Iterable[int]
        if batches is None:
            indices = itertools.count()
        elif rng is None:
            indices = range(batches)
        else:
            indices = rng.permutation(batches).tolist()
        indices = choose(indices)
        if number is None:
            yield from _read(dataset, indices)
            return
        dataset.on_epoch_begin()
        try:
            yield from _read(dataset, indices)
        finally:  # also where `fit` stops early
            dataset.on_epoch_end()

    return open_epoch


def _read(
    dataset: keras.utils.PyDataset, indices: Iterable[int]
) -> Iterator[Any]:
    """Yields the batches in the order of the indices."""
    if dataset.workers <= 1 and not dataset.use_multiprocessing:
        for index in indices:
            yield dataset[index]
        return
    pool: futures.Executor
    read: Callable[[int], Any]
    if dataset.use_multiprocessing:
        pool = futures.ProcessPoolExecutor(
            dataset.workers, initializer=_keep, initargs=(dataset,)
        )
        read = _item_of_kept
    else:
        pool = futures.ThreadPoolExecutor(dataset.workers)
        read = dataset.__getitem__
    try:
        yield from _in_order(pool, read, indices, dataset.max_queue_size)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: futures.Executor,
    read: Callable[[int], Any],
    indices: Iterable[int],
    most: int,
) -> Iterator[Any]:
    """Yields the batches in order, with at most `most` of them in progress."""
    waiting: collections.deque[futures.Future] = collections.deque()
    for index in indices:
        waiting.append(pool.submit(read, index))
        if len(waiting) >= max(most, 1):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_kept: Any = None


def _keep(dataset: Any) -> None:
    """Keeps the dataset in a worker, so that it is sent only once."""
    global _kept
    _kept = dataset


def _item_of_kept(index: int) -> Any:
    return _kept[index]


def from_iterable(data: Any, options: Options) -> Stream:
    """Returns the stream of an iterable of batches.

    Args:
        data: An iterable; or a function that returns one, such as a generator
            function, which is called once per epoch.
        options: The `Options`.
    """

    def open_epoch(number: int | None, rng: Any) -> Iterator[Any]:
        del number, rng
        return iter(data() if callable(data) else data)

    stream = Stream(open_epoch, options)
    if isinstance(data, list):  # in memory, so this reads nothing
        stream.count()
    return stream


def from_iterator(data: Iterator[Any], options: Options) -> Stream:
    """Returns the stream of an iterator, which can be read once."""
    options.refuse_first_epoch(
        "an iterator, which is read once", "Pass the generator function."
    )

    def open_epoch(number: int | None, rng: Any) -> Iterator[Any]:
        del rng
        if number:
            raise ValueError(
                "`data` is an iterator and has been read to its end. For "
                "several epochs, pass the generator function, as in "
                "`full_batches(function, ...)`, or an iterable."
            )
        return data

    return Stream(open_epoch, options, once=True)


def as_generator(stream: Stream) -> Iterator[Any]:
    """Yields a stream's batches once, as tuples.

    Keras takes only tuples from a generator.
    """
    for batch in stream.next_epoch():
        yield batch if isinstance(batch, tuple) else (batch,)

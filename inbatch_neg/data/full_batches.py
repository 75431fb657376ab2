"""`full_batches`: recognises the kind of data and calls its module.

A library is imported only if the data comes from it.
"""

import pathlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras

from inbatch_neg.data import arrays, iterables, nests, options
from inbatch_neg.data.keras_dataset import ArrayBatches, StreamBatches
from inbatch_neg.data.nests import is_instance
from inbatch_neg.data.options import Options
from inbatch_neg.data.training_backend import uses_tensorflow, uses_torch


def full_batches(
    data: Any,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int | None = None,
    batched: bool = False,
    columns: list[str] | tuple[str, ...] | None = None,
    remainder: str = "drop",
    shard: tuple[int, int] | str | None = None,
    first_epoch: int | Callable[[], int] = 0,
) -> Any:
    """Returns a dataset for `fit` in which every batch has `batch_size` rows.

    The rows that do not fill a batch are left out; with `shuffle=True`, these
    are different rows in every epoch. Their number is logged once.
    `docs/data.md` has an example for every kind of data.

    Args:
        data: One of these. Rows in memory: an array, a list of numbers, a
            pandas, polars or Arrow table, a `RecordBatchReader`, a Hugging
            Face `Dataset`, or a mapping or tuple of these, where None stands
            for no label. Other rows: a `tf.data.Dataset`, a PyTorch `Dataset`,
            a grain `MapDataset` or `IterDataset`, a `pyarrow.dataset` or its
            `Scanner`, or a parquet file, a folder or a list of them. Batches:
            a PyTorch `DataLoader` with this batch size; with `batched=True` a
            `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator function,
            a generator or any iterable. As in `fit`, a tuple is `(x, y)` or
            `(x, y, sample_weight)`.
        batch_size: Number of rows of every batch, an integer of 2 or more.
        shuffle: Whether to shuffle the rows, differently in every iteration.
            Rows with random access are shuffled as a whole, others through a
            buffer of 131,072 rows.
        seed: Integer that makes the order of all epochs reproducible. For rows
            in memory, the order is the same on every backend.
        batched: Whether `data` yields batches, which are regrouped by row.
        columns: Names of the columns to keep, of `data` or of the `x` of a
            tuple. Defaults to all.
        remainder: What to do with the rows that do not fill a batch. `"drop"`
            leaves them out. `"pad"` fills the last batch with copies of its
            last row, and every batch becomes `(x, y, sample_weight)`. The
            weights are 0 for copies, and 1 or those of `data` for rows. If
            `x` is a dict, it gets the column `"candidate_mask"`, False for
            copies. If `x` is a tuple of inputs, the mask is appended to it; if
            it is one array, `x` becomes `(x, mask)`.
        shard: The part of this process, if several processes train: a pair
            `(index, count)`, or `"auto"` to ask the library that trains:
            `torch.distributed`, `jax.distributed`, or `TF_CONFIG`. None gives
            all rows to every process. `batch_size` is that of one process, so
            the global batch is `count` times as large. In an epoch, no row
            comes in two processes, and all have the same number of batches.
            With `shuffle=True` it needs a `seed`, the same in every process.
        first_epoch: Number of the epoch whose order comes first, with `seed`,
            for training that goes on: an integer, or a function that is called
            when the first epoch begins, after Keras has restored the model. It
            sets the order that is made here, not one that `data` makes itself.

    Returns:
        On TensorFlow, and for a `tf.data.Dataset` on any backend, a
        `tf.data.Dataset` with a static batch size. On JAX and PyTorch, a
        `DataLoader` for PyTorch's data, a grain `IterDataset` for grain's, a
        generator for a generator, and otherwise a `keras.utils.PyDataset`.

    Raises:
        ValueError: if there are fewer rows than `batch_size`, so that an epoch
            would be empty: at once, or in the first iteration if the number is
            unknown; for arrays of different lengths, missing values, unknown
            `columns`, or a `DataLoader` with another batch size.
        TypeError: for other kinds of data, and for columns that a tensor
            cannot hold, such as dates.

    Example:
    >>> import numpy as np
    >>> pairs = {"user": np.arange(100), "item": np.arange(100)}
    >>> batches = full_batches(pairs, 32, shuffle=True, seed=1)
    >>> len(batches), next(iter(batches))["user"].shape == (32,)
    (3, True)
    """
    chosen = options.checked(
        batch_size,
        shuffle,
        seed,
        batched,
        columns,
        remainder,
        shard,
        first_epoch,
    )
    is_tf_data = is_instance(data, "tensorflow", "data.Dataset")
    _check_processes(data, chosen, shard is None, is_tf_data)
    if is_tf_data:
        from inbatch_neg.data import tensorflow

        return tensorflow.from_dataset(data, chosen, batched)
    if batched:
        return _from_batches(data, chosen)
    if _is_torch(data):
        return _from_torch(data, chosen)
    if is_instance(data, "grain", "MapDataset", "IterDataset"):
        return _from_grain(data, chosen)
    if _are_files(data) or is_instance(
        data, "pyarrow.dataset", "Dataset", "Scanner"
    ):
        return _from_files(data, chosen)
    return _from_memory(data, chosen)


def _check_processes(
    data: Any, chosen: Options, whole: bool, is_tf_data: bool
) -> None:
    """Refuses what a loader's sampler decides; warns if all read all rows.

    A strategy of TensorFlow or JAX deals out a `tf.data.Dataset` itself.
    """
    has_sampler = False
    if is_instance(data, "torch.utils.data", "DataLoader"):
        from inbatch_neg.data import torch

        torch.refuse_order(chosen)
        has_sampler = torch.has_sampler(data)
    dealt_out = uses_tensorflow() or is_tf_data and not uses_torch()
    if whole and not dealt_out and not has_sampler:
        options.warn_of_same_rows()


def _from_memory(data: Any, chosen: Options) -> Any:
    _refuse_batches(data)
    is_list = isinstance(data, list) and data
    if is_list and all(isinstance(row, Mapping) for row in data):
        raise TypeError(
            "`data` is a list of dicts. Pass `pandas.DataFrame(data)` if they "
            "are rows, and `batched=True` if they are batches. Received: a "
            f"list of {len(data)}"
        )
    if nests.is_list_of_columns(data):
        raise TypeError(
            "`data` is a list of arrays, which could be several inputs, or an "
            'input and its labels. Pass a dict, `{"user": users, "item": '
            "items}`, a tuple of inputs, `((users, items),)`, or `(x, y)`. "
            f"Received: a list of {len(data)}"
        )
    return _deliver(arrays.Rows(data, chosen), ArrayBatches)


def _from_files(data: Any, chosen: Options) -> Any:
    try:
        from inbatch_neg.data import parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files need pyarrow: pip install 'inbatch_neg[parquet]'"
        ) from error
    if _are_files(data):
        data = parquet.open_files(data, chosen)
    return _deliver(parquet.from_dataset(data, chosen))


def _from_torch(data: Any, chosen: Options) -> Any:
    from inbatch_neg.data import torch

    if not is_instance(data, "torch.utils.data", "DataLoader"):
        return _deliver(torch.from_dataset(data, chosen), torch.as_loader)
    stream = torch.from_loader(data, chosen)
    if uses_torch() and torch.is_full(data, chosen):
        return data
    return _deliver(stream, torch.as_loader)


def _from_grain(data: Any, chosen: Options) -> Any:
    from inbatch_neg.data import grain

    return _deliver(grain.from_dataset(data, chosen), grain.as_dataset)


def _from_batches(data: Any, chosen: Options) -> Any:
    if isinstance(data, keras.utils.PyDataset):
        return _deliver(iterables.from_py_dataset(data, chosen))
    if _is_rows(data):
        raise TypeError(
            "`batched=True` needs `data` that yields batches: a dataset, a "
            "DataLoader, a generator or an iterable. "
            f"Received: data of type {_kind(data)}"
        )
    if isinstance(data, Iterator):
        stream = iterables.from_iterator(data, chosen)
        return _deliver(stream, iterables.as_generator)
    return _deliver(iterables.from_iterable(data, chosen))


def _is_rows(data: Any) -> bool:
    """Returns whether `data` holds rows, or cannot be read at all."""
    if isinstance(data, (str, bytes, tuple, set)) or nests.is_rows(data):
        return True
    if is_instance(data, "grain", "MapDataset", "IterDataset"):
        return False
    if _is_torch(data):
        return not is_instance(data, "torch.utils.data", "DataLoader")
    return not (isinstance(data, Iterable) or callable(data))


def _is_torch(data: Any) -> bool:
    # Hugging Face's classes derive from PyTorch's if both are installed.
    return is_instance(
        data, "torch.utils.data", "DataLoader", "Dataset"
    ) and not is_instance(data, "datasets", "Dataset", "IterableDataset")


def _refuse_batches(data: Any) -> None:
    """Refuses data that yields batches, or may, without `batched=True`."""
    if is_instance(data, "datasets", "DatasetDict", "IterableDatasetDict"):
        raise TypeError(
            "`data` must be one split of a Hugging Face dataset, such as "
            f"`data[{next(iter(data), 'train')!r}]`. Received: {_kind(data)}"
        )
    is_batches = (
        isinstance(data, (types.FunctionType, types.MethodType))
        or isinstance(data, (keras.utils.PyDataset, Iterator))
        and not is_instance(data, "pyarrow", "RecordBatchReader")
        or is_instance(data, "datasets", "IterableDataset")
        or is_instance(data, "grain", "DataLoader")
    )
    if is_batches:
        raise TypeError(
            f"`data` of type {_kind(data)} is read in batches: pass "
            "`batched=True` for batches of any size. Batch single rows first."
        )


def _deliver(
    source: Any, elsewhere: Callable[[Any], Any] = StreamBatches
) -> Any:
    """Returns what `fit` takes: `tf.data` on TensorFlow, or `elsewhere`.

    Args:
        source: A `Stream`, or `Rows` in memory.
        elsewhere: Called with the source on JAX and PyTorch.
    """
    if uses_tensorflow():
        from inbatch_neg.data import tensorflow

        return tensorflow.deliver(source)
    return elsewhere(source)


def _are_files(data: Any) -> bool:
    """Returns whether `data` is a path, or a list of paths, of parquet files.

    A list of strings is a column, unless all of them end with ".parquet".
    """
    if isinstance(data, (str, pathlib.PurePath)):
        return True
    if not isinstance(data, list) or not data:
        return False
    if all(isinstance(path, pathlib.PurePath) for path in data):
        return True
    return all(
        isinstance(path, str) and path.lower().endswith(".parquet")
        for path in data
    )


def _kind(data: Any) -> str:
    return type(data).__name__

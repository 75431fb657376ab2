"""Parquet files and any `pyarrow.dataset`, also larger than memory."""

import os
from collections.abc import Iterator
from typing import Any

import pyarrow.dataset

from inbatch_neg.data import columns
from inbatch_neg.data.options import Options
from inbatch_neg.data.stream import Stream

# Rows that are read at a time. Together with the short read-ahead, this limits
# the memory.
_CHUNK = 2**16
_AHEAD = {"batch_readahead": 4, "fragment_readahead": 1}


def open_files(data: Any) -> pyarrow.dataset.Dataset:
    """Returns the dataset of a folder, a file or a list of files.

    Raises:
        ValueError: if one of them does not exist.
    """
    for path in data if isinstance(data, list) else [data]:
        if not os.path.exists(path):
            raise ValueError(
                "`data` as a string or path must name a folder or file of "
                f"parquet, or be a list of such files. Received: {path!r}, "
                "which does not exist"
            )
    if isinstance(data, list):
        data = [str(path) for path in data]
    return pyarrow.dataset.dataset(data, format="parquet")


def from_dataset(dataset: pyarrow.dataset.Dataset, options: Options) -> Stream:
    """Returns the stream of the rows of a dataset.

    A shuffled epoch reads the row groups in random order, and shuffles their
    rows through the buffer.

    Raises:
        ValueError: for an unknown column, or fewer rows than a batch.
        TypeError: for a column that a tensor cannot hold.
    """
    names = list(options.columns or dataset.schema.names)
    unknown = [name for name in names if name not in dataset.schema.names]
    if unknown:
        raise ValueError(
            "`columns` must name columns of `data`, which are "
            f"{dataset.schema.names}. Received: {unknown}"
        )
    for name in names:
        kind = dataset.schema.field(name).type
        columns.check_arrow_type(kind, f"data[{name!r}]")
    rows = dataset.count_rows()
    options.check_rows(rows)

    def open_epoch(number: int, rng: Any) -> Iterator[Any]:
        del number
        source = dataset if rng is None else _mixed(dataset, rng)
        return source.to_batches(
            columns=names, batch_size=_CHUNK, use_threads=True, **_AHEAD
        )

    return Stream(open_epoch, options, rows)


def _mixed(
    dataset: pyarrow.dataset.Dataset, rng: Any
) -> pyarrow.dataset.Dataset:
    """Returns the same dataset with its row groups in random order."""
    groups = [
        group
        for fragment in dataset.get_fragments()
        for group in (
            fragment.split_by_row_group()
            if hasattr(fragment, "split_by_row_group")
            else [fragment]
        )
    ]
    if not isinstance(dataset, pyarrow.dataset.FileSystemDataset):
        return dataset
    return pyarrow.dataset.FileSystemDataset(
        [groups[place] for place in rng.permutation(len(groups))],
        dataset.schema,
        dataset.format,
        dataset.filesystem,
    )

"""Parquet files and any `pyarrow.dataset`, also larger than memory."""

import os
from collections.abc import Iterator
from typing import Any

import pyarrow.dataset

from inbatch_neg.data import columns, nests
from inbatch_neg.data.options import Options
from inbatch_neg.data.stream import Stream

# Rows that are read at a time. Together with the short read-ahead, this limits
# the memory.
_CHUNK = 2**16
_AHEAD = {"batch_readahead": 4, "fragment_readahead": 1}

_RULE = (
    "`data` as a path must be parquet: a file, a folder, or a list of files, "
    "such as `glob.glob(pattern)`. Pass `pyarrow.dataset.dataset(path, format="
    '"csv")` for other files and for URLs.'
)


def open_files(data: Any, options: Options) -> pyarrow.dataset.Dataset:
    """Returns the dataset of a folder, a file or a list of files.

    The names of folders such as `country=3` become columns.

    Raises:
        ValueError: if a file does not exist, is not parquet, or if the columns
            that `options` name differ between the files.
    """
    for path in data if isinstance(data, list) else [data]:
        if not os.path.exists(path):
            raise ValueError(
                f"{_RULE} Received: {path!r}, which does not exist"
            )
    if isinstance(data, list):
        data = [str(path) for path in data]
    # The empty schema lists the files without reading one.
    files = pyarrow.dataset.dataset(
        data, format="parquet", schema=pyarrow.schema([])
    )
    _check_files(data, list(files.get_fragments()), options.columns)
    return pyarrow.dataset.dataset(data, format="parquet", partitioning="hive")


def _check_files(
    data: Any, files: list[Any], names: tuple[str, ...] | None
) -> None:
    """Refuses files whose columns differ, which Arrow casts or fills."""
    if not files:
        raise ValueError(
            f"{_RULE} Received: {data!r}, a folder without parquet files"
        )
    schemas = [_schema(file) for file in files]
    found = dict.fromkeys(name for schema in schemas for name in schema.names)
    for name in found:
        if names is not None and name not in names:
            continue
        first = next(i for i, s in enumerate(schemas) if name in s.names)
        for file, schema in zip(files, schemas):
            other = files[first].path
            if name not in schema.names:
                raise ValueError(
                    f"`data[{name!r}]` is a column of {other!r}, but not of "
                    f"{file.path!r}. Leave it out with `columns=`, or write it."
                )
            kinds = schemas[first].field(name).type, schema.field(name).type
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"`data[{name!r}]` has type {kinds[0]} in {other!r} and "
                    f"{kinds[1]} in {file.path!r}. Write it with one type."
                )


def _schema(file: Any) -> pyarrow.Schema:
    try:
        schema = file.physical_schema
    except pyarrow.ArrowInvalid as error:
        raise ValueError(
            f"{_RULE} Received: {file.path!r}, another format. {error}"
        ) from error
    nests.refuse_duplicates(schema.names)
    return schema


def from_dataset(
    dataset: pyarrow.dataset.Dataset | pyarrow.dataset.Scanner,
    options: Options,
) -> Stream:
    """Returns the stream of the rows of a dataset, or of a scanner.

    A shuffled epoch reads the row groups of a dataset in random order, and
    shuffles the rows through the buffer.

    Raises:
        ValueError: for an unknown column, or fewer rows than a batch.
        TypeError: for a column that a tensor cannot hold.
    """
    is_scanner = isinstance(dataset, pyarrow.dataset.Scanner)
    schema = dataset.projected_schema if is_scanner else dataset.schema
    names = nests.select(dict.fromkeys(schema.names), options.columns)
    for name in names:
        columns.check_arrow_type(schema.field(name).type, f"data[{name!r}]")

    def open_epoch(number: int | None, rng: Any) -> Iterator[Any]:
        del number
        if is_scanner:
            return dataset.to_batches()
        source = dataset if rng is None else _mixed(dataset, rng)
        return source.to_batches(
            columns=list(names), batch_size=_CHUNK, use_threads=True, **_AHEAD
        )

    return Stream(open_epoch, options, dataset.count_rows())


def _mixed(
    dataset: pyarrow.dataset.Dataset, rng: Any
) -> pyarrow.dataset.Dataset:
    """Returns the same dataset with its row groups in random order.

    A dataset that has no files, or that is filtered, keeps its own order. Its
    rows are shuffled only through the buffer.
    """
    if not isinstance(dataset, pyarrow.dataset.FileSystemDataset):
        return dataset
    try:
        fragments = list(dataset.get_fragments())
    except ValueError:  # Arrow lists no fragments of a filtered dataset
        return dataset
    groups = [
        group
        for fragment in fragments
        for group in (
            fragment.split_by_row_group()
            if hasattr(fragment, "split_by_row_group")
            else [fragment]
        )
    ]
    return pyarrow.dataset.FileSystemDataset(
        [groups[place] for place in rng.permutation(len(groups))],
        dataset.schema,
        dataset.format,
        dataset.filesystem,
    )

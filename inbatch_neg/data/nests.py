"""Nests of columns: dicts and tuples whose leaves have the same rows.

None is not a leaf and does not change: in Keras it stands for "no label".
"""

import collections
import sys
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any


def is_instance(value: Any, module: str, *names: str) -> bool:
    """Returns whether `value` is an instance, without importing the library.

    An object of a library cannot exist before the library is imported.

    Args:
        value: Any object.
        module: Name of the library's module.
        names: Names of its classes, with dots for classes of submodules.
    """
    library = sys.modules.get(module)
    if library is None:
        return False
    for name in names:
        try:
            kind = attrgetter(name)(library)
        except (AttributeError, ImportError):
            continue
        if isinstance(kind, type) and isinstance(value, kind):
            return True
    return False


def as_nest(data: Any, name: str = "data") -> Any:
    """Returns `data` with tables and mappings as dicts, and lists as tuples.

    Args:
        data: A column, a table, or a mapping or tuple of these. A list of
            arrays counts as a tuple, a list of plain values as a column.
        name: Its name in error messages.

    Raises:
        TypeError: for a named tuple, which has two readings.
    """
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        raise TypeError(
            f"`{name}` has a named tuple, which could be columns, or an input "
            "and its labels. Pass the dict `pair._asdict()`, or `tuple(pair)` "
            f"for (x, y, sample_weight). Received: {type(data).__name__}"
            f"({', '.join(data._fields)})"
        )
    if isinstance(data, Mapping):
        return {key: as_nest(value, name) for key, value in data.items()}
    if isinstance(data, tuple) or is_list_of_columns(data):
        return tuple(as_nest(value, name) for value in data)
    if is_instance(data, "pyarrow", "RecordBatchReader"):
        data = data.read_all()
    if is_instance(data, "datasets", "Dataset"):
        data = _arrow_table(data)
    if is_instance(data, "pyarrow", "Table", "RecordBatch"):
        names = data.schema.names
    elif is_instance(data, "pandas", "DataFrame") or is_instance(
        data, "polars", "DataFrame"
    ):
        names = list(data.columns)
    else:
        return data
    refuse_duplicates(names)
    return {name: data[name] for name in names}


def _arrow_table(dataset: Any) -> Any:
    """Returns the rows of a Hugging Face `Dataset` as an Arrow table.

    Raises:
        TypeError: if a transform is set, which would make other rows.
    """
    if dataset.format["type"] == "custom":
        raise TypeError(
            "`data` is a Hugging Face Dataset with a transform, which "
            "`full_batches` does not apply. Apply it first: "
            "`data.with_format(None).map(transform, batched=True)`."
        )
    columns = dataset.format["columns"]
    if dataset.format["output_all_columns"]:
        columns = None
    # This applies its own index of rows, if it has one.
    return dataset.with_format("arrow", columns=columns)[:]


def refuse_duplicates(names: list[Any]) -> None:
    """Refuses columns of one name, of which a dict would keep only one."""
    if len(set(names)) == len(names):
        return
    twice = [name for name, n in collections.Counter(names).items() if n > 1]
    raise ValueError(
        "The columns of `data` must have different names. Received: more than "
        f"one column named {', '.join(map(repr, twice))}"
    )


def is_list_of_columns(data: Any) -> bool:
    """Returns whether `data` is a list of arrays, not of plain values."""
    return isinstance(data, list) and any(map(is_rows, data))


def is_rows(data: Any) -> bool:
    """Returns whether `data` is a mapping, a table or a column with rows.

    Lists and tuples are not.
    """
    return (
        isinstance(data, Mapping)
        or bool(getattr(data, "shape", ()))
        or is_instance(data, "pyarrow", "Array", "ChunkedArray")
        or is_instance(data, "datasets", "arrow_dataset.Column")
    )


def map_leaves(
    function: Callable[..., Any], nest: Any, *others: Any, name: str = "data"
) -> Any:
    """Returns the nest with `function(leaf, *other leaves, name)` as leaves.

    Args:
        function: Called for every leaf that is not None.
        nest: Dicts and tuples.
        others: Nests of the same form.
        name: The name of the nest in error messages.
    """
    if nest is None:
        return None
    if isinstance(nest, (Mapping, tuple)):
        keys = list(nest) if isinstance(nest, Mapping) else range(len(nest))
        values = [
            map_leaves(
                function,
                nest[key],
                *(other[key] for other in others),
                name=f"{name}[{key!r}]",
            )
            for key in keys
        ]
        if isinstance(nest, Mapping):
            return dict(zip(keys, values))
        return tuple(values)
    return function(nest, *others, name)


def leaves(nest: Any) -> list[Any]:
    """Returns the leaves that are not None, in the order of the nest."""
    result: list[Any] = []
    map_leaves(lambda leaf, name: result.append(leaf), nest)
    return result


def number_of_rows(nest: Any, what: str) -> int:
    """Returns the number of rows of a nest of arrays.

    Args:
        nest: Dicts and tuples of arrays.
        what: The arrays in error messages.

    Raises:
        ValueError: if the arrays differ in length, or there is none.
    """
    rows: dict[str, int] = {}
    map_leaves(lambda leaf, name: rows.update({name: len(leaf)}), nest)
    if len(set(rows.values())) != 1:
        received = ", ".join(f"{name}: {n}" for name, n in rows.items())
        raise ValueError(
            f"{what} must have the same number of rows. Received: "
            f"{received or 'no array'}"
        )
    return next(iter(rows.values()))


def form(nest: Any) -> Any:
    """Returns the nest with True in place of its leaves, to compare."""
    return map_leaves(lambda leaf, name: True, nest)


def fill(nest: Any, values: Any) -> Any:
    """Returns the nest with its leaves replaced, in the order of `leaves`."""
    remaining = iter(values)
    return map_leaves(lambda leaf, name: next(remaining), nest)


def select(nest: Any, columns: tuple[str, ...] | None) -> Any:
    """Returns the nest with only the named columns, in their order.

    The columns are in a dict, or in the first entry of a tuple
    `(x, y, sample_weight)`.

    Raises:
        ValueError: if a name is unknown.
        TypeError: if there is no dict to select from.
    """
    if columns is None:
        return nest
    if isinstance(nest, tuple) and nest:
        return (select(nest[0], columns), *nest[1:])
    if not isinstance(nest, Mapping):
        raise TypeError(
            "`columns` needs a dict or a frame, as `data` or as its `x`. "
            f"Received: columns={list(columns)} and {type(nest).__name__}"
        )
    unknown = [name for name in columns if name not in nest]
    if unknown:
        raise ValueError(
            f"`columns` must name columns of `data`, which are {list(nest)}. "
            f"Received: {unknown}"
        )
    return {name: nest[name] for name in columns}

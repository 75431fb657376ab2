"""Selects the features that a model names as its inputs.

Keras fills the inputs of a functional model by position if the number of
columns differs from the number of inputs. So columns are selected here, by
name.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import keras
import numpy as np

from inbatch_neg.backends import backend
from inbatch_neg.data.nests import (
    as_nest,
    is_list_of_columns,
    leaves,
    map_leaves,
)
from inbatch_neg.evaluation.ids import Array
from inbatch_neg.types import Tensor


class Feed(NamedTuple):
    """Features for `predict`.

    Attributes:
        features: What the model takes: arrays, or a dataset of batches.
        is_dataset: Whether the features are batched already.
        padded: The numbers of rows and of copies behind them, one after the
            other; of all batches that have been read.
    """

    features: Any
    is_dataset: bool
    padded: list[tuple[int, int]]


def feed(name: str, model: keras.Model, features: Any, devices: int) -> Feed:
    """Returns the inputs that the model names, in a form for `predict`.

    Args:
        name: Name of the features, for errors.
        model: Functional and Sequential models name their inputs; a
            subclassed model gets all columns.
        features: Array, structure of arrays, frame, or dataset of batches.
        devices: A number that must divide the rows of every batch. Copies of
            the last row fill it up.
    """
    inputs = _inputs_of(model)
    padded: list[tuple[int, int]] = []

    def select(nest: Any) -> Any:
        return _select(name, inputs, nest)

    if not is_dataset(features):
        nest = as_nest(_as_array(features))
        nest = map_leaves(_leaf, select(nest), name=name)
        _refuse_empty(name, nest)
        return Feed(_padded(nest, devices, padded), False, padded)
    if hasattr(features, "element_spec") and devices == 1:
        check = _checked_spec(name, inputs)
        keras.tree.map_structure(check, select(_x(features.element_spec)))
        # In a tuple, since Keras takes a tuple for (x, y, sample_weight).
        features = features.map(lambda *batch: (select(_x(batch)),))
        return Feed(features, True, padded)

    def padded_batch(batch: Any) -> Any:
        return _padded(batch, devices, padded)

    features = _generate(name, inputs, features, select, padded_batch)
    return Feed(features, True, padded)


def _refuse_empty(name: str, nest: Any) -> None:
    if any(tuple(leaf.shape)[:1] == (0,) for leaf in leaves(nest)):
        raise ValueError(
            f"`{name}` must have at least one row. Received: no rows"
        )


def _padded(nest: Any, devices: int, padded: list[tuple[int, int]]) -> Any:
    """Returns the nest with rows that the devices divide, and notes it."""
    if devices == 1:
        return nest
    sizes = {leaf.shape[0] if leaf.shape else 0 for leaf in leaves(nest)}
    if len(sizes) != 1 or 0 in sizes:
        return nest  # Keras refuses it
    (rows,) = sizes
    copies = -rows % devices
    padded.append((rows, copies))

    def pad(leaf: Any, name: str) -> Array:
        array = column_array(name, leaf)
        return np.concatenate([array, np.repeat(array[-1:], copies, axis=0)])

    return map_leaves(pad, nest)


def without_padding(vectors: Array, padded: list[tuple[int, int]]) -> Array:
    """Returns the vectors of the rows, without those of their copies."""
    if not any(copies for _, copies in padded):
        return vectors
    kept = [np.arange(sum(sizes)) < sizes[0] for sizes in padded]
    return vectors[np.concatenate(kept)]


def is_dataset(features: Any) -> bool:
    """Returns whether the features are batches, without reading them."""
    if isinstance(features, (dict, tuple, list)):
        return False
    if hasattr(features, "element_spec"):
        return True
    is_array = hasattr(features, "shape") and hasattr(features, "dtype")
    return not is_array and not isinstance(as_nest(features), dict)


def first_column(features: Any) -> Any:
    """Returns the first column of the features of a model."""
    nest = as_nest(_as_array(features))
    while isinstance(nest, (dict, tuple)) and len(nest):
        nest = next(iter(nest.values())) if isinstance(nest, dict) else nest[0]
    return nest


def column_array(name: str, column: Any) -> Array:
    """Returns a column as an array; refuses missing values."""
    missing = 0
    if hasattr(column, "null_count"):
        missing = column.null_count
        missing = missing() if callable(missing) else missing
    elif hasattr(column, "isna") and getattr(column.dtype, "kind", "") != "f":
        missing = column.isna().sum()
    if missing:
        raise ValueError(
            f"`{name}` must have no missing values. Fill them. "
            f"Received: {missing} of {len(column)}"
        )
    if hasattr(column, "combine_chunks"):
        return np.asarray(column.to_numpy())
    if hasattr(column, "to_numpy"):
        column = column.to_numpy()
    elif keras.ops.is_tensor(column):
        column = keras.ops.convert_to_numpy(column)
    return np.asarray(column)


def _as_array(features: Any) -> Any:
    """Returns a list of plain values as an array."""
    if isinstance(features, list) and not is_list_of_columns(features):
        return np.asarray(features)
    return features


def _leaf(column: Any, name: str) -> Any:
    """Returns a column in a form that `predict` takes."""
    if hasattr(column, "numpy"):  # a tensor of any library
        if getattr(column.dtype, "name", "") == "string":
            _string_tensor(name, np.asarray([""]))
        return column
    array = column_array(name, column)
    if array.dtype.kind == "O":
        texts = [isinstance(one, (str, bytes)) for one in array.flat]
        if not all(texts):
            raise TypeError(
                f"`{name}` must hold numbers, or strings. Received: objects "
                f"such as {array.flat[texts.index(False)]!r}"
            )
    return _string_tensor(name, array) if array.dtype.kind in "OSU" else array


def _string_tensor(name: str, strings: Array) -> Tensor:
    tensor = backend.string_tensor(strings)
    if tensor is None:
        raise TypeError(
            f"`{name}` holds strings, which no model takes on the backend "
            f"{backend.name}. Fix: map them by `keras.layers.StringLookup`."
        )
    return tensor


def _inputs_of(model: keras.Model) -> Any:
    """Returns the structure of the model's symbolic inputs, None if unnamed."""
    if isinstance(model, keras.Sequential) and not model.built:
        return None
    try:
        inputs = model.inputs
        if isinstance(model, keras.Sequential):
            return inputs[0]
        return model.input if inputs else None
    except AttributeError:  # subclassed
        return None


def _select(name: str, inputs: Any, nest: Any) -> Any:
    """Returns the columns of a nest that the inputs name."""
    if not isinstance(nest, dict) or inputs is None:
        return nest
    if isinstance(inputs, dict):
        wanted = list(inputs)
    elif isinstance(inputs, (list, tuple)):
        if not all(hasattr(one, "name") for one in inputs):
            return nest
        wanted = [one.name for one in inputs]
    elif inputs.name not in nest and len(nest) == 1:
        return next(iter(nest.values()))  # the input may have any name
    else:
        wanted = [inputs.name]
    absent = [one for one in wanted if one not in nest]
    if absent:
        raise ValueError(
            f"`{name}` must have a column for every input of the model, "
            f"{wanted}. Received: {list(nest)}, without {absent}"
        )
    if isinstance(inputs, dict):
        return {one: nest[one] for one in wanted}
    columns = tuple(nest[one] for one in wanted)
    return columns if isinstance(inputs, (list, tuple)) else columns[0]


def _x(batch: Any) -> Any:
    """Returns the features of a batch, which may be (x, y, sample_weight)."""
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def _checked_spec(name: str, inputs: Any) -> Callable[[Any], None]:
    """Returns a check of the entries of `element_spec`."""

    def check(spec: Any) -> None:
        shape = getattr(spec, "shape", None)
        if shape is not None and shape.rank is not None:
            _check_rank(name, inputs, shape.rank, tuple(shape))
        if getattr(getattr(spec, "dtype", None), "name", "") == "string":
            _string_tensor(name, np.asarray([""]))

    return check


def _check_rank(name: str, inputs: Any, rank: int, shape: tuple) -> None:
    """Refuses an element of a dataset that is a row, not a batch."""
    least = 1
    # Only for a model with one input: one of several may be a scalar per row.
    if hasattr(inputs, "shape"):
        least = len(inputs.shape)
        if least > 1 and inputs.shape[-1] == 1:  # Keras appends this axis
            least -= 1
    if rank < least:
        raise ValueError(
            f"`{name}` must be a dataset of batches. Fix: "
            f"`dataset.batch(4096)`. Received: elements of shape {shape}"
        )


def _generate(
    name: str,
    inputs: Any,
    dataset: Any,
    select: Callable[[Any], Any],
    padded: Callable[[Any], Any],
) -> Iterator[tuple[Any]]:
    """Returns an iterator over batches, and reads the first one.

    So an error in the first batch is raised here, not inside `predict`.
    """

    def prepared(batch: Any) -> tuple[Any]:
        nest = select(as_nest(_x(batch)))

        def leaf(column: Any, name: str) -> Any:
            array = column_array(name, column)
            _check_rank(name, inputs, array.ndim, array.shape)
            return _leaf(array, name)

        return (padded(map_leaves(leaf, nest, name=name)),)

    if isinstance(dataset, keras.utils.PyDataset):
        batches = (dataset[i] for i in range(dataset.num_batches))
    else:
        batches = iter(dataset)
    results = map(prepared, batches)
    try:
        first = next(results)
    except StopIteration:
        raise ValueError(
            f"`{name}` must have at least one batch. A generator can be read "
            "once: pass a dataset. Received: none"
        ) from None
    # A generator, since `predict` does not take any iterator.
    return (batch for batch in chain([first], results))

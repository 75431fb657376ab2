"""Selects the features that a model names as its inputs.

Keras fills the inputs of a functional model by position if the number of
columns differs from the number of inputs. So columns are selected here, by
name.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import keras
import numpy as np

from inbatch_neg.data.columns import as_array
from inbatch_neg.data.nests import as_nest, is_rows, leaves, map_leaves
from inbatch_neg.evaluation.ids import Array


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

    def prepared(nest: Any, check: Callable[[Any, str], None]) -> Any:
        def leaf(column: Any, name: str) -> Array:
            check(column, name)
            array = as_array(column, name)
            check(array, name)
            return array

        nest = map_leaves(leaf, _select(name, inputs, nest), name=name)
        return map_leaves(_for_keras, _padded(nest, devices, padded))

    if not is_dataset(features):
        nest = prepared(as_nest(features, name), _refuse_empty)
        return Feed(nest, False, padded)
    check = _check_of_batches(name, inputs)
    if hasattr(features, "element_spec") and devices == 1:
        spec = _select(name, inputs, _x(name, features.element_spec))
        map_leaves(check, spec, name=name)
        # In a tuple, since Keras takes a tuple for (x, y, sample_weight).
        features = features.map(
            lambda *batch: (_select(name, inputs, _x(name, batch)),)
        )
        return Feed(features, True, padded)
    batches = features
    if isinstance(features, keras.utils.PyDataset):
        batches = (features[i] for i in range(features.num_batches))
    results = ((prepared(_x(name, batch), check),) for batch in batches)
    # Read here, so that an error in it is not raised inside `predict`.
    first = next(results, None)
    if first is None:
        raise ValueError(
            f"`{name}` must have at least one batch. A generator can be read "
            "once: pass a dataset. Received: none"
        )
    # A generator, since `predict` does not take any iterator.
    return Feed((batch for batch in chain([first], results)), True, padded)


def _refuse_empty(column: Any, name: str) -> None:
    if tuple(getattr(column, "shape", ()))[:1] == (0,):
        raise ValueError(
            f"`{name}` must have at least one row. Received: no rows"
        )


def _padded(nest: Any, devices: int, padded: list[tuple[int, int]]) -> Any:
    """Returns the arrays with rows that the devices divide, and notes it."""
    sizes = {len(array) for array in leaves(nest)}
    if devices == 1 or len(sizes) != 1:  # Keras refuses different sizes
        return nest
    (rows,) = sizes
    copies = -rows % devices
    padded.append((rows, copies))
    return map_leaves(
        lambda array, name: np.concatenate(
            [array, np.repeat(array[-1:], copies, axis=0)]
        ),
        nest,
    )


def without_padding(vectors: Array, padded: list[tuple[int, int]]) -> Array:
    """Returns the vectors of the rows, without those of their copies."""
    if not any(copies for _, copies in padded):
        return vectors
    kept = [np.arange(sum(sizes)) < sizes[0] for sizes in padded]
    return vectors[np.concatenate(kept)]


def is_dataset(features: Any) -> bool:
    """Returns whether the features are batches, without reading them."""
    if hasattr(features, "element_spec"):
        return True
    return not (isinstance(features, (tuple, list)) or is_rows(features))


def _for_keras(array: Array, name: str) -> Any:
    """Returns strings as a tensor: Keras does not take NumPy's."""
    strings = array.dtype.kind in "OSU"
    return keras.ops.convert_to_tensor(array) if strings else array


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


def _x(name: str, batch: Any) -> Any:
    """Returns the features of a batch, which may be (x, y, sample_weight)."""
    nest = as_nest(batch, name)
    return nest[0] if isinstance(nest, tuple) else nest


def _check_of_batches(name: str, inputs: Any) -> Callable[..., None]:
    """Returns a check that a leaf is of a batch, not of a row."""
    least = 1
    # Only for a model with one input: one of several may be a scalar per row.
    if hasattr(inputs, "shape"):
        least = len(inputs.shape)
        if least > 1 and inputs.shape[-1] == 1:  # Keras appends this axis
            least -= 1

    def check(leaf: Any, _: str) -> None:
        if getattr(getattr(leaf, "dtype", None), "name", "") == "string":
            as_array(np.asarray([""]), name)  # refused on some backends
        shape: Any = getattr(leaf, "shape", None)
        if np.isscalar(leaf):
            shape = ()
        rank = shape.rank if hasattr(shape, "rank") else np.size(shape)
        if shape is not None and rank is not None and rank < least:
            raise ValueError(
                f"`{name}` must be a dataset of batches. Fix: "
                f"`dataset.batch(4096)`. Received: elements of shape {shape}"
            )

    return check

"""From features to float32 vectors on the host."""

from typing import Any

import keras
import numpy as np

from inbatch_neg import arguments
from inbatch_neg.backends import backend
from inbatch_neg.data.structures import as_nest
from inbatch_neg.evaluation import inputs
from inbatch_neg.evaluation.ids import Array


def embed(
    name: str,
    model_name: str,
    model: keras.Model | None,
    features: Any,
    batch_size: int,
    verbose: int,
    several: bool = False,
) -> Array:
    """Returns (rows, D) float32 vectors of all features.

    Args:
        name: Of the argument that holds the features, for errors.
        model_name: The same of the model.
        model: A `keras.Model`, or None if the features are vectors.
        features: Array, structure of arrays, or dataset of batches.
        batch_size: Rows of a batch, of arrays.
        verbose: Whether the model shows its progress.
        several: Whether there may be several vectors a row, (rows, P, D).
    """
    if model is None:
        found = _vectors(name, model_name, features)
    else:
        given = inputs.feed(name, model, features)
        size = None if given.is_dataset else batch_size
        with backend.keep_weights(model):
            found = model.predict(
                given.features, batch_size=size, verbose=verbose
            )
    if not _is_array(found):
        raise TypeError(
            f"`{model_name}` must return one array of vectors. Received: "
            f"{type(found).__name__}"
        )
    found = _host(found)
    is_fitting = found.ndim == 2 or (several and found.ndim == 3)
    if not is_fitting or 0 in found.shape or found.dtype.kind in "OUSb":
        form = "(rows, dimensions)"
        if several:
            form += " or (rows, vectors, dimensions)"
        raise ValueError(
            f"`{model_name}` must lead to vectors {form}, numbers, at least "
            f"one (None: `{name}` are the vectors; a dataset must have batches "
            f"of them). Received: shape {found.shape}, dtype {found.dtype}"
        )
    return found.astype("float32", copy=False)


def _vectors(name: str, model_name: str, features: Any) -> Any:
    """Returns features that are vectors already, in one array."""
    if isinstance(features, (dict, tuple)):
        raise TypeError(
            f"`{model_name}` must be a model if `{name}` is a "
            f"{type(features).__name__}, since they are no vectors."
        )
    if _is_array(features):
        return features
    if not inputs.is_dataset(features) and not isinstance(features, list):
        frame = as_nest(features)  # whose columns are the dimensions
        columns = [inputs.column_array(name, frame[one]) for one in frame]
        return np.stack(columns, axis=1)
    batches = [_host(batch) for batch in features]
    if any(batch.ndim < 2 for batch in batches):
        return np.stack(batches)
    return np.concatenate(batches)


def check_model(name: str, model: Any) -> None:
    """Refuses what is neither a Keras model nor None."""
    arguments.refuse_keras_2(name, model)
    if model is not None and not isinstance(model, keras.Model):
        raise TypeError(
            f"`{name}` must be a keras.Model, or None if vectors are given. "
            f"Received: {name}={model!r}"
        )


def check(query: Array, candidate: Array) -> None:
    """Refuses vectors of different dimensions."""
    if query.shape[-1] != candidate.shape[-1]:
        raise ValueError(
            "`query_model` and `candidate_model` must lead to vectors of the "
            "same number of dimensions. Received: shapes "
            f"{query.shape} and {candidate.shape}"
        )


def l2_normalize(vectors: Array) -> Array:
    """Returns the vectors at length 1; those of length 0 stay."""
    # Divided by the largest entry first, or its square might overflow.
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    vectors = vectors / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def rows(model: keras.Model | None, features: Any) -> int | None:
    """Returns the number of rows, or None for a dataset, not read yet."""
    if inputs.is_dataset(features):
        return None
    if model is None and isinstance(features, list):
        one = features[0] if features else 0
        return len(features) if np.ndim(one) < 2 else None
    column = inputs.first_column(features)
    shape = getattr(column, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else None
    return len(column) if hasattr(column, "__len__") else None


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _host(value: Any) -> Array:
    if keras.ops.is_tensor(value):
        value = keras.ops.convert_to_numpy(value)
    return np.asarray(value)

"""From features to float32 vectors on the host."""

from typing import Any

import keras
import numpy as np

from inbatch_neg.evaluation.ids import Array


def embed(
    name: str,
    model: keras.Model | None,
    features: Any,
    batch_size: int,
    verbose: int,
) -> Array:
    """Returns (rows, D) float32 vectors of all features.

    Args:
        name: Of the argument that holds the model, for errors.
        model: A `keras.Model`, or None if the features are vectors.
        features: Array, structure of arrays, or dataset of batches.
        batch_size: Rows of a batch, of arrays.
        verbose: Whether the model shows its progress.
    """
    if model is not None:
        size = None if rows(features) is None else batch_size
        found = model.predict(features, batch_size=size, verbose=verbose)
    elif _is_array(features):
        found = features
    else:
        if isinstance(features, (dict, tuple)):
            raise TypeError(
                f"`{name}` must be a model if the features are a "
                f"{type(features).__name__}, since they are no vectors."
            )
        found = np.concatenate([_host(batch) for batch in features])
    if not _is_array(found):
        raise TypeError(
            f"`{name}` must return one array of vectors. Received: "
            f"{type(found).__name__}"
        )
    found = _host(found)
    if found.ndim != 2 or 0 in found.shape or found.dtype.kind in "OUSb":
        raise ValueError(
            f"`{name}` must lead to vectors (rows, dimensions), numbers, at "
            "least one (None: the features are the vectors). Received: shape "
            f"{found.shape}, dtype {found.dtype}"
        )
    return found.astype("float32", copy=False)


def check(query: Array, candidate: Array) -> None:
    """Refuses vectors of different dimensions."""
    if query.shape[1] != candidate.shape[1]:
        raise ValueError(
            "`query_model` and `candidate_model` must lead to vectors of the "
            "same number of dimensions. Received: shapes "
            f"{query.shape} and {candidate.shape}"
        )


def l2_normalize(vectors: Array) -> Array:
    """Returns the vectors at length 1; those of length 0 stay."""
    # Divided by the largest entry first, or its square might overflow.
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    vectors = vectors / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def rows(features: Any) -> int | None:
    """Returns the number of rows, or None for a dataset, not read yet."""
    while isinstance(features, (dict, list, tuple)) and len(features):
        if isinstance(features, list) and np.ndim(features[0]) < 2:
            return len(features)
        values = features.values() if isinstance(features, dict) else features
        features = next(iter(values))
    if hasattr(features, "to_numpy"):
        return len(features)
    if _is_array(features) and len(features.shape):
        return int(features.shape[0])
    return None


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _host(value: Any) -> Array:
    if keras.ops.is_tensor(value):
        value = keras.ops.convert_to_numpy(value)
    return np.asarray(value)

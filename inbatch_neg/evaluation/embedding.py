"""From features to float32 vectors on the host."""

from typing import Any

import keras
import numpy as np

from inbatch_neg import keras_private
from inbatch_neg.arguments import refuse_keras_2
from inbatch_neg.data.columns import as_array
from inbatch_neg.data.nests import as_nest, leaves, map_leaves
from inbatch_neg.evaluation import inputs
from inbatch_neg.evaluation.ids import Array, to_numpy
from inbatch_neg.replicas.current import replicas


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
        name: Name of the argument that holds the features, for errors.
        model_name: Name of the argument that holds the model, for errors.
        model: A `keras.Model`, or None if the features are vectors.
        features: Array, structure of arrays, or dataset of batches.
        batch_size: Rows of a batch, for arrays.
        verbose: Whether the model shows its progress.
        several: Whether there may be several vectors per row, (rows, P, D).
    """
    feed = None
    if model is None:
        vectors = _vectors(name, model_name, features)
    else:
        devices = replicas.devices()
        feed = inputs.feed(name, model, features, devices)
        size = None
        if not feed.is_dataset:
            size = -(-batch_size // devices) * devices
        with keras_private.keep_weights(model):
            vectors = model.predict(
                feed.features, batch_size=size, verbose=verbose
            )
    if not _is_array(vectors):
        raise TypeError(
            f"`{model_name}` must return one array of vectors. Received: "
            f"{type(vectors).__name__}"
        )
    vectors = to_numpy(vectors)
    if feed is not None:
        vectors = inputs.without_padding(vectors, feed.padded)
    is_fitting = vectors.ndim == 2 or (several and vectors.ndim == 3)
    if not is_fitting or 0 in vectors.shape or vectors.dtype.kind in "OUSb":
        more = " or (rows, vectors, dimensions)" if several else ""
        raise ValueError(
            f"`{model_name}` must return one or more vectors of numbers, "
            f"(rows, dimensions){more}. If it is None, `{name}` must be such "
            f"vectors. Received: shape {vectors.shape}, dtype {vectors.dtype}"
        )
    return vectors.astype("float32", copy=False)


def _vectors(name: str, model_name: str, features: Any) -> Any:
    """Returns features that already are vectors, as one array."""
    if isinstance(features, (dict, tuple)):
        raise TypeError(
            f"`{model_name}` must be a model if `{name}` is a "
            f"{type(features).__name__}, which does not hold vectors."
        )
    if _is_array(features):
        return features
    if not inputs.is_dataset(features) and not isinstance(features, list):
        columns = map_leaves(as_array, as_nest(features), name=name)
        return np.stack(leaves(columns), axis=1)  # they are the dimensions
    batches = [to_numpy(batch) for batch in features]
    if any(batch.ndim < 2 for batch in batches):
        return np.stack(batches)
    return np.concatenate(batches)


def check_model(name: str, model: Any) -> None:
    """Refuses what is neither a Keras model nor None."""
    refuse_keras_2(name, model)
    if model is not None and not isinstance(model, keras.Model):
        raise TypeError(
            f"`{name}` must be a keras.Model, or None if vectors are given. "
            f"Received: {name}={model!r}"
        )


def check(query: Array, candidate: Array) -> None:
    """Refuses vectors of different dimensions."""
    if query.shape[-1] != candidate.shape[-1]:
        raise ValueError(
            "`query_model` and `candidate_model` must return the same number "
            f"of dimensions. Received: {query.shape} and {candidate.shape}"
        )


def l2_normalize(vectors: Array) -> Array:
    """Returns the vectors with length 1; those of length 0 do not change."""
    # Divided by the largest entry first, whose square might overflow.
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    vectors = vectors / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def rows(model: keras.Model | None, features: Any) -> int | None:
    """Returns the number of rows, or None for a dataset, which is not read."""
    if inputs.is_dataset(features):
        return None
    if model is None and isinstance(features, list):
        one = features[0] if features else 0
        return len(features) if np.ndim(one) < 2 else None
    columns = leaves(as_nest(features))
    shape = np.shape(columns[0]) if columns else ()
    return shape[0] if shape else None


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")

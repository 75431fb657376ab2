"""Sequences: each position of each row becomes a row of the softmax."""

from typing import Any

import keras
from keras import ops

from inbatch_neg import arguments, keras_private
from inbatch_neg.softmax.scoring import compute_dtype
from inbatch_neg.types import Tensor

# Below the share of valid positions of any batch that has one.
_NO_SHARE = 2.0**-60


@keras_private.restore_model_state
def positions(
    query: Tensor,
    candidate: Tensor,
    mask: Tensor,
    candidate_ids: Tensor = None,
    query_ids: Tensor = None,
    candidate_sampling_probability: Tensor = None,
) -> dict[str, Tensor]:
    """Every position of a sequence as a row of the softmax, padding left out.

    For a tower that returns a vector per position, each of which has a
    positive of its own, such as the item that came next. B sequences of T
    positions become B T rows: `softmax(**positions(query, candidate, mask))`.

    ```
    row b T + t  =  position t of sequence b
    weight       =  B T / (number of valid positions), 0 for padding
    ```

    So the mean over the B T rows, which `InBatchNegativeLoss` takes, is the
    mean over the valid positions. Padding is nobody's negative either. What
    its vectors hold has no effect, NaN included. With several replicas, each
    takes the mean over its own valid positions, and Keras the mean of these.

    Args:
        query: (B, T, D) floats.
        candidate: (B, T, D) floats, the positive of each position.
        mask: (B, T) bools, False for padding. A batch of padding alone has
            loss 0 and gradient 0.
        candidate_ids: (B, T) integers (strings too on TensorFlow).
        query_ids: (B, T), or (B,), one for all positions of a sequence: these
            are then no negatives of each other.
        candidate_sampling_probability: (B, T) floats.

    Returns:
        A dict of arguments of `InBatchNegativeSoftmax` and of
        `in_batch_softmax_loss`: those that were passed, with the first two
        dimensions as one, `candidate_mask` and `sample_weight`, (B T,)
        float32. Multiply this by weights of your own. With
        `return_logits=True`, take it out and pass it to the loss; then the
        vectors of padding must be finite. Static sizes stay static, so that
        the layer still refuses a partial batch.

    Raises:
        ValueError: for shapes that differ.
        TypeError: for a mask that does not hold bools.

    Example:
    >>> import numpy as np
    >>> query = candidate = np.eye(6, dtype="float32").reshape(2, 3, 6)
    >>> mask = np.array([[True, True, True], [True, False, False]])
    >>> rows = positions(query, candidate, mask)
    >>> print(np.asarray(rows["sample_weight"]))
    [1.5 1.5 1.5 1.5 0.  0. ]
    >>> from inbatch_neg.ops import in_batch_softmax_loss
    >>> loss = in_batch_softmax_loss(**rows, temperature=0.5)
    >>> round(float(np.mean(np.asarray(loss))), 4)  # among four
    0.3408

    References: Kang and McAuley 2018, "Self-attentive sequential
    recommendation" (arXiv 1808.09781), which trains on all positions.
    """
    given = {
        "query": query,
        "candidate": candidate,
        "mask": mask,
        "candidate_ids": candidate_ids,
        "query_ids": query_ids,
        "candidate_sampling_probability": candidate_sampling_probability,
    }
    tensors = {name: _to_tensor(name, given[name]) for name in given}
    _check(tensors)
    query_ids, mask = tensors["query_ids"], tensors.pop("mask")
    if query_ids is not None and len(query_ids.shape) == 1:
        # `where` broadcasts strings too, and keeps static sizes.
        query_ids = query_ids[:, None]
        tensors["query_ids"] = ops.where(mask, query_ids, query_ids)
    counted = ops.cast(mask, compute_dtype(tensors["query"]))
    share = ops.maximum(ops.mean(counted), _NO_SHARE)
    tensors.update(candidate_mask=mask, sample_weight=counted / share)
    return {
        name: ops.reshape(tensor, (-1, *tensor.shape[2:]))
        for name, tensor in tensors.items()
        if tensor is not None
    }


def _to_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, keras.KerasTensor):  # of a functional model
        return value
    return arguments.to_tensor(name, value)


def _check(tensors: dict[str, Tensor]) -> None:
    """Refuses tensors that are not one vector, or entry, per position."""
    query = tensors["query"]
    arguments.check_rank("query", query, 3, "(rows, positions, dimensions)")
    for name, tensor in tensors.items():
        if tensor is None and name not in ("candidate", "mask"):
            continue
        form = tuple(query.shape)
        if name not in ("query", "candidate"):
            form = form[:2]
        if name == "query_ids" and len(tensor.shape) == 1:
            form = form[:1]
        shape = tuple(getattr(tensor, "shape", ()))
        if len(shape) != len(form) or any(map(_differ, shape, form)):
            raise ValueError(
                f"`{name}` must have shape {form}, one entry per position of "
                f"`query`. Received: {name}.shape={shape}"
            )
    dtype = keras.backend.standardize_dtype(tensors["mask"].dtype)
    if dtype != "bool":
        raise TypeError(
            "`mask` must hold bools, False for padding. Fix: "
            f"`mask != 0`. Received: dtype={dtype}"
        )


def _differ(one: int | None, other: int | None) -> bool:
    return None not in (one, other) and one != other

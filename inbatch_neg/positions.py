"""Sequences: each position of each row becomes a row of the softmax."""

from typing import Any

import keras
from keras import ops

from inbatch_neg import arguments
from inbatch_neg.softmax.log_q_and_masks import compute_dtype
from inbatch_neg.types import Tensor

# Below the share of valid positions of any batch that has one.
_NO_SHARE = 2.0**-60


def flatten(given: dict[str, Any]) -> dict[str, Tensor]:
    """Returns what `ops.positions` returns for these arguments, by name."""
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
        if len(shape) != len(form) or any(
            map(arguments.sizes_differ, shape, form)
        ):
            raise ValueError(
                f"`{name}` must have shape {form}, one entry per position of "
                f"`query`. Received: {name}.shape={shape}"
            )
    rule = "bools, False for padding. Fix: `mask != 0`."
    arguments.check_dtype("mask", tensors["mask"], ("bool",), rule)

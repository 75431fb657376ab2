"""Pads the last batch, and adds weights and the mask of the candidates."""

from typing import Any

import numpy as np

from inbatch_neg.data.nests import leaves, map_leaves

MASK = "candidate_mask"


def padded(batch: Any, rows: int, batch_size: int) -> Any:
    """Returns the padded NumPy batch, with its weights and mask.

    Args:
        batch: Arrays with the rows; with one row to copy if `rows` is 0.
        rows: The number of rows that count.
        batch_size: The number of rows of the result.
    """
    if rows < batch_size:
        places = np.minimum(np.arange(batch_size), max(rows, 1) - 1)
        batch = map_leaves(lambda leaf, name: leaf[places], batch)
    mask = np.arange(batch_size) < rows
    return marked(batch, mask, mask.astype("float32"), np)


def marked(batch: Any, mask: Any, weight: Any, module: Any) -> tuple:
    """Returns `(x, y, sample_weight)` of a padded batch.

    Args:
        batch: A batch for `fit`: `x`, or a tuple that begins with it.
        mask: (B,) bools, True for the rows of the data. Becomes
            `x["candidate_mask"]`, or the last of several inputs.
        weight: The same as floats. Becomes `sample_weight`, if `batch` has
            none; otherwise, its weights are set to 0 where `mask` is False.
        module: NumPy, TensorFlow or PyTorch, to compute with.

    Raises:
        ValueError: if `x` has a mask of its own, or the tuple is longer.
    """
    x, y, own_weight = _unpack(batch)
    if isinstance(x, dict):
        if MASK in x:
            raise ValueError(
                f'`remainder="pad"` adds the column {MASK!r}, so `data` must '
                "not have it. Rename that column, or choose "
                '`remainder="drop"`.'
            )
        x = {**x, MASK: mask}
    elif isinstance(x, tuple):
        x = (*x, mask)
    else:
        x = (x, mask)
    if not leaves(own_weight):
        return x, y, weight

    def zero_where_padded(leaf: Any, name: str) -> Any:
        shape = (-1,) + (1,) * (len(leaf.shape) - 1)
        kept = module.reshape(mask, shape)
        return module.where(kept, leaf, module.zeros_like(leaf))

    return x, y, map_leaves(zero_where_padded, own_weight)


def _unpack(batch: Any) -> tuple[Any, Any, Any]:
    if not isinstance(batch, tuple):
        return batch, None, None
    if not 1 <= len(batch) <= 3:
        raise ValueError(
            '`remainder="pad"` needs `data` of the form `x`, `(x, y)` or `(x, '
            f"y, sample_weight)`. Received: a tuple of {len(batch)}"
        )
    x, y, weight = (*batch, None, None)[:3]
    return x, y, weight

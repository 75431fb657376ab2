"""`full_batches`: a dataset in which every batch is full.

TensorFlow's `tf.data` does the work on every backend, since Keras takes its
datasets on all of them. It is imported when the function is called.
"""

import logging

from inbatch_neg import arguments

_logger = logging.getLogger("inbatch_neg")

# Rows in the shuffle buffer of a dataset of unknown or very large size.
_SHUFFLE_BUFFER = 2**17


def full_batches(data, batch_size, *, shuffle=False, seed=None, batched=False):
    """Returns a `tf.data.Dataset` in which every batch has `batch_size` rows.

    The rows that do not fill a batch are left out: with `shuffle=True` other
    ones in every epoch. How many is logged.

    Args:
        data: A `tf.data.Dataset` of single rows (or of batches, with
            `batched=True`), an array, a pandas frame or series, or a
            structure (dict, tuple) of arrays with the same number of rows. A
            tuple is `(x, y)` or `(x, y, sample_weight)` to `fit`.
        batch_size: Rows of every batch, an integer of 2 or more.
        shuffle: Whether to shuffle the rows, differently at every iteration.
            Arrays, frames and datasets of up to 131,072 rows are shuffled as
            a whole; a larger dataset, or one of unknown size, through a
            buffer of 131,072 rows.
        seed: Integer that makes the order of all epochs reproducible.
        batched: Whether `data` is a dataset of batches, which are regrouped.

    Returns:
        A `tf.data.Dataset` for `fit` on any backend, prefetched. The batch
        size of every element is static.

    Raises:
        ValueError: if there are fewer rows than `batch_size`, which would be
            an empty epoch: at once, or at the first iteration for a dataset
            of unknown size (its first rows are then read twice). For arrays
            of different lengths.
        TypeError: for data of another kind.

    Example:
    >>> import numpy as np
    >>> pairs = {"user": np.arange(100), "item": np.arange(100)}
    >>> dataset = full_batches(pairs, 32, shuffle=True, seed=1)
    >>> len(dataset), dataset.element_spec["user"].shape
    (3, TensorShape([32]))
    """
    import tensorflow as tf

    batch_size = arguments.integer("batch_size", batch_size, minimum=2)
    arguments.flag("shuffle", shuffle)
    arguments.flag("batched", batched)
    if seed is not None:
        seed = arguments.integer("seed", seed, minimum=0, otherwise=" or None")
    if isinstance(data, tf.data.Dataset):
        batches = _from_dataset(data, batch_size, shuffle, seed, batched)
    elif batched:
        raise TypeError(
            "`batched=True` says that `data` is a tf.data.Dataset of batches. "
            f"Received: data of type {type(data).__name__}"
        )
    else:
        batches = _from_arrays(data, batch_size, shuffle, seed)
    batches = batches.prefetch(tf.data.AUTOTUNE)
    if int(batches.cardinality()) < 0:
        _refuse_empty(batches, batch_size)
    return batches


def _from_arrays(data, batch_size, shuffle, seed):
    import tensorflow as tf

    arrays = _as_arrays(data)
    lengths = {len(array) for array in tf.nest.flatten(arrays)}
    if len(lengths) != 1:
        raise ValueError(
            "The arrays in `data` must have the same number of rows. "
            f"Received: {sorted(lengths)} rows"
        )
    (rows,) = lengths
    _check_rows(rows, batch_size, shuffle)
    # Shuffling numbers and gathering whole batches is many times faster than
    # shuffling the rows themselves.
    places = tf.data.Dataset.range(rows)
    if shuffle:
        places = places.shuffle(rows, seed, reshuffle_each_iteration=True)
    places = places.batch(batch_size, drop_remainder=True)
    return places.map(
        lambda batch: tf.nest.map_structure(
            lambda array: tf.gather(array, batch), arrays
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def _as_arrays(data):
    """Returns the same structure of tensors."""
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        data = {name: data[name].to_numpy() for name in data.columns}
    elif hasattr(data, "to_numpy"):
        data = data.to_numpy()
    elif isinstance(data, dict):
        return {name: _as_arrays(value) for name, value in data.items()}
    elif isinstance(data, tuple):
        return tuple(_as_arrays(value) for value in data)
    if isinstance(data, dict):
        return {name: _tensor(value) for name, value in data.items()}
    return _tensor(data)


def _tensor(array):
    import tensorflow as tf

    if isinstance(array, (str, bytes)) or not (
        hasattr(array, "shape") or isinstance(array, list)
    ):
        raise TypeError(
            "`data` must be a tf.data.Dataset, an array, a pandas frame, or a "
            f"dict or tuple of these. Received: {type(array).__name__}"
        )
    tensor = tf.convert_to_tensor(array)
    if tensor.shape.rank == 0:
        raise ValueError(
            "The arrays in `data` must have rows. Received: a scalar"
        )
    return tensor


def _from_dataset(dataset, batch_size, shuffle, seed, batched):
    rows = dataset.unbatch() if batched else dataset
    size = int(rows.cardinality())
    if size >= 0:
        _check_rows(size, batch_size, shuffle)
    if shuffle:
        buffer = min(size, _SHUFFLE_BUFFER) if size > 0 else _SHUFFLE_BUFFER
        rows = rows.shuffle(buffer, seed, reshuffle_each_iteration=True)
    elif batched:
        # Regroups whole batches, without taking them apart.
        rows = dataset.rebatch(batch_size, drop_remainder=True)
    if shuffle or not batched:
        rows = rows.batch(batch_size, drop_remainder=True)
    return rows


def _check_rows(rows, batch_size, shuffle):
    if rows < batch_size:
        raise ValueError(_too_few(batch_size) + f" Received: {rows} rows")
    left_out = rows % batch_size
    if left_out and shuffle:
        _logger.info(
            "full_batches leaves out %d of %d rows an epoch, other ones in "
            "every epoch.",
            left_out,
            rows,
        )
    elif left_out:
        _logger.warning(
            "full_batches leaves out the last %d of %d rows in every epoch. "
            "Shuffle the data to see them all.",
            left_out,
            rows,
        )


def _too_few(batch_size):
    return (
        f"`data` must have at least `batch_size` rows, {batch_size}, or an "
        "epoch is empty. Choose a smaller batch size."
    )


def _refuse_empty(dataset, batch_size):
    """Lets the iterations of a dataset of unknown size fail if it is empty.

    An error raised inside of tf.data would not be a `ValueError`, so the
    dataset gets an `__iter__` that looks for a first batch.
    """
    kind = type(dataset)

    class FullBatches(kind):
        def __iter__(self):
            if not self.looked:
                for _ in self.take(1):
                    break
                else:
                    raise ValueError(
                        _too_few(batch_size) + " Received: fewer rows"
                    )
                self.looked = True
            return super().__iter__()

    dataset.looked = False
    dataset.__class__ = FullBatches

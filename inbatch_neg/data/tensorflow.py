"""`tf.data`: datasets as a source, and as the result on TensorFlow."""

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from inbatch_neg.data import arrays, columns, nests
from inbatch_neg.data.options import SHUFFLE_BUFFER, Options, batch_hint
from inbatch_neg.data.padding import marked
from inbatch_neg.data.stream import Stream, read_to_end

_logger = logging.getLogger("inbatch_neg")


def deliver(source: arrays.Rows | Stream) -> tf.data.Dataset:
    """Returns a dataset whose elements declare their number of rows."""
    if isinstance(source, arrays.Rows):
        return _from_rows(source)
    return _from_stream(source)


def _from_rows(rows: arrays.Rows) -> tf.data.Dataset:
    """Returns a dataset of rows in memory, gathered a batch at a time."""
    options = rows.options
    tensors = nests.map_leaves(
        lambda array, name: tf.convert_to_tensor(array), rows.arrays
    )
    size, batches = options.batch_size, options.num_batches(rows.rows)
    dataset = tf.data.Dataset.range(batches)
    if options.shuffle:
        dataset = tf.data.Dataset.zip((dataset, _shuffled_places(rows)))

    def gather(batch: tf.Tensor, places: Any = None) -> Any:
        start = batch * options.global_size + options.offset
        in_order = start + tf.range(size, dtype=tf.int64)
        if places is None:
            places = tf.minimum(in_order, rows.rows - 1)
        result = nests.map_leaves(
            lambda tensor, name: tf.gather(tensor, places), tensors
        )
        return _marked(result, in_order < rows.rows) if options.pad else result

    return dataset.map(gather, num_parallel_calls=tf.data.AUTOTUNE).prefetch(
        tf.data.AUTOTUNE
    )


def _shuffled_places(rows: arrays.Rows) -> tf.data.Dataset:
    """Returns a dataset of the row indices of each batch.

    NumPy makes the order once per iteration, as on the other backends.
    """
    options = rows.options
    seed, epochs = options.order_seed(), itertools.count()
    shape = (options.num_batches(rows.rows), options.batch_size)

    def order() -> np.ndarray:
        return arrays.places_of_batches(rows, seed, next(epochs))

    def batches(_: tf.Tensor) -> tf.data.Dataset:
        dtype = tf.int32 if rows.rows < 2**31 else tf.int64
        places = tf.numpy_function(order, [], dtype)
        return tf.data.Dataset.from_tensor_slices(
            tf.ensure_shape(places, shape)
        )

    return (
        tf.data.Dataset.range(1)
        .flat_map(batches)
        .apply(tf.data.experimental.assert_cardinality(shape[0]))
    )


def _marked(batch: Any, mask: tf.Tensor) -> Any:
    return marked(batch, mask, tf.cast(mask, tf.float32), tf)


def _from_stream(stream: Stream) -> tf.data.Dataset:
    """Returns a dataset of the batches of a stream.

    Reads a batch at once, to learn its structure.

    Raises:
        ValueError: if there are fewer rows than a batch.
    """
    number_of_batches = stream.num_batches()
    if stream.options.pad and not (stream.endless or stream.once):
        number_of_batches = stream.count()  # see _count_for_keras
    opened = stream.next_epoch()
    first = next(opened)
    # Some data can be read only once, so the first epoch continues here.
    waiting: list[Iterator[Any]] = [itertools.chain([first], opened)]
    if stream.options.first_epoch.is_function:  # which fit's callbacks may set
        del opened
        waiting = [stream.next_epoch(again=True)]

    def batches() -> Iterator[Any]:
        following = waiting.pop if waiting else stream.next_epoch
        for batch in read_to_end(following(), 1):
            yield tuple(nests.leaves(batch))

    dataset = tf.data.Dataset.from_generator(
        batches,
        output_signature=tuple(
            tf.TensorSpec(leaf.shape, _dtype(leaf))
            for leaf in nests.leaves(first)
        ),
    )
    # The structure is restored here, since a generator cannot yield None.
    dataset = dataset.map(lambda *leaves: nests.fill(first, leaves))
    if number_of_batches is not None:
        dataset = dataset.apply(
            tf.data.experimental.assert_cardinality(number_of_batches)
        )
    return dataset.prefetch(tf.data.AUTOTUNE)


def _dtype(leaf: np.ndarray) -> tf.DType:
    return tf.string if leaf.dtype.kind in "OSU" else tf.as_dtype(leaf.dtype)


def from_dataset(
    dataset: tf.data.Dataset, options: Options, batched: bool
) -> tf.data.Dataset:
    """Returns the dataset's rows in full batches.

    Args:
        dataset: Dataset of rows or of batches.
        options: The `Options`.
        batched: Whether it holds batches.

    Raises:
        ValueError: if there are fewer rows than a batch. If the size is
            unknown, one batch is read to see it.
    """
    options.refuse_first_epoch(
        "a tf.data.Dataset", "Pass its rows as arrays or as parquet files."
    )
    if options.columns is not None:
        dataset = _map(dataset, lambda x: nests.select(x, options.columns))
    _check_elements(dataset.element_spec, batched)
    rows = dataset.unbatch() if batched else dataset
    size = int(rows.cardinality())
    shapes = [] if batched else _shapes(dataset.element_spec)
    options.compare(size if size >= 0 else None)
    options.check_rows(
        size if size >= 0 else _count(rows.take(options.global_size)),
        lambda: batch_hint(shapes),
        log=size >= 0,
    )
    if options.shuffle:
        buffer = min(size, SHUFFLE_BUFFER) if size > 0 else SHUFFLE_BUFFER
        rows = rows.shuffle(buffer, options.seed, reshuffle_each_iteration=True)
    drop = size >= 0 and not options.pad
    if _may_differ(rows.element_spec):
        batches = rows.ragged_batch(options.global_size, drop)
        batches = _map(batches, lambda x: nests.map_leaves(_dense, x))
    elif batched and not options.shuffle:
        # Regroups the batches without splitting them into rows.
        batches = dataset.rebatch(options.global_size, drop_remainder=drop)
    else:
        batches = rows.batch(options.global_size, drop_remainder=drop)
    if options.pad:
        batches = _count_for_keras(batches)
        batches = _map(batches, lambda x: _padded(x, options.global_size))
    elif not drop:
        batches = _without_remainder(batches, options)
    if options.processes > 1:
        part = slice(options.offset, options.offset + options.batch_size)
        batches = _map(
            batches,
            lambda x: nests.map_leaves(lambda leaf, name: leaf[part], x),
        )
    return batches.prefetch(tf.data.AUTOTUNE)


def _may_differ(spec: Any) -> bool:
    """Returns whether rows of known rank may have different shapes."""
    shapes = [tensor.shape for tensor in _tensors(spec)]
    return all(shape.rank is not None for shape in shapes) and not all(
        shape.is_fully_defined() for shape in shapes
    )


def _dense(leaf: Any, name: str) -> tf.Tensor:
    """Returns a column of a batch; refuses rows of unequal length by name."""
    if not isinstance(leaf, tf.RaggedTensor):
        return leaf
    tensor = leaf.to_tensor()
    equal = tf.equal(tf.size(tensor), tf.size(leaf.flat_values))
    tf.debugging.Assert(equal, [columns.refusal(name, columns.UNEQUAL)])
    return tensor


def _count(dataset: tf.data.Dataset) -> int:
    """Returns the number of elements, by reading them."""
    zero = tf.constant(0, tf.int64)
    return int(dataset.reduce(zero, lambda number, *_: number + 1))


def _map(
    dataset: tf.data.Dataset, function: Callable[[Any], Any]
) -> tf.data.Dataset:
    """Returns `function` of each element, in one argument.

    `tf.data` passes the entries of a tuple as arguments, also those of a tuple
    of one entry, and anything else as one argument.
    """
    is_tuple = type(dataset.element_spec) is tuple
    return dataset.map(
        lambda *values: function(values if is_tuple else values[0])
    )


def _check_elements(spec: Any, batched: bool) -> None:
    """Refuses what cannot be batched, and batches passed as rows."""

    def check(leaf: Any, name: str) -> None:
        if isinstance(leaf, (tf.RaggedTensorSpec, tf.SparseTensorSpec)):
            what = f"elements of type {type(leaf).__name__}"
            raise TypeError(columns.refusal(name, what))

    nests.map_leaves(check, nests.as_nest(spec))
    if batched:
        return
    shapes = _shapes(spec)
    if shapes and all(shape and shape[0] is None for shape in shapes):
        raise ValueError(
            "The elements of `data` look like batches: their first dimension "
            "is unknown. Pass `batched=True` if they are batches; if they are "
            "rows, declare their shape with `tf.ensure_shape`. "
            f"Received: element_spec={spec}"
        )
    # Rows may be vectors of the same length, but rarely vectors of ids.
    if any(
        tensor.shape.rank == 1 and not tensor.dtype.is_floating
        for tensor in _tensors(spec)
    ):
        hint = batch_hint(shapes)
        if hint and len(shapes) > 1:
            _logger.warning("full_batches got rows that are vectors.%s", hint)


def _tensors(spec: Any) -> list[tf.TensorSpec]:
    """Returns the specs of tensors, which have a shape."""
    leaves = nests.leaves(spec)
    return [leaf for leaf in leaves if isinstance(leaf, tf.TensorSpec)]


def _shapes(spec: Any) -> list[Any]:
    shapes = [tensor.shape for tensor in _tensors(spec)]
    return [() if shape.rank is None else tuple(shape) for shape in shapes]


def _count_for_keras(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Counts the batches by reading them once, if their number is unknown.

    On TensorFlow, Keras runs one more step to find an unknown end. The static
    number of rows of that step would count in the mean loss of `evaluate`.
    """
    if batches.cardinality() != tf.data.UNKNOWN_CARDINALITY:
        return batches
    number = _count(batches)
    return batches.apply(tf.data.experimental.assert_cardinality(number))


def _padded(batch: Any, batch_size: int) -> Any:
    """Returns a batch filled up with its last row, weights and mask."""
    rows = tf.shape(nests.leaves(batch)[0])[0]
    places = tf.minimum(tf.range(batch_size), rows - 1)
    batch = nests.map_leaves(lambda leaf, name: tf.gather(leaf, places), batch)
    return _marked(batch, tf.range(batch_size) < rows)


def _without_remainder(
    batches: tf.data.Dataset, options: Options
) -> tf.data.Dataset:
    """Leaves out a partial batch of data of unknown size; logs it once."""
    logged: list[bool] = []

    def log(full: np.ndarray, left_out: np.ndarray) -> np.bool_:
        if not logged:
            logged.append(True)
            rows = int(full) * options.global_size + int(left_out)
            options.log_left_out(rows)
        return np.bool_(False)

    def is_full(number: tf.Tensor, element: Any) -> tf.Tensor:
        rows = tf.shape(nests.leaves(element)[0])[0]
        return tf.cond(
            rows == options.global_size,
            lambda: True,
            lambda: tf.ensure_shape(
                tf.numpy_function(log, [number, rows], tf.bool), ()
            ),
        )

    def declare(number: tf.Tensor, element: Any) -> Any:
        del number
        return nests.map_leaves(
            lambda leaf, name: tf.ensure_shape(
                leaf, [options.global_size, *leaf.shape[1:]]
            ),
            element,
        )

    return batches.enumerate().filter(is_full).map(declare)

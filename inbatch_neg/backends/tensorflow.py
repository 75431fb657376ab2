"""TensorFlow: strings, unknown sizes, graphs."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf
from keras import ops

from inbatch_neg.backends import base
from inbatch_neg.types import Size, Tensor


class Backend(base.Backend):
    """TensorFlow, eager and in `tf.function`."""

    name = "tensorflow"
    id_dtypes = (*base.Backend.id_dtypes, "uint64", "string")

    def is_readable(self, tensor: Tensor) -> bool:
        """True for eager tensors."""
        return tf.executing_eagerly() and hasattr(tensor, "numpy")

    def is_on_gpu(self, tensor: Tensor) -> bool:
        """Asks an eager tensor; a graph goes to a GPU if there is one."""
        if self.is_readable(tensor):
            return "CPU" not in tensor.device
        return _has_gpu()

    def update_rows(self, tensor: Tensor, start: Size, rows: Tensor) -> Tensor:
        """Scatters the rows: a slice update would copy the whole tensor."""
        indices = start + ops.arange(ops.shape(rows)[0], dtype="int32")
        return ops.scatter_update(tensor, indices[:, None], rows)

    def factorize(self, ids: Tensor) -> Tensor:
        """Also takes strings."""
        if ids.dtype == tf.string:
            return tf.unique(ids).idx
        # Before 3.6, Keras' own calls `len` on a symbolic tensor.
        return tf.searchsorted(tf.sort(ids), ids)

    def hash_strings(self, ids: Tensor) -> Tensor:
        """Hashes strings; equal ones stay equal."""
        if ids.dtype != tf.string:
            return ids
        return tf.strings.to_hash_bucket_fast(ids, 2**63 - 1)

    def compile(self, function: Callable, xla: bool = True) -> Callable:
        """Compiles with or without XLA."""
        return tf.function(function, jit_compile=xla)

    def with_control_dependency(
        self, tensor: Tensor, earlier: Tensor
    ) -> Tensor:
        """Orders the operations of a graph.

        A graph starts every operation that is ready, so that the intermediate
        tensors of all its parts would be in memory at the same time.
        """
        if tf.executing_eagerly():
            return tensor
        with tf.control_dependencies([earlier]):
            return tf.identity(tensor)

    def after(
        self, tensors: Sequence[Tensor]
    ) -> contextlib.AbstractContextManager:
        """Orders the operations of a graph.

        If the length of the data is unknown, the step of `fit` that finds its
        end runs the operations that need no batch.
        """
        if tf.executing_eagerly():
            return contextlib.nullcontext()
        # A control dependency on an inlined function does not wait for its
        # outputs.
        return tf.control_dependencies(
            [tf.identity(tensor) for tensor in tensors if tensor is not None]
        )

    @contextlib.contextmanager
    def full_precision_matmul(self) -> Iterator[None]:
        """Turns TensorFloat-32 off."""
        switch = tf.config.experimental
        before = switch.tensor_float_32_execution_enabled()
        switch.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            switch.enable_tensor_float_32_execution(before)

    def asserts_rows(self) -> bool:
        """True in a `tf.function`."""
        return not tf.executing_eagerly()

    def ensure_rows(
        self,
        tensors: Sequence[Tensor],
        rows: int | None,
        message: str,
        name: str,
    ) -> list[Tensor]:
        """Asserts a number of rows that is unknown while tracing.

        All tensors wait for it; otherwise an operation on another tensor could
        fail first. XLA removes assertions, and so may TensorFlow, which takes
        the size of `ensure_shape` for granted before that has run.
        """
        first = tensors[0]
        if first.shape[0] is not None:
            return list(tensors)
        options = {"message": message, "name": name}
        actual = tf.shape(first)[0]
        if rows is None:
            check = tf.debugging.assert_greater(actual, 1, **options)
            return after_check(check, tensors)
        check = tf.debugging.assert_equal(actual, rows, **options)
        shape = [rows, *first.shape[1:]]
        (first,) = after_check(check, [first])
        first = tf.ensure_shape(first, shape, name=name)
        return [first, *after_check(first, tensors[1:])]

    def ensure_at_most_rows(
        self, tensor: Tensor, rows: int, message: str
    ) -> Tensor:
        """Asserts a number of rows that is unknown while tracing."""
        if tensor.shape[0] is not None:
            return tensor
        check = tf.debugging.assert_less_equal(
            tf.shape(tensor)[0], rows, message=message
        )
        return after_check(check, [tensor])[0]


@functools.cache
def _has_gpu() -> bool:
    kinds = {device.device_type for device in tf.config.list_logical_devices()}
    return not kinds.isdisjoint({"GPU", "TPU"})


def after_check(check: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the tensors, available after the operation `check`."""
    with tf.control_dependencies([] if check is None else [check]):
        return [
            None if tensor is None else tf.identity(tensor)
            for tensor in tensors
        ]

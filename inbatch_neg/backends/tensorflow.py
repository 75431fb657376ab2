"""TensorFlow: strings, unknown sizes, graphs, distribution strategies."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from keras import ops

from inbatch_neg.backends import chunked_tensorflow, keras_internals
from inbatch_neg.backends.base import Backend
from inbatch_neg.backends.collectives import Collectives
from inbatch_neg.backends.tower_call import TowerCall, Values
from inbatch_neg.backends.types import Size, Tensor


class TensorFlowBackend(Backend):
    """TensorFlow, eager, in `tf.function`, and under `tf.distribute`."""

    name = "tensorflow"
    id_dtypes = (*Backend.id_dtypes, "uint64", "string")

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

    def string_tensor(self, strings: np.ndarray) -> Tensor:
        """Returns a tensor, since Keras does not take NumPy's strings."""
        return tf.convert_to_tensor(strings)

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

    def is_dense(self, tensor: Tensor) -> bool:
        """Refuses `RaggedTensor` and `SparseTensor`."""
        return chunked_tensorflow.is_dense(tensor)

    def run_in_chunks(
        self, call: TowerCall, chunk_size: int
    ) -> tuple[list[Tensor], Values]:
        """Two loops in a `tf.custom_gradient`."""
        return chunked_tensorflow.run_in_chunks(call, chunk_size)

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

    def ensure_rows(
        self,
        tensors: Sequence[Tensor],
        rows: int | None,
        error: Callable[[], Exception],
        label: str,
    ) -> list[Tensor]:
        """Asserts a number of rows that is unknown while tracing.

        All tensors wait for the assertion; otherwise an operation on another
        tensor could fail first. XLA removes assertions, but it reports a
        failing `ensure_shape` with its name, `label`.
        """
        first, message = tensors[0], str(error())
        # Also for a known size, so that the error of a later batch of another
        # size is translated: the step that is running keeps its own error. The
        # error of an assertion contains the message, here its beginning.
        if not tf.executing_eagerly():
            keras_internals.translate_step_error(
                (message.split(" or ")[0], label), error
            )
        if first.shape[0] is not None:
            return list(tensors)
        actual = tf.shape(first)[0]
        if rows is None:
            check = tf.debugging.assert_greater(actual, 1, message=message)
        else:
            check = tf.debugging.assert_equal(actual, rows, message=message)
        checked = _after(check, tensors)
        if rows is not None:
            shape = [rows, *first.shape[1:]]
            checked[0] = tf.ensure_shape(checked[0], shape, name=label)
        return checked

    def ensure_at_most_rows(
        self, tensor: Tensor, rows: int, message: str
    ) -> Tensor:
        """Asserts a number of rows that is unknown while tracing."""
        if tensor.shape[0] is not None:
            return tensor
        check = tf.debugging.assert_less_equal(
            tf.shape(tensor)[0], rows, message=message
        )
        return _after(check, [tensor])[0]

    def collectives(self) -> Collectives | None:
        """Returns those of a `tf.distribute` strategy with replicas."""
        # None outside of `strategy.run`.
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            return _StrategyCollectives(context)
        return None

    def replica_count(self) -> int:
        """Also counts the replicas of a strategy in symbolic calls."""
        if keras_internals.in_symbolic_call():
            return _strategy_count()
        return super().replica_count()

    def symbolic_call_sees_means(self) -> bool:
        """True under a strategy with several replicas.

        `fit` of Keras 3.15 then builds a model with the mean of the replicas'
        first batches, so ids become floats. The real inputs are checked when
        the first step is traced.
        """
        return _strategy_count() > 1


@functools.cache
def _has_gpu() -> bool:
    kinds = {device.device_type for device in tf.config.list_logical_devices()}
    return not kinds.isdisjoint({"GPU", "TPU"})


def _after(check: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the tensors, available after the assertion `check`."""
    with tf.control_dependencies([] if check is None else [check]):
        return [
            None if tensor is None else tf.identity(tensor)
            for tensor in tensors
        ]


def _strategy_count() -> int:
    return tf.distribute.get_strategy().num_replicas_in_sync


class _StrategyCollectives(Collectives):
    """`tf.distribute`, inside of `strategy.run`."""

    def __init__(self, context: tf.distribute.ReplicaContext) -> None:
        self.context = context
        self.count = context.num_replicas_in_sync
        self.index = context.replica_id_in_sync_group

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Gathers; strings as hashes, since no strategy sends strings."""
        if tensor.dtype == tf.string:
            tensor = tf.strings.to_hash_bucket_fast(tensor, 2**63 - 1)
        elif tensor.dtype.is_integer and tensor.dtype != tf.int32:
            tensor = tf.cast(tensor, tf.int64)
        rows = tensor.shape[0]
        gathered = self.context.all_gather(tensor, axis=0)
        if rows is not None:
            rows *= self.count
        return tf.ensure_shape(gathered, [rows, *tensor.shape[1:]])

    def check_same_shapes(
        self,
        tensors: Mapping[str, Tensor],
        error: Callable[[str], Exception],
    ) -> dict[str, Tensor]:
        """Compares the numbers of rows at run time.

        Nothing else can differ, since all replicas run one traced function.
        """
        sizes = tf.concat(
            [tf.shape(x)[:1] for x in tensors.values() if x is not None],
            axis=0,
        )
        gathered = self.context.all_gather(sizes[None], axis=0)
        check = tf.debugging.Assert(
            tf.reduce_all(gathered == sizes),
            [str(error("rows of all tensors by replica:")), gathered],
            summarize=-1,
        )
        return dict(zip(tensors, _after(check, list(tensors.values()))))

"""What Keras does not hide of its engines: TensorFlow, JAX and PyTorch.

With the data helper, the only place that knows a backend by name. No engine
is imported unless Keras runs on it.
"""

import contextlib
import functools
import sys
import threading

import keras
import numpy as np
from keras import ops


def in_symbolic_call():
    """Whether Keras is tracing shapes alone, so that there is no batch yet."""
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None


def dense_codes(ids):
    """Returns int32 codes (n,), equal exactly where the ids are equal.

    Comparing int32 is faster than int64 or strings, and leaves -1 free for
    "no id". The code of an id is its first place among the sorted ids.
    """
    if keras.backend.backend() != "tensorflow":
        return ops.cast(ops.searchsorted(ops.sort(ids), ids), "int32")
    import tensorflow as tf

    if ids.dtype == tf.string:
        return tf.unique(ids).idx
    # Keras' own, before 3.6, takes the length of a symbolic tensor.
    return tf.searchsorted(tf.sort(ids), ids)


def top_k(scores, k):
    """Returns the k highest scores of each row and their int32 places.

    Of equal scores the one with the lower place comes first, which PyTorch
    does not promise: there a row with more than k scores as high as its k-th
    is sorted.
    """
    best, places = ops.top_k(scores, k)
    if keras.backend.backend() == "torch":
        fitting = (scores >= best[:, -1:]).sum(dim=1) > k
        if bool(fitting.any()):
            order = scores.sort(dim=1, descending=True, stable=True)
            best, places = order.values[:, :k], order.indices[:, :k]
    return best, ops.cast(places, "int32")


def put_rows(tensor, start, rows):
    """Returns `tensor` with these rows from `start` on; it is used up.

    In a loop that owns the tensor: a slice update would copy it every time on
    PyTorch and TensorFlow.
    """
    if keras.backend.backend() == "torch":
        tensor[start : start + rows.shape[0]] = rows
        return tensor
    if keras.backend.backend() == "tensorflow":
        places = start + ops.arange(ops.shape(rows)[0], dtype="int32")
        return ops.scatter_update(tensor, places[:, None], rows)
    rest = (0,) * (len(tensor.shape) - 1)
    return ops.slice_update(tensor, (start, *rest), rows)


def after(tensor, earlier):
    """Returns `tensor`, to be used once `earlier` is there.

    TensorFlow starts whatever is ready, so that the intermediate tensors of
    all parts of a graph would be in memory at the same time.
    """
    if keras.backend.backend() != "tensorflow":
        return tensor
    import tensorflow as tf

    with tf.control_dependencies([earlier]):
        return tf.identity(tensor)


def product(left, right):
    """Returns the matrix product of (R, C) and (C, D), in the dtype of both."""
    if keras.backend.backend() != "torch":
        return ops.matmul(left, right)
    import torch

    # Keras' own is float32 for float64, and autocast rounds to bfloat16.
    device = left.device.type
    if not torch.is_autocast_enabled(device):
        return left @ right
    with torch.autocast(device, enabled=False):
        return left @ right


def constant_product(left, right):
    """Returns `product(left, right)`, which nobody is to differentiate."""
    if keras.backend.backend() == "torch" and _has_onednn(left, right):
        import torch

        # Linear layer without bias, attribute or algorithm.
        nothing = (None, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise(left, right.T, *nothing)
    return product(left, right)


def add_product(tensor, left, right):
    """Returns (D, C) `tensor` + the product of (D, R) and (R, C).

    `tensor` is used up, and nobody is to differentiate it.
    """
    added = constant_product(left, right)
    if keras.backend.backend() == "torch":
        return tensor.add_(added)
    return tensor + added


def _has_onednn(*tensors):
    """Whether to multiply by oneDNN on PyTorch's CPU.

    PyTorch asks MKL for products of float32, which on AMD processors runs at
    half of oneDNN's speed. What it has of oneDNN is the linear layer of its
    compiler, which has no gradient, and refuses empty matrices and rows that
    share memory.
    """
    import torch

    suits = (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and all(
            tensor.device.type == "cpu"
            and tensor.dtype == torch.float32
            and tensor.numel() > 0
            and (_has_rows_apart(tensor) or _has_rows_apart(tensor.T))
            for tensor in tensors
        )
    )
    if suits:
        _keep_freed_memory()
    return suits


def _has_rows_apart(tensor):
    stride, step = tensor.stride()
    return step == 1 and stride >= tensor.shape[1]


@functools.cache
def _keep_freed_memory():
    """Lets glibc keep the memory of a chunk for the next one.

    It gives freed memory back to the system, and gets it again page by page,
    in more time than a product takes, until a larger block has been freed.
    Blocks above 32 MB are always given back: see `largest_chunk`.
    """
    import torch

    torch.empty(31 * 2**20, dtype=torch.uint8)


def largest_chunk(tensor):
    """Returns the most numbers that a chunk should have on the device."""
    if keras.backend.backend() == "torch" and tensor.device.type == "cpu":
        return 2**22  # 16 MB of float32, far from where glibc gives it back
    return 2**31 - 1


def largest_small_table():
    """Returns how many scores are better kept than walked over.

    Up to these the engine's own derivative is faster, and the memory is no
    matter. PyTorch runs each operation from Python, so that the walk has to
    save more to pay for its own ones.
    """
    return 2**18 if keras.backend.backend() == "torch" else 2**16


def integer_ids(ids):
    """Returns the ids, strings as integers: 63 bits, equal ones stay so."""
    if keras.backend.standardize_dtype(ids.dtype) != "string":
        return ids
    import tensorflow as tf

    return tf.strings.to_hash_bucket_fast(ids, 2**63 - 1)


def widest_integer():
    """Returns "int64", or "int32" where the engine has nothing wider."""
    widest = ops.convert_to_tensor(np.zeros(1, "int64"))
    return keras.backend.standardize_dtype(widest.dtype)


def require_at_most_rows(tensor, rows, message):
    """Returns `tensor`, refused at run time if it has more than `rows`."""
    if tensor.shape[0] is not None:
        return tensor
    import tensorflow as tf

    check = tf.debugging.assert_less_equal(
        tf.shape(tensor)[0], rows, message=message
    )
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(tensor)


def require_rows(tensors, rows, message, label):
    """Returns the tensors of a batch, refused at run time if it is partial.

    Only TensorFlow has batches of unknown size. All tensors wait for the
    check, or some operation on another one would fail before it.

    Args:
        tensors: dict of tensors or None, among them "query" (B, D).
        rows: The number of rows that B must be, then static in "query"; or
            None, for 2 or more.
        message: Of the error.
        label: A short form of it, as the name of an operation. XLA removes
            the assertion but reports the operation that cannot hold.
    """
    query = tensors["query"]
    if query.shape[0] is not None:
        return tensors
    import tensorflow as tf

    found = tf.shape(query)[0]
    if rows is None:
        check = tf.debugging.assert_greater(found, 1, message=message)
    else:
        check = tf.debugging.assert_equal(found, rows, message=message)
    with tf.control_dependencies([check] if check is not None else []):
        tensors = {
            name: None if tensor is None else tf.identity(tensor)
            for name, tensor in tensors.items()
        }
    if rows is not None:
        tensors["query"] = tf.ensure_shape(
            tensors["query"], [rows, *query.shape[1:]], name=label
        )
    return tensors


def give_back_weights():
    """Puts a model's weights back before an error leaves a JAX step.

    While `fit`, `evaluate` and `predict` run on JAX, Keras keeps the weights
    in a local variable `state` and empties the model. An exception from
    `evaluate` or from the first step of `fit` loses that variable, and with it
    the trained model. So, for an error that the user is meant to mend and go
    on from, the state is assigned back first. The scope of the stateless step
    and the trace are local to the thread, hence a thread of its own.
    """
    if keras.backend.backend() != "jax":
        return
    frame = sys._getframe()
    while frame is not None:
        model = frame.f_locals.get("self")
        state = frame.f_locals.get("state")
        if isinstance(model, keras.Model) and isinstance(state, tuple):
            if frame.f_code.co_name in _VARIABLES_IN_STATE:
                names = _VARIABLES_IN_STATE[frame.f_code.co_name]
                thread = threading.Thread(
                    target=_assign, args=(model, names, state)
                )
                thread.start()
                thread.join()
                return
        frame = frame.f_back


_VARIABLES_IN_STATE = {
    "fit": ("trainable", "non_trainable", "optimizer", "metrics"),
    "train_on_batch": ("trainable", "non_trainable", "optimizer", "metrics"),
    "evaluate": ("trainable", "non_trainable", "metrics"),
    "test_on_batch": ("trainable", "non_trainable", "metrics"),
    "predict": ("trainable", "non_trainable"),
    "predict_on_batch": ("trainable", "non_trainable"),
}


def _assign(model, names, state):
    variables = {
        "trainable": model.trainable_variables,
        "non_trainable": model.non_trainable_variables,
        "optimizer": model.optimizer.variables if model.optimizer else [],
        "metrics": model.metrics_variables,
    }
    for name, values in zip(names, state):
        for variable, value in zip(variables[name], values):
            variable.assign(value)


def compiled(function, xla=True):
    """Returns `function` of tensors, compiled where the engine can.

    XLA merges elementwise steps and sums into one loop over a matrix. On
    TensorFlow `xla` says whether it is used; JAX has nothing else.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=xla)
    return function


@contextlib.contextmanager
def float32_products():
    """While inside, a GPU multiplies float32 matrices with all their bits."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        with jax.default_matmul_precision("float32"):
            yield
    elif backend == "tensorflow":
        import tensorflow as tf

        switch = tf.config.experimental
        before = switch.tensor_float_32_execution_enabled()
        switch.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            switch.enable_tensor_float_32_execution(before)
    else:
        import torch

        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.no_grad():
                yield
        finally:
            torch.set_float32_matmul_precision(before)

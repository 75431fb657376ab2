"""Negatives from every replica: what a replica must hear from the others.

The only place that knows the engines' collectives. The order of the gathered
rows is cyclic: a replica's own rows first, then those of the replica after
it. So row i's positive is still candidate i, candidate (i + j) mod G is the
one j places further in the global batch of G rows, and the maths needs to
know nothing of replicas.
"""

import zlib

import keras
from keras import ops

from inbatch_neg import engines
from inbatch_neg.partial_batch import PartialBatchError

# Of a batch: these have one entry per candidate, the others one per row.
_OF_CANDIDATES = (
    "candidate",
    "candidate_ids",
    "candidate_sampling_probability",
    "candidate_mask",
)


def count():
    """Returns how many replicas hold one batch together.

    1 on JAX, where the tensors are those of the global batch already.
    """
    if keras.backend.backend() == "tensorflow" and engines.in_symbolic_call():
        return _strategy_count()
    collectives = _collectives()
    return 1 if collectives is None else collectives.count


def gather(tensors):
    """Returns the rows of the global batch, in its order, without gradient.

    Equal on every replica, so that what is computed from them stays equal.

    Args:
        tensors: Dict of tensors with one entry per row of this replica, which
            `require_alike` let pass.
    """
    collectives = _collectives()
    if collectives is None:
        return tensors
    return {
        name: collectives.all_gather(ops.stop_gradient(tensor))
        for name, tensor in tensors.items()
    }


def own_share(tensor):
    """Returns this replica's part of a tensor that is equal on all of them.

    What each replica adds to its candidates, `run` gathers again to the whole.

    Args:
        tensor: Its first dimension is static, a multiple of `count()`.
    """
    collectives = _collectives()
    if collectives is None:
        return tensor
    rows = tensor.shape[0] // collectives.count
    rest = (0,) * (len(tensor.shape) - 1)
    return ops.slice(
        tensor, (collectives.index * rows, *rest), (rows, *tensor.shape[1:])
    )


def shown_a_mean():
    """Whether a symbolic call may see floats in the place of integers.

    Under a `tf.distribute` strategy, `fit` of Keras 3.15 builds a model with
    the mean of the replicas' first batches, so ids and counts become floats.
    What comes in is checked when the first step is traced.
    """
    return keras.backend.backend() == "tensorflow" and _strategy_count() > 1


def _strategy_count():
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def require_alike(batch):
    """Returns the batch, refused on every replica if one's has other sizes.

    On JAX there is but one, global batch.
    """
    collectives = _collectives()
    return batch if collectives is None else collectives.require_alike(batch)


def run(function, batch, uniform=None):
    """Returns `function(batch, uniform)`, with everyone's candidates.

    Args:
        function: Takes the batch, the number of rows of the global batch and
            `uniform`, and returns a tensor with one entry per row. It is
            called once on every replica, with the replica's own queries and
            weights, and with the candidates, ids, probabilities and masks of
            the global batch: own rows first, then the next replica's and so
            on, then the extra candidates, those of the first replica first.
        batch: Dict of checked tensors or None, the layer's arguments.
        uniform: Tensor that the first replica decides on for all, or None.
    """
    if keras.backend.backend() == "jax":
        return _run_on_jax(function, batch, uniform)
    collectives = _collectives()
    rows = ops.shape(batch["query"])[0]
    if collectives is None:
        return function(batch, rows, uniform)
    if uniform is not None:
        own = ops.shape(uniform)[0]
        uniform = collectives.all_gather(uniform)[:own]
    batch = _with_all_candidates(batch, collectives)
    return function(batch, rows * collectives.count, uniform)


def _with_all_candidates(batch, collectives):
    rows = ops.shape(batch["query"])[0]
    batch = dict(batch)
    for name in (*_OF_CANDIDATES, "query_ids"):
        if batch[name] is not None:
            batch[name] = _own_first(batch[name], rows, collectives)
    return batch


def _own_first(tensor, rows, collectives):
    """Returns the rows of all replicas, own ones first, then the extras."""
    own, rest = ops.shape(tensor)[0], tuple(tensor.shape[1:])
    was_bool = keras.backend.standardize_dtype(tensor.dtype) == "bool"
    if was_bool:  # which some engines do not send
        tensor = ops.cast(tensor, "int32")
    every = collectives.all_gather(tensor)
    every = ops.reshape(every, (collectives.count, own, *rest))
    result = ops.roll(every[:, :rows], -collectives.index, axis=0)
    result = ops.reshape(result, (-1, *rest))
    if not _same(own, rows):
        extra = ops.reshape(every[:, rows:], (-1, *rest))
        result = ops.concatenate([result, extra])
    return ops.cast(result, "bool") if was_bool else result


def _same(one, other):
    return isinstance(one, int) and isinstance(other, int) and one == other


def _collectives():
    """Returns those of the engine, or None if there is one replica.

    None on JAX, whose tensors are those of the global batch.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # None outside of `strategy.run`, where no replica trains.
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            return _TensorFlow(context)
    elif keras.backend.backend() == "torch":
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            if distributed.get_world_size() > 1:
                return _Torch(distributed)
    return None


def _unequal(received):
    return (
        "Every replica must bring the same number of rows, candidates and "
        "dimensions, the same optional arguments and dtypes, to a global "
        "batch. "
        "Fix: batch with `inbatch_neg.full_batches`, with a global batch size "
        "that the number of replicas divides. "
        f"Received: {received}"
    )


class _TensorFlow:
    """`tf.distribute`, inside of `strategy.run`."""

    def __init__(self, context):
        self.context = context
        self.count = context.num_replicas_in_sync
        self.index = context.replica_id_in_sync_group

    def all_gather(self, tensor):
        import tensorflow as tf

        if tensor.dtype == tf.string:
            # No engine sends strings. 63 bits: ids that are equal stay so.
            tensor = tf.strings.to_hash_bucket_fast(tensor, 2**63 - 1)
        elif tensor.dtype.is_integer and tensor.dtype != tf.int32:
            tensor = tf.cast(tensor, tf.int64)
        rows = tensor.shape[0]
        every = self.context.all_gather(tensor, axis=0)
        if rows is not None:
            rows *= self.count
        return tf.ensure_shape(every, [rows, *tensor.shape[1:]])

    def require_alike(self, batch):
        """Returns the batch, refused at run time if a replica's differs."""
        import tensorflow as tf

        # Only sizes of rows can differ: one traced function runs everywhere.
        sizes = tf.concat(
            [tf.shape(x)[:1] for x in batch.values() if x is not None], axis=0
        )
        every = self.context.all_gather(sizes[None], axis=0)
        check = tf.debugging.Assert(
            tf.reduce_all(every == sizes),
            [_unequal("rows of all tensors by replica:"), every],
            summarize=-1,
        )
        with tf.control_dependencies([check] if check is not None else []):
            return {
                name: value if value is None else tf.identity(value)
                for name, value in batch.items()
            }


class _Torch:
    """`torch.distributed`, in its default process group."""

    def __init__(self, distributed):
        self.distributed = distributed
        self.count = distributed.get_world_size()
        self.index = distributed.get_rank()

    def all_gather(self, tensor):
        import torch

        if tensor.dtype == torch.int16:  # which gloo does not send
            tensor = tensor.int()
        return _torch_gather().apply(tensor.contiguous(), self)

    def gather_values(self, tensor):
        # The name since torch 2.13, and the one before.
        gather = getattr(self.distributed, "all_gather_single", None)
        gather = gather or self.distributed.all_gather_into_tensor
        shape = (self.count * tensor.shape[0], *tensor.shape[1:])
        every = tensor.new_empty(shape)
        gather(every, tensor)
        return every

    def require_alike(self, batch):
        """Returns the batch, or raises on every replica if one's differs."""
        import torch

        # As long on every replica, whatever it was given.
        own = []
        for tensor in batch.values():
            shape = () if tensor is None else tensor.shape
            own += [len(shape), *shape[:2], *[0] * (2 - len(shape))]
            own.append(0 if tensor is None else _dtype_number(tensor))
        device = next(x.device for x in batch.values() if x is not None)
        own = torch.tensor([own], dtype=torch.int64, device=device)
        every = self.gather_values(own)
        differ = (every != every[:1]).any(0).nonzero()
        if len(differ):
            first = int(differ[0])
            tensor, what = divmod(first, len(_COMPARED))
            received = f"{_COMPARED[what]} of `{list(batch)[tensor]}` by "
            received += f"replica: {every[:, first].tolist()}"
            raise PartialBatchError(_unequal(received))
        return batch


# What a process of PyTorch tells the others about each of its tensors.
_COMPARED = ("rank (0: not given)", "rows", "dimensions", "dtype, as a hash,")


def _dtype_number(tensor):
    # zlib, since Python's own hash of a string differs by process.
    return zlib.crc32(str(tensor.dtype).encode())


def _torch_gather():
    """Returns the differentiable gather; torch is imported when it is used."""
    global _gather_function
    if _gather_function is None:
        import torch

        class Gather(torch.autograd.Function):
            @staticmethod
            def forward(ctx, tensor, collectives):
                ctx.collectives = collectives
                return collectives.gather_values(tensor)

            @staticmethod
            def backward(ctx, upstream):
                # Each replica gets what the others' rows add to the gradient
                # of its own candidates, once, and sums it.
                collectives = ctx.collectives
                parts = torch.empty_like(upstream)
                collectives.distributed.all_to_all_single(
                    parts, upstream.contiguous()
                )
                parts = parts.reshape(
                    collectives.count, -1, *upstream.shape[1:]
                )
                return parts.sum(0), None

        _gather_function = Gather
    return _gather_function


_gather_function = None


def _run_on_jax(function, batch, uniform):
    """Runs `function` on the rows of each device of Keras' distribution.

    On JAX the tensors are global already, and what the function returns is
    too. Left alone, the compiler would cut the walk across its chunks;
    `shard_map` gives each device the rows that it holds.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return function(batch, batch["query"].shape[0], uniform)
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = distribution.device_mesh.backend_mesh
    rows = batch["query"].shape[0]
    # The devices along a model axis would repeat the same walk: they share
    # its rows where these can be divided.
    axes = (distribution.get_data_layout((rows,)).axes[0],)
    if rows % mesh.size == 0:
        axes = tuple(mesh.axis_names)
    devices = 1
    for axis in axes:
        devices *= mesh.shape[axis]
    if rows % devices:
        raise PartialBatchError(_unequal(f"{rows} rows over {devices} devices"))
    by_row, same = PartitionSpec(axes), PartitionSpec()
    own, shared = {}, {}
    for name, value in batch.items():
        if value is not None:
            own[name] = value[:rows]
            if name in _OF_CANDIDATES and value.shape[0] > rows:
                shared[name] = value[rows:]
    if uniform is not None:
        shared["uniform"] = uniform
    if not isinstance(batch["query"], jax.core.Tracer):
        own = jax.device_put(own, NamedSharding(mesh, by_row))
        shared = jax.device_put(shared, NamedSharding(mesh, same))

    def on_each(own, shared):
        everyone = dict.fromkeys(batch)
        everyone.update(own)
        everyone = _with_all_candidates(everyone, _Jax(axes, devices))
        for name in _OF_CANDIDATES:
            if name in shared:
                everyone[name] = ops.concatenate([everyone[name], shared[name]])
        return function(everyone, rows, shared.get("uniform"))

    return jax.shard_map(
        on_each,
        mesh=mesh,
        in_specs=(by_row, same),
        out_specs=by_row,
        check_vma=False,
    )(own, shared)


class _Jax:
    """The collectives inside of `shard_map`."""

    def __init__(self, axes, count):
        import jax

        self.axes = axes
        self.count = count
        self.index = jax.lax.axis_index(axes)

    def all_gather(self, tensor):
        import jax

        return jax.lax.all_gather(tensor, self.axes, tiled=True)

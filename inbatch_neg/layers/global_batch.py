"""Negatives from every replica: gathers what a replica needs.

The gathered rows are in cyclic order: a replica's own rows first, then those
of the next replica. So the positive of row i is still candidate i, candidate
(i + j) mod G is j places further in the global batch of G rows, and the maths
does not depend on replicas.
"""

from collections.abc import Callable, Sequence

import keras
from keras import ops

from inbatch_neg.layers.partial_batch import PartialBatchError
from inbatch_neg.replicas.base import Collectives, Sharding
from inbatch_neg.replicas.current import replicas
from inbatch_neg.softmax.batch import CANDIDATE_FIELDS, Batch
from inbatch_neg.types import Size, Tensor

# Takes the batch, the number of in-batch candidates and random numbers.
Maths = Callable[[Batch, Size, Tensor], Tensor]


def add_state(
    layer: keras.layers.Layer,
    name: str,
    shape: Sequence[int | None],
    dtype: str,
    initializer: str = "zeros",
) -> keras.Variable:
    """Adds a weight that is equal on every replica, and does not train."""
    return layer.add_weight(
        name=name,
        shape=shape,
        dtype=dtype,
        initializer=initializer,
        trainable=False,
        autocast=False,
        aggregation="only_first_replica",
    )


def gather(tensor: Tensor) -> Tensor:
    """Returns the rows of the global batch, in its order, without gradient.

    They are equal on every replica, and so is everything computed from them.

    Args:
        tensor: One entry per row of this replica, with as many rows as the
            tensors that `check_same_shapes` has accepted.
    """
    collectives = replicas.collectives()
    if collectives is None:
        return tensor
    return collectives.all_gather(ops.stop_gradient(tensor))


def local_shard(tensor: Tensor) -> Tensor:
    """Returns this replica's share of a tensor that is equal on all of them.

    Each replica appends its share to its candidates; `run` gathers all shares.

    Args:
        tensor: Its first dimension is static and a multiple of the number of
            replicas.
    """
    collectives = replicas.collectives()
    if collectives is None:
        return tensor
    rows = tensor.shape[0] // collectives.count
    rest = (0,) * (len(tensor.shape) - 1)
    return ops.slice(
        tensor, (collectives.index * rows, *rest), (rows, *tensor.shape[1:])
    )


def check_same_shapes(batch: Batch) -> Batch:
    """Returns the batch; raises on every replica if the shapes differ.

    Compare shapes before checking them: if one replica raised alone, the rest
    would block in the next collective.
    """
    collectives = replicas.collectives()
    if collectives is None:
        return batch
    return Batch(
        **collectives.check_same_shapes(
            batch._asdict(),
            lambda received: PartialBatchError(_unequal(received)),
        )
    )


def run(maths: Maths, batch: Batch, uniform: Tensor = None) -> Tensor:
    """Returns `maths(batch, G, uniform)`, with the candidates of all replicas.

    Args:
        maths: Called once on every replica, with the replica's own queries
            and weights, and with the candidates, ids, probabilities and masks
            of the global batch of G rows: own rows first, then the next
            replica's and so on, then the extra candidates, those of the first
            replica first. Returns a tensor with one entry per row.
        batch: The checked batch.
        uniform: Random tensor, or None. All replicas use the first one's.
    """
    rows = ops.shape(batch.query)[0]
    sharding = replicas.sharding(rows)
    if sharding is not None:
        return _run_sharded(maths, batch, uniform, sharding)
    collectives = replicas.collectives()
    if collectives is None:
        return maths(batch, rows, uniform)
    if uniform is not None:
        own = ops.shape(uniform)[0]
        uniform = collectives.all_gather(uniform)[:own]
    batch = _with_all_candidates(batch, collectives)
    return maths(batch, rows * collectives.count, uniform)


def _run_sharded(
    maths: Maths, batch: Batch, uniform: Tensor, sharding: Sharding
) -> Tensor:
    """Like `run`, for global tensors whose rows are sharded over devices."""
    rows = batch.query.shape[0]
    if rows % sharding.count:
        raise PartialBatchError(
            _unequal(f"{rows} rows over {sharding.count} devices")
        )
    fields = {k: v for k, v in batch._asdict().items() if v is not None}
    by_row = {name: value[:rows] for name, value in fields.items()}
    extra = {
        name: value[rows:]
        for name, value in fields.items()
        if name in CANDIDATE_FIELDS and value.shape[0] > rows
    }
    replicated = {"extra": extra}
    if uniform is not None:
        replicated["uniform"] = uniform

    def on_device(
        by_row: dict, replicated: dict, collectives: Collectives
    ) -> Tensor:
        gathered = _with_all_candidates(Batch(**by_row), collectives)
        gathered = gathered._replace(
            **{
                name: ops.concatenate([getattr(gathered, name), value])
                for name, value in replicated["extra"].items()
            }
        )
        return maths(gathered, rows, replicated.get("uniform"))

    return sharding.map(on_device, by_row, replicated)


def _with_all_candidates(batch: Batch, collectives: Collectives) -> Batch:
    rows = ops.shape(batch.query)[0]
    return batch._replace(
        **{
            name: _own_first(getattr(batch, name), rows, collectives)
            for name in (*CANDIDATE_FIELDS, "query_ids")
            if getattr(batch, name) is not None
        }
    )


def _own_first(tensor: Tensor, rows: Size, collectives: Collectives) -> Tensor:
    """Returns the rows of all replicas, own ones first, extra ones last."""
    own, rest = ops.shape(tensor)[0], tuple(tensor.shape[1:])
    was_bool = keras.backend.standardize_dtype(tensor.dtype) == "bool"
    if was_bool:  # some collectives do not send bools
        tensor = ops.cast(tensor, "int32")
    gathered = collectives.all_gather(tensor)
    gathered = ops.reshape(gathered, (collectives.count, own, *rest))
    result = ops.roll(gathered[:, :rows], -collectives.index, axis=0)
    result = ops.reshape(result, (-1, *rest))
    if not _same(own, rows):
        extra = ops.reshape(gathered[:, rows:], (-1, *rest))
        result = ops.concatenate([result, extra])
    return ops.cast(result, "bool") if was_bool else result


def _same(one: Size, other: Size) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one == other


def _unequal(received: str) -> str:
    return (
        "All replicas must have the same number of rows, candidates and "
        "dimensions, and the same optional arguments and dtypes. Fix: batch "
        "with `inbatch_neg.full_batches`, with a global batch size that is a "
        "multiple of the number of replicas. "
        f"Received: {received}"
    )

"""Replicas on TensorFlow: those of a `tf.distribute` strategy."""

from collections.abc import Callable, Mapping

import tensorflow as tf

from inbatch_neg import keras_private
from inbatch_neg.backends.tensorflow import after_check
from inbatch_neg.replicas import base
from inbatch_neg.replicas.base import Collectives, first_difference
from inbatch_neg.types import Tensor


class Replicas(base.Replicas):
    """The replicas of the strategy in whose scope a step runs."""

    def collectives(self) -> Collectives | None:
        """Returns those of the strategy, inside of `strategy.run`."""
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            return _StrategyCollectives(context)
        return None

    def process(self) -> tuple[int, int]:
        """Returns the place among the workers of `TF_CONFIG`, chief first."""
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        cluster = resolver.cluster_spec().as_dict()
        workers = [
            (kind, index)
            for kind in ("chief", "worker")
            for index in range(len(cluster.get(kind, ())))
        ]
        own = resolver.task_type, resolver.task_id
        return (workers.index(own), len(workers)) if own in workers else (0, 1)

    def differing(self, numbers: list[int]) -> tuple[int, list[int]] | None:
        """Compares them in the scope of a strategy of several workers."""
        strategy = tf.distribute.get_strategy()
        if strategy.num_replicas_in_sync < self.process()[1]:
            return None
        own = strategy.experimental_distribute_values_from_function(
            lambda _: tf.constant([numbers], "int64")
        )
        gathered = strategy.gather(own, axis=0).numpy()
        # A worker with several devices says the same for each.
        devices = len(strategy.experimental_local_results(own))
        return first_difference(gathered[::devices])

    def count(self) -> int:
        """Also counts the replicas of a strategy in symbolic calls."""
        if keras_private.in_symbolic_call():
            return _strategy_count()
        return super().count()

    def averages_shapes_of_symbolic_calls(self) -> bool:
        """True under a strategy with several replicas.

        `fit` of Keras 3.15 then builds a model with the mean of the replicas'
        first batches, so ids become floats. The real inputs are checked when
        the first step is traced.
        """
        return _strategy_count() > 1


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
        return dict(zip(tensors, after_check(check, list(tensors.values()))))

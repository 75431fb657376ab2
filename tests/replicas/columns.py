"""Shows which candidate stands in which column of the logits, by replica.

Candidate j of the global batch is the number j, the extra ones go on from
there, and every query is 1, so a logit is the number of its candidate. The
layer named "extra" has extra candidates. The seed is None: left to themselves,
processes would draw shifts of their own.
"""

import keras
import numpy as np

import inbatch_neg

ROWS = 4
EXTRA = 2  # of each replica


def layers():
    make = inbatch_neg.InBatchNegativeSoftmax
    return {
        "all": make(return_logits=True, cross_replica=True),
        "shifts": make(3, return_logits=True, cross_replica=True),
        "own_rows": make(return_logits=True),
        "extra": make(return_logits=True, cross_replica=True),
    }


def numbers(name, replica, replicas):
    """Returns the numbers of the replica's candidates, (rows, 1) floats."""
    own = list(range(replica * ROWS, (replica + 1) * ROWS))
    if name == "extra":
        first = ROWS * replicas + replica * EXTRA
        own += range(first, first + EXTRA)
    return np.array(own, "float32")[:, None]


def on_jax(devices):
    """Returns the logits by layer; the batch of JAX is the global one."""
    query = np.ones((ROWS * devices, 1), "float32")
    found = {}
    for name, layer in layers().items():
        parts = [numbers(name, device, devices) for device in range(devices)]
        candidate = np.sort(np.concatenate(parts), axis=0)
        found[name] = np.asarray(layer(query, candidate))
    return found


def on_tensorflow(strategy):
    """Returns the logits by layer, of one replica after the other."""
    import tensorflow as tf

    count = strategy.num_replicas_in_sync
    with strategy.scope():
        made = layers()

    def call(name):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        of_all = np.stack([numbers(name, n, count) for n in range(count)])
        return made[name](tf.ones((ROWS, 1)), tf.constant(of_all)[replica])

    found = {}
    for name in made:
        step = tf.function(lambda name=name: strategy.run(call, (name,)))
        found[name] = np.concatenate(
            strategy.experimental_local_results(step())
        )
    return found


def on_torch(rank, count):
    """Returns the logits by layer, of this process alone."""
    return {
        name: keras.ops.convert_to_numpy(
            layer(
                keras.ops.ones((ROWS, 1)),
                keras.ops.convert_to_tensor(numbers(name, rank, count)),
            )
        )
        for name, layer in layers().items()
    }

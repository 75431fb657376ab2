"""Shows which candidate stands in which column of the logits, by replica.

Candidate j of the global batch is the number j, the extra ones go on from
there, and every query is 1, so a logit is the number of its candidate. The
layer named "extra" has extra candidates. The seed is None: left to themselves,
processes would draw shifts of their own.

Arguments: output file, rank, number of replicas, port.
"""

import os
import sys

REPLICAS = int(sys.argv[3])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={REPLICAS}"

import keras  # noqa: E402
import numpy as np  # noqa: E402

import inbatch_neg  # noqa: E402
from tests.replicas import groups  # noqa: E402

ROWS = 4
GLOBAL = ROWS * REPLICAS
EXTRA = 2  # of each replica


def layers():
    make = inbatch_neg.InBatchNegativeSoftmax
    return {
        "all": make(return_logits=True, cross_replica=True),
        "shifts": make(3, return_logits=True, cross_replica=True),
        "own_rows": make(return_logits=True),
        "extra": make(return_logits=True, cross_replica=True),
    }


def numbers(name, replica, rows, extra):
    """Returns the numbers of the replica's candidates, a list."""
    own = list(range(replica * rows, (replica + 1) * rows))
    if name == "extra":
        first = GLOBAL + replica * extra
        own += range(first, first + extra)
    return own


def on_jax():
    distribution = keras.distribution.DataParallel(
        devices=keras.distribution.list_devices("cpu")
    )
    assert distribution.device_mesh.devices.size == REPLICAS
    keras.distribution.set_distribution(distribution)
    query = np.ones((GLOBAL, 1), "float32")
    return {
        name: np.asarray(
            layer(
                query,
                np.array(numbers(name, 0, GLOBAL, EXTRA * REPLICAS), "float32")[
                    :, None
                ],
            )
        )
        for name, layer in layers().items()
    }


def on_tensorflow():
    import tensorflow as tf

    strategy = groups.mirrored(REPLICAS)
    with strategy.scope():
        made = layers()

    def call(name):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        of_all = [
            numbers(name, number, ROWS, EXTRA) for number in range(REPLICAS)
        ]
        candidate = tf.constant(of_all, "float32")[replica][:, None]
        return made[name](tf.ones((ROWS, 1)), candidate)

    found = {}
    for name in made:
        step = tf.function(lambda name=name: strategy.run(call, (name,)))
        found[name] = np.concatenate(
            strategy.experimental_local_results(step())
        )
    return found


def on_torch(rank, port):
    import torch

    groups.join(rank, REPLICAS, port)
    found = {}
    for name, layer in layers().items():
        candidate = torch.tensor(numbers(name, rank, ROWS, EXTRA)).float()
        found[name] = layer(torch.ones((ROWS, 1)), candidate[:, None]).numpy()
    torch.distributed.barrier()
    return found


def main(output, rank, _, port):
    backend = keras.backend.backend()
    if backend == "torch":
        found = on_torch(int(rank), port)
    else:
        found = on_jax() if backend == "jax" else on_tensorflow()
    np.savez(output, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

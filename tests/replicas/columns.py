"""Shows which candidate stands in which column of the logits, by replica.

Candidate j of the global batch is the number j, and every query is 1, so a
logit is the number of its candidate. The seed is None: left to themselves,
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

ROWS = 4
GLOBAL = ROWS * REPLICAS


def layers():
    make = inbatch_neg.InBatchNegativeSoftmax
    return {
        "all": make(return_logits=True, cross_replica=True),
        "shifts": make(3, return_logits=True, cross_replica=True),
        "own_rows": make(return_logits=True),
    }


def on_jax():
    distribution = keras.distribution.DataParallel(
        devices=keras.distribution.list_devices("cpu")
    )
    assert distribution.device_mesh.devices.size == REPLICAS
    keras.distribution.set_distribution(distribution)
    candidate = np.arange(GLOBAL, dtype="float32")[:, None]
    return {
        name: np.asarray(layer(np.ones_like(candidate), candidate))
        for name, layer in layers().items()
    }


def on_tensorflow():
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * REPLICAS
    )
    strategy = tf.distribute.MirroredStrategy(
        [f"CPU:{number}" for number in range(REPLICAS)]
    )
    with strategy.scope():
        made = layers()

    def call(layer):
        replica = tf.distribute.get_replica_context()
        first = replica.replica_id_in_sync_group * ROWS
        numbers = tf.range(first, first + ROWS)
        candidate = tf.ensure_shape(numbers, (ROWS,))[:, None]
        candidate = tf.cast(candidate, "float32")
        return layer(tf.ones_like(candidate), candidate)

    found = {}
    for name, layer in made.items():
        step = tf.function(lambda layer=layer: strategy.run(call, (layer,)))
        found[name] = np.concatenate(
            strategy.experimental_local_results(step())
        )
    return found


def on_torch(rank, port):
    import torch

    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=REPLICAS,
    )
    candidate = torch.arange(rank * ROWS, (rank + 1) * ROWS).float()[:, None]
    found = {
        name: layer(torch.ones_like(candidate), candidate).numpy()
        for name, layer in layers().items()
    }
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

"""Negatives from every device of one machine, on TensorFlow with `fit`.

    python replicas_tensorflow.py

Uses the GPUs if there are two or more, else the CPU as two devices. For
several machines, see "Several workers" in docs/several-devices.md.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from replicas_towers import (  # noqa: E402
    EPOCHS,
    GLOBAL_BATCH,
    Towers,
    pairs,
    report,
)

import inbatch_neg  # noqa: E402


def devices():
    """Returns the names of two or more devices."""
    gpus = tf.config.list_logical_devices("GPU")
    if len(gpus) > 1:
        return [gpu.name for gpu in gpus]
    return ["CPU:0", "CPU:1"]


def main():
    """Trains, and prints what was learned."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(devices())
    count = strategy.num_replicas_in_sync
    print(f"{count} replicas with {GLOBAL_BATCH // count} rows each")

    # The weights must be made in the scope.
    with strategy.scope():
        towers = Towers()
        towers.compile(
            keras.optimizers.Adam(0.01), loss=inbatch_neg.InBatchNegativeLoss()
        )
    # The size of the global batch: a multiple of the number of replicas.
    dataset = inbatch_neg.full_batches(pairs(), GLOBAL_BATCH, shuffle=True)
    towers.fit(dataset, epochs=EPOCHS, shuffle=False, verbose=2)
    report(towers)


if __name__ == "__main__":
    main()

"""Negatives from every device of one machine, on TensorFlow with `fit`.

    python replicas_towers.py  # writes the rows
    python replicas_tensorflow.py

The script uses the GPUs if there are two or more, else the CPU as two devices.
For several machines, see `replicas_workers.py`.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from replicas_towers import (  # noqa: E402
    GLOBAL_BATCH,
    LEARNING_RATE,
    batches,
    options,
    read,
    report,
    towers,
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
    given = options()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(devices())
    count = strategy.num_replicas_in_sync
    print(f"{count} replicas with {GLOBAL_BATCH // count} rows each")

    split = read(given.data)
    keras.utils.set_random_seed(0)
    # The weights must be made in the scope.
    with strategy.scope():
        model = towers(split)
        model.compile(
            keras.optimizers.Adam(LEARNING_RATE),
            loss=inbatch_neg.InBatchNegativeLoss(),
        )
    # One process deals out the global batches.
    dataset = batches(given.folder, 1)
    model.fit(dataset, epochs=given.epochs, shuffle=False, verbose=2)
    report(model, split)


if __name__ == "__main__":
    main()

"""Trains on two virtual devices; prints what each replica received."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=2"
)

import keras  # noqa: E402
import numpy as np  # noqa: E402

from inbatch_neg import full_batches  # noqa: E402
from tests.data import reading  # noqa: E402

IDS = np.arange(20)
ROWS = {"user": IDS, "item": IDS}


def function():
    for start in range(0, 20, 3):
        yield {name: ids[start : start + 3] for name, ids in ROWS.items()}


def datasets():
    yield "arrays", full_batches(ROWS, 8, shuffle=True, seed=5)
    yield "function", full_batches(function, 8, batched=True)


def on_tensorflow():
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for name, dataset in datasets():
        parts = strategy.experimental_distribute_dataset(dataset)
        spec = parts.element_spec["user"]
        (first, second), *_ = (
            strategy.experimental_local_results(batch["user"])
            for batch in parts
        )
        users = [*first.numpy().tolist(), *second.numpy().tolist()]
        print(name, spec._component_specs[0].shape[0], users)
        with strategy.scope():
            model = reading.two_towers(cross_replica=True)
        model.fit(dataset, verbose=0, shuffle=False)


def on_jax():
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    for name, dataset in datasets():
        model = reading.two_towers()
        model.fit(dataset, verbose=0, shuffle=False)
        users = next(iter(dataset))["user"]
        print(name, reading.steps_of(model), users.tolist())


if __name__ == "__main__":
    {"tensorflow": on_tensorflow, "jax": on_jax}[reading.BACKEND]()

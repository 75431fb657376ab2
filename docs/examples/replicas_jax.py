"""Negatives from every device, on JAX with `fit`.

    python replicas_jax.py

Uses the GPUs or TPUs if there are any, else the CPU as four devices.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"
# Has no effect on a machine with accelerators.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import keras  # noqa: E402
from replicas_towers import (  # noqa: E402
    EPOCHS,
    GLOBAL_BATCH,
    Towers,
    pairs,
    report,
)

import inbatch_neg  # noqa: E402


def main():
    """Trains, and prints what was learned."""
    devices = keras.distribution.list_devices()
    print(f"{len(devices)} devices, a batch of {GLOBAL_BATCH} rows for all")

    # Before the weights are made. `DataParallel` gives each device its rows.
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices)
    )
    towers = Towers()
    towers.compile(
        keras.optimizers.Adam(0.01), loss=inbatch_neg.InBatchNegativeLoss()
    )
    dataset = inbatch_neg.full_batches(pairs(), GLOBAL_BATCH, shuffle=True)
    towers.fit(dataset, epochs=EPOCHS, shuffle=False, verbose=2)
    report(towers)


if __name__ == "__main__":
    main()

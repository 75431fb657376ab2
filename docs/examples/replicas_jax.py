"""Negatives from every device and process, on JAX with `fit`.

    python replicas_towers.py  # writes the rows
    python replicas_jax.py     # all devices of this machine

Without GPUs or TPUs, the CPU is used as four devices. Several processes, each
with its own devices, or with one CPU device:

    python replicas_jax.py --processes 2 --process 0 &
    python replicas_jax.py --processes 2 --process 1

If one process dies, the others end within `heartbeat_timeout_seconds`. Start
all of them again, and training goes on after the last complete epoch.
"""

import os
import shutil

os.environ["KERAS_BACKEND"] = "jax"

import jax  # noqa: E402
import keras  # noqa: E402
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


class Epoch(keras.callbacks.Callback):
    """Knows which epoch `fit` trains."""

    number = 0

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers it."""
        self.number = epoch


def main():
    """Trains, and prints what was learned."""
    given = options(processes=1, process=0, port=12321)
    if given.processes > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{given.port}",  # of process 0
            given.processes,
            given.process,
            heartbeat_timeout_seconds=20,
        )
    else:  # Has no effect on a machine with accelerators.
        jax.config.update("jax_num_cpu_devices", 4)
    devices = keras.distribution.list_devices()
    if given.process == 0:
        print(f"{len(devices)} devices, a batch of {GLOBAL_BATCH} rows for all")

    # Before the weights are made. Each process gives its devices its own rows.
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(
            devices=devices, auto_shard_dataset=False
        )
    )
    keras.utils.set_random_seed(0)  # the same first weights everywhere
    split = read(given.data)
    model = towers(split)
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        loss=inbatch_neg.InBatchNegativeLoss(),
    )
    current = Epoch()
    dataset = batches(given.folder, given.processes, lambda: current.number)
    folder = given.folder / f"backup{given.process}"
    first = given.folder / "backup0"
    if given.process and first.exists():  # all go on from the same epoch
        shutil.copytree(first, folder, dirs_exist_ok=True)
    # Two copies: where another process dies, JAX may notice only while Keras
    # writes, and half a file is left.
    backup = keras.callbacks.BackupAndRestore(folder, double_checkpoint=True)
    model.fit(
        dataset,
        epochs=given.epochs,
        shuffle=False,
        verbose=2 if given.process == 0 else 0,
        callbacks=[backup, current],
    )
    if given.process == 0:
        report(model, split)


if __name__ == "__main__":
    main()

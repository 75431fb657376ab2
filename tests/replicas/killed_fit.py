"""Trains with `fit` and `BackupAndRestore` on two devices; may be killed.

Arguments: output file, folder of the backup, what happens: "nothing" or
"kill" (in the middle of the second epoch). The rows are shuffled.
"""

import json
import os
import pathlib
import signal
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

import inbatch_neg  # noqa: E402
from tests.replicas import (
    groups,  # noqa: E402
    problem,  # noqa: E402
)

# Random shifts: to go on right, training must know where they were.
CASE = "rotation"


class Epoch(keras.callbacks.Callback):
    """Knows which epoch `fit` trains."""

    number = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.number = epoch


class Kill(keras.callbacks.Callback):
    """Kills the process, as the system would, in the middle of epoch 2."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)


def main(output, folder, event):
    if keras.backend.backend() == "jax":
        devices = keras.distribution.list_devices("cpu")
        assert len(devices) == 2
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=devices)
        )
        strategy = tf.distribute.get_strategy()
    else:
        strategy = groups.mirrored(2)
        assert strategy.num_replicas_in_sync == 2
    current = Epoch()
    first_epoch = lambda: current.number  # noqa: E731
    if keras.backend.backend() == "tensorflow":
        # Under a strategy, Keras reads a batch before it restores.
        backup = pathlib.Path(folder, "training_metadata.json")
        first_epoch = 0
        if backup.exists():
            first_epoch = json.loads(backup.read_text())["epoch"]
    dataset = inbatch_neg.full_batches(
        problem.data(),
        problem.GLOBAL_ROWS,
        shuffle=True,
        seed=1,
        first_epoch=first_epoch,
    )
    with strategy.scope():
        towers = problem.model(CASE, cross_replica=True)
        towers.compile(
            keras.optimizers.SGD(0.5, momentum=0.9),
            loss=inbatch_neg.InBatchNegativeLoss(),
        )
    callbacks = [keras.callbacks.BackupAndRestore(folder), current]
    if event == "kill":
        callbacks.append(Kill())
    history = towers.fit(
        dataset, epochs=3, shuffle=False, verbose=0, callbacks=callbacks
    )
    print("epochs trained:", history.epoch, flush=True)
    losses = history.history["loss"][-2:]
    problem.save(output, {CASE: problem.result(towers, losses)})


if __name__ == "__main__":
    main(*sys.argv[1:])

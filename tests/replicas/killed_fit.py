"""`fit` with `BackupAndRestore`, which may be killed; the rows are shuffled."""

import json
import os
import pathlib
import signal

import keras

import inbatch_neg
from tests.replicas import problem

# Random shifts: to go on right, training must know where they were.
CASE = "rotation"


class Epoch(keras.callbacks.Callback):
    """Knows which epoch `fit` trains."""

    number = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.number = epoch


class Kill(Epoch):
    """Kills the process, as the system would, in the middle of epoch 2."""

    def on_train_batch_end(self, batch, logs=None):
        if (self.number, batch) == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)


def train(scope, folder, output=None):
    """Trains three epochs, or goes on from the backup.

    Args:
        scope: Context to make the model in.
        folder: Of the backup.
        output: File of the result; None: the process is killed.
    """
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
    with scope:
        towers = problem.model(CASE, cross_replica=True)
        towers.compile(
            keras.optimizers.SGD(0.5, momentum=0.9),
            loss=inbatch_neg.InBatchNegativeLoss(),
        )
    callbacks = [keras.callbacks.BackupAndRestore(folder), current]
    if output is None:
        callbacks.append(Kill())
    history = towers.fit(
        dataset, epochs=3, shuffle=False, verbose=0, callbacks=callbacks
    )
    print("epochs trained:", history.epoch)
    losses = history.history["loss"][-2:]
    problem.save(output, {CASE: problem.result(towers, losses)})

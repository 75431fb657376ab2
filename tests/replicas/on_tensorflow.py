"""What one process of TensorFlow does with several replicas.

Arguments: folder for the results, and the names of parts (see `PARTS`). With
`TF_CONFIG`, the process is a worker.
"""

import json
import os
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import inbatch_neg
from tests.replicas import (
    columns,
    estimate,
    faults_tensorflow,
    killed_fit,
    parts,
    problem,
    static_tensorflow,
)

FOLDER = pathlib.Path(sys.argv[1])
WORKERS = json.loads(os.environ.get("TF_CONFIG", "{}"))
RANK = WORKERS["task"]["index"] if WORKERS else 0
ENGINE_TIMEOUT = 20


# A process can use only one strategy: several mix up their collectives. The
# other parts use the one that an example makes.
_made = []
Mirrored = tf.distribute.MirroredStrategy
MultiWorker = tf.distribute.MultiWorkerMirroredStrategy


def mirrored(count):
    """Returns the strategy of so many logical devices."""
    if not _made:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * count,
        )
        keep_strategy([f"CPU:{number}" for number in range(count)])
    assert _made[0].num_replicas_in_sync == count
    return _made[0]


def keep_strategy(devices):
    """Makes and keeps the strategy of devices of this process."""
    _made.append(Mirrored(devices))
    return _made[0]


def workers(communication_options=None):
    """Returns the strategy of all workers."""
    if not _made:
        options = communication_options
        if options is None:
            options = tf.distribute.experimental.CommunicationOptions(
                timeout_seconds=ENGINE_TIMEOUT
            )
        _made.append(MultiWorker(communication_options=options))
        assert _made[0].num_replicas_in_sync == 2
    return _made[0]


def dataset_of(case):
    arguments = problem.fit_arguments(case)
    data = arguments[0] if len(arguments) == 1 else arguments
    dataset = tf.data.Dataset.from_tensor_slices(data)
    return dataset.batch(problem.GLOBAL_ROWS, drop_remainder=True)


def fit():
    """Trains every case by `fit` on two devices."""
    results = {}
    for case in problem.CASES:
        with mirrored(2).scope():
            towers = problem.model(case, cross_replica=True)
            losses = problem.fit(towers, dataset_of(case))
        results[case] = problem.result(towers, losses)
    problem.save(FOLDER / "fit.npz", results)


def loop(strategy, output, *cases):
    """Trains by a custom loop: plain SGD, so that no optimizer helps."""
    loss_of = inbatch_neg.InBatchNegativeLoss()
    results = {}
    for case in cases:
        with strategy.scope():
            towers = problem.model(case, cross_replica=True)
            optimizer = keras.optimizers.SGD(problem.LEARNING_RATE)
            optimizer.build(towers.trainable_variables)

        def step(batch, towers=towers, optimizer=optimizer):
            with tf.GradientTape() as tape:
                # Keras divides by the number of replicas.
                loss = loss_of(None, towers(batch, training=True))
            variables = towers.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
            return loss

        @tf.function
        def global_step(batch, step=step):
            losses = strategy.run(step, args=(batch,))
            return strategy.reduce("SUM", losses, axis=None)

        dataset = strategy.experimental_distribute_dataset(dataset_of(case))
        losses = [float(global_step(batch)) for batch in dataset]
        results[case] = problem.result(towers, losses)
    problem.save(FOLDER / output, results)


def show_columns():
    np.savez(FOLDER / "columns.npz", **columns.on_tensorflow(mirrored(4)))


def example():
    tf.distribute.MirroredStrategy = keep_strategy
    parts.run_example("tensorflow", FOLDER)


def example_of_workers():
    tf.distribute.MultiWorkerMirroredStrategy = workers
    parts.run_example("workers", FOLDER)


def refusals():
    with workers().scope():
        problem.print_refusals(
            batch_size=4 + RANK,
            seed=2**40 * (1 + RANK),
            rows=24 + RANK,
            first_epoch=RANK,
        )


def faulty(event):
    """Trains until something goes wrong."""
    return faults_tensorflow.train(FOLDER / event, RANK, 2, workers(), event)


def ends_with_an_error(function):
    """Prints the error of the engine, and how long it took."""
    parts.ends_with_an_error(function, tf.errors.OpError, ValueError)


def resumed():
    """Goes on where `killed` ended."""
    train = faults_tensorflow.train
    result = train(FOLDER / "kill", RANK, 2, workers(), "nothing")
    problem.save(FOLDER / f"resumed{RANK}.npz", {"resumed": result})


def killed():
    """Worker 1 is killed; the other one ends with 4, by its error."""
    ends_with_an_error(lambda: faulty("kill"))
    sys.stdout.flush()
    os._exit(4)  # or TensorFlow would wait for the other


def more_batches():
    """Worker 0 has a batch more than the other one."""
    if RANK == 0:
        ends_with_an_error(lambda: faulty("more"))
    else:
        faulty("more")
        parts.wait_for(FOLDER / "ended0")
    (FOLDER / f"ended{RANK}").touch()
    sys.stdout.flush()
    if RANK == 0:
        parts.wait_for(FOLDER / "ended1")
    os._exit(0)


PARTS = {
    "example": example,
    "example of workers": example_of_workers,
    "fit": fit,
    "loop of devices": lambda: loop(mirrored(4), "loop0.npz", "rotation"),
    "loop of workers": lambda: loop(
        workers(), f"workers{RANK}.npz", "everything", "memory"
    ),
    "columns": show_columns,
    "static": lambda: static_tensorflow.show(mirrored(2)),
    "estimate": lambda: estimate.check(mirrored(2).scope()),
    "whole fit": lambda: killed_fit.train(
        mirrored(2).scope(), FOLDER / "whole", FOLDER / "whole.npz"
    ),
    # The backup does not depend on the number of devices.
    "killed fit": lambda: killed_fit.train(
        mirrored(4).scope(), FOLDER / "backup"
    ),
    "second fit": lambda: killed_fit.train(
        mirrored(2).scope(), FOLDER / "backup", FOLDER / "second.npz"
    ),
    "refusals": refusals,
    "killed": killed,
    "resumed": resumed,
    "unequal": lambda: ends_with_an_error(lambda: faulty("unequal")),
    "more batches": more_batches,
}

if __name__ == "__main__":
    parts.run(PARTS, sys.argv[2:])

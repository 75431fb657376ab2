"""Trains on TensorFlow workers while something goes wrong."""

import os
import signal

import keras
import tensorflow as tf

import inbatch_neg
from tests.replicas import problem

CASE = "rotation"
STEPS = 6


def train(folder, rank, count, strategy, event="nothing"):
    """Trains, and saves every step: goes on from the last one saved.

    Args:
        folder: Of the checkpoints.
        rank: The index of this worker.
        count: The number of workers.
        strategy: Of all workers.
        event: "nothing", "unequal" (the last worker has two rows less, in step
            2 of a program for any number of rows), "more" (the last worker has
            a batch less) or "kill" (the last worker is killed in step 3).
    """
    any_rows = event == "unequal"
    with strategy.scope():
        towers = problem.model(
            CASE,
            cross_replica=count > 1,
            batch_size="any" if any_rows else None,
        )
        optimizer = keras.optimizers.SGD(problem.LEARNING_RATE)
        optimizer.build(towers.trainable_variables)
    loss_of = inbatch_neg.InBatchNegativeLoss()
    step_count = tf.Variable(0, dtype="int64")
    checkpoint = tf.train.Checkpoint(
        weights=[variable.value for variable in towers.variables],
        shifts=towers.softmax.seed_generator.state.value,
        optimizer=[variable.value for variable in optimizer.variables],
        step=step_count,
    )
    manager = tf.train.CheckpointManager(
        checkpoint, str(folder / f"checkpoints{rank}"), max_to_keep=1
    )
    # The first worker's file is the one that is read.
    saved = tf.train.latest_checkpoint(str(folder / "checkpoints0"))
    if saved:
        checkpoint.restore(saved).assert_consumed()

    def global_step(batch):
        def step(batch):
            with tf.GradientTape() as tape:
                loss = loss_of(None, towers(batch, training=True))
            variables = towers.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)

        strategy.run(step, args=(batch,))

    rows = problem.data()
    signature = None
    if any_rows:  # so that no worker traces anew, which the others do not
        signature = [
            {
                name: tf.TensorSpec([None, *value.shape[1:]], value.dtype)
                for name, value in rows.items()
            }
        ]
    global_step = tf.function(global_step, input_signature=signature)
    first = int(step_count)
    batches = problem.batches_from(first, count)
    last = STEPS - (event == "more" and rank == count - 1)
    for step, batch in zip(range(first, last), batches):
        unequal = event == "unequal" and rank == count - 1 and step == 2
        end = -2 if unequal else None
        if event == "kill" and rank == count - 1 and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        global_step({name: value[:end] for name, value in batch.items()})
        step_count.assign(step + 1)
        print("done", step, flush=True)
        if rank == 0:
            manager.save()
    print("steps", first, STEPS, flush=True)
    return problem.result(towers, losses=[1.0])

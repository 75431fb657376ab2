"""Negatives from every worker, on TensorFlow with a loop of one's own.

    python replicas_towers.py  # writes the rows
    TF_CONFIG=... python replicas_workers.py

`TF_CONFIG` names all workers, and the index of this one: see "Which backend to
choose" in docs/several-devices.md.

If a worker dies, the others end within `timeout_seconds`. Start all of them
again, and training goes on after the last complete epoch.
"""

import json
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


def main():
    """Trains, and prints what was learned."""
    given = options()
    strategy = tf.distribute.MultiWorkerMirroredStrategy(
        # Without a timeout, the others wait for ever for a worker that died.
        communication_options=tf.distribute.experimental.CommunicationOptions(
            timeout_seconds=20
        )
    )
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    count = strategy.num_replicas_in_sync
    if index == 0:
        print(f"{count} replicas with {GLOBAL_BATCH // count} rows each")

    split = read(given.data)
    keras.utils.set_random_seed(0)
    mean = inbatch_neg.InBatchNegativeLoss()
    epochs = tf.Variable(0, dtype="int64")
    with strategy.scope():
        model = towers(split)
        optimizer = keras.optimizers.Adam(LEARNING_RATE)
        optimizer.build(model.trainable_variables)
        checkpoint = tf.train.Checkpoint(
            weights=[variable.value for variable in model.variables],
            optimizer=[variable.value for variable in optimizer.variables],
            epochs=epochs,
        )
        manager = tf.train.CheckpointManager(
            checkpoint, str(given.folder / f"checkpoints{index}"), 1
        )
        # Worker 0's is the one that all read.
        saved = tf.train.latest_checkpoint(given.folder / "checkpoints0")
        if saved:
            checkpoint.restore(saved).assert_consumed()
        first = int(epochs)
        dataset = strategy.distribute_datasets_from_function(
            lambda context: batches(
                given.folder,
                count,
                first_epoch=first,
                shard=(context.input_pipeline_id, context.num_input_pipelines),
            )
        )

    @tf.function
    def global_step(batch):
        def step(batch):
            with tf.GradientTape() as tape:
                loss = mean(None, model(batch, training=True))
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
            return loss  # already divided by the number of replicas

        losses = strategy.run(step, args=(batch,))
        return strategy.reduce("SUM", losses, axis=None)

    for epoch in range(first, given.epochs):
        losses = [global_step(batch) for batch in dataset]
        epochs.assign(epoch + 1)
        manager.save()
        if index == 0:
            loss = sum(map(float, losses)) / len(losses)
            print(f"epoch {epoch + 1}: loss {loss:.4f}", flush=True)
    if index == 0:
        report(model, split)


if __name__ == "__main__":
    main()

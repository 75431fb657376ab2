"""Trains every case on TensorFlow: alone, mirrored, or as one of workers.

Arguments: output file, way ("fit" or "loop"), strategy ("none", "mirrored"
or "workers"), number of devices, cases (all, unless named).
"""

import sys

import tensorflow as tf

import inbatch_neg
from tests.replicas import groups, problem

LEARNING_RATE = 0.5


def strategy_of(kind, devices):
    if kind == "workers":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if kind == "none":
        return tf.distribute.get_strategy()
    return groups.mirrored(devices)


def dataset_of(case):
    arguments = problem.fit_arguments(case)
    data = arguments[0] if len(arguments) == 1 else arguments
    dataset = tf.data.Dataset.from_tensor_slices(data)
    return dataset.batch(problem.GLOBAL_ROWS, drop_remainder=True)


def loop(strategy, towers, dataset):
    """The custom loop: plain SGD, so that no optimizer helps."""
    loss_of = inbatch_neg.InBatchNegativeLoss()

    def step(data):
        batch, weight = data, None
        if isinstance(data, tuple):
            batch, _, weight = data
        with tf.GradientTape() as tape:
            output = towers(batch, training=True)
            # Keras divides by the number of replicas.
            loss = loss_of(None, output, sample_weight=weight)
        variables = towers.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    @tf.function
    def global_step(data):
        losses = strategy.run(step, args=(data,))
        return strategy.reduce("SUM", losses, axis=None)

    import keras

    with strategy.scope():
        optimizer = keras.optimizers.SGD(LEARNING_RATE)
        optimizer.build(towers.trainable_variables)
    dataset = strategy.experimental_distribute_dataset(dataset)
    return [float(global_step(data)) for data in dataset]


def main(output, way, kind, devices, *cases):
    strategy = strategy_of(kind, int(devices))
    count = strategy.num_replicas_in_sync
    assert count == int(devices), f"{count} replicas, not {devices}"
    results = {}
    for case in cases or problem.CASES:
        with strategy.scope():
            towers = problem.model(case, cross_replica=count > 1)
            if way == "fit":
                losses = problem.fit(towers, dataset_of(case), LEARNING_RATE)
        if way == "loop":
            losses = loop(strategy, towers, dataset_of(case))
        results[case] = problem.result(towers, losses)
    problem.save(output, results)


if __name__ == "__main__":
    main(*sys.argv[1:])

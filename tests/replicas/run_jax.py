"""Trains every case on JAX: alone, data parallel, or on a 2-D mesh.

Arguments: output file, way ("fit" or "loop"), distribution ("none", "data",
"model" or "processes"), number of devices, cases (all, unless named). The
variables PORT, PROCESSES and PROCESS tell about the processes, each of which
has that number of devices.
"""

import os
import sys

_DEVICES = int(sys.argv[4])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={_DEVICES}"

import jax  # noqa: E402
import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

import inbatch_neg  # noqa: E402
from tests.replicas import problem  # noqa: E402

LEARNING_RATE = 0.5


def join():
    """Joins the other processes; prints what `full_batches` refuses there."""
    process = int(os.environ["PROCESS"])
    jax.distributed.initialize(
        f"127.0.0.1:{os.environ['PORT']}",
        int(os.environ["PROCESSES"]),
        process,
    )
    # JAX compares the first weights of all processes.
    keras.utils.set_random_seed(0)
    # More than 32 bits, which JAX would lose.
    problem.print_refusals(
        batch_size=4 + process,
        seed=2**40 * (1 + process),
        rows=24 + process,
        first_epoch=process,
    )


def set_distribution(kind):
    devices = keras.distribution.list_devices("cpu")
    assert len(devices) == _DEVICES * jax.process_count(), devices
    if kind == "processes":
        # Each reads its own rows.
        chosen = keras.distribution.DataParallel(
            devices=devices, auto_shard_dataset=False
        )
    elif kind == "data":
        chosen = keras.distribution.DataParallel(devices=devices)
    elif kind == "model":
        mesh = keras.distribution.DeviceMesh(
            (2, _DEVICES // 2), ("batch", "model"), devices
        )
        layout = keras.distribution.LayoutMap(mesh)
        layout[".*users/embeddings"] = ("model", None)
        layout[".*items/embeddings"] = ("model", None)
        chosen = keras.distribution.ModelParallel(
            layout_map=layout, batch_dim_name="batch"
        )
    keras.distribution.set_distribution(chosen)


def dataset_of(case, kind):
    arguments = problem.fit_arguments(case)
    data = arguments[0] if len(arguments) == 1 else arguments
    if kind == "processes":
        rows = problem.GLOBAL_ROWS // jax.process_count()
        return inbatch_neg.full_batches(data, rows, shard="auto")
    dataset = tf.data.Dataset.from_tensor_slices(data)
    return dataset.batch(problem.GLOBAL_ROWS, drop_remainder=True)


def loop(towers, dataset):
    """The custom loop: `jax.jit` of a stateless step, plain SGD."""
    loss_of = inbatch_neg.InBatchNegativeLoss()
    towers.built = True  # Every layer of it is.

    def loss_and_state(trainable, other, batch, weight):
        output, other = towers.stateless_call(
            trainable, other, batch, training=True
        )
        return loss_of(None, output, sample_weight=weight), other

    @jax.jit
    def step(trainable, other, batch, weight):
        gradient = jax.value_and_grad(loss_and_state, has_aux=True)
        (loss, other), gradients = gradient(trainable, other, batch, weight)
        trainable = [
            value - LEARNING_RATE * slope
            for value, slope in zip(trainable, gradients)
        ]
        return loss, trainable, other

    distribution = keras.distribution.distribution()

    def place(array):
        if distribution is None:
            return array
        layout = distribution.get_data_layout(array.shape)
        return keras.distribution.distribute_tensor(array, layout)

    trainable = [v.value for v in towers.trainable_variables]
    other = [v.value for v in towers.non_trainable_variables]
    losses = []
    for data in dataset.as_numpy_iterator():
        batch, _, weight = data if isinstance(data, tuple) else (data, 0, None)
        batch = {name: place(value) for name, value in batch.items()}
        loss, trainable, other = step(trainable, other, batch, weight)
        losses.append(float(loss))
    for variable, value in zip(towers.trainable_variables, trainable):
        variable.assign(value)
    return losses


def main(output, way, kind, _, *cases):
    if kind == "processes":
        join()
    if kind != "none":
        set_distribution(kind)
    results = {}
    for case in cases or problem.CASES:
        towers = problem.model(case, cross_replica=kind != "none")
        if kind == "model":
            held = towers.users.embeddings.value.sharding
            assert not held.is_fully_replicated, held
        if way == "fit":
            losses = problem.fit(towers, dataset_of(case, kind), LEARNING_RATE)
        else:
            losses = loop(towers, dataset_of(case, kind))
        results[case] = problem.result(towers, losses)
    problem.save(output, results)


if __name__ == "__main__":
    main(*sys.argv[1:])

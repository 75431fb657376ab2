"""What one process of JAX does with several devices, or as one of two.

Arguments: folder for the results, and the names of parts (see `PARTS`). The
process has four virtual devices; or one, where PORT and PROCESS tell about the
two processes.
"""

import contextlib
import os
import pathlib
import signal
import sys

PROCESS = int(os.environ.get("PROCESS", 0))
DEVICES = 1 if "PROCESS" in os.environ else 4
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + f" --xla_force_host_platform_device_count={DEVICES}"
)

import jax  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402

import inbatch_neg  # noqa: E402
from tests.replicas import (  # noqa: E402
    columns,
    compiled_jax,
    estimate,
    killed_fit,
    parts,
    problem,
)

FOLDER = pathlib.Path(sys.argv[1])


def data_parallel():
    """Distributes the rows; returns the scope to make models in."""
    devices = keras.distribution.list_devices("cpu")
    assert len(devices) == DEVICES * jax.process_count(), devices
    chosen = keras.distribution.DataParallel(
        devices=devices,
        # Each process reads its own rows.
        auto_shard_dataset=jax.process_count() == 1,
    )
    keras.distribution.set_distribution(chosen)
    return contextlib.nullcontext()


def model_parallel():
    """Distributes the rows and the tables of the embeddings."""
    devices = keras.distribution.list_devices("cpu")
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*users/embeddings"] = ("model", None)
    layout[".*items/embeddings"] = ("model", None)
    chosen = keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch"
    )
    keras.distribution.set_distribution(chosen)


def fit(output, cases):
    """Trains by `fit`."""
    results = {}
    rows = problem.GLOBAL_ROWS // jax.process_count()
    for case in cases:
        towers = problem.model(case, cross_replica=True)
        data = problem.fit_arguments(case)
        data = data[0] if len(data) == 1 else data
        dataset = inbatch_neg.full_batches(data, rows, shard="auto")
        losses = problem.fit(towers, dataset)
        results[case] = problem.result(towers, losses)
    problem.save(FOLDER / output, results)
    return towers


def fit_data_parallel():
    data_parallel()
    fit("fit.npz", problem.CASES)


def fit_model_parallel():
    model_parallel()
    towers = fit("model.npz", ("memory", "everything"))
    held = towers.users.embeddings.value.sharding
    assert not held.is_fully_replicated, held


def loop():
    """The custom loop: `jax.jit` of a stateless step, plain SGD."""
    data_parallel()
    case = "rotation"
    towers = problem.model(case, cross_replica=True)
    loss_of = inbatch_neg.InBatchNegativeLoss()
    towers.built = True  # Every layer of it is.

    def loss_and_state(trainable, other, batch):
        output, other = towers.stateless_call(
            trainable, other, batch, training=True
        )
        return loss_of(None, output), other

    @jax.jit
    def step(trainable, other, batch):
        gradient = jax.value_and_grad(loss_and_state, has_aux=True)
        (loss, other), gradients = gradient(trainable, other, batch)
        trainable = [
            value - problem.LEARNING_RATE * slope
            for value, slope in zip(trainable, gradients)
        ]
        return loss, trainable, other

    def place(array):
        distribution = keras.distribution.distribution()
        layout = distribution.get_data_layout(array.shape)
        return keras.distribution.distribute_tensor(array, layout)

    trainable = [v.value for v in towers.trainable_variables]
    other = [v.value for v in towers.non_trainable_variables]
    losses = []
    for batch in inbatch_neg.full_batches(problem.data(), problem.GLOBAL_ROWS):
        batch = {name: place(value) for name, value in batch.items()}
        loss, trainable, other = step(trainable, other, batch)
        losses.append(float(loss))
    for variable, value in zip(towers.trainable_variables, trainable):
        variable.assign(value)
    result = problem.result(towers, losses)
    problem.save(FOLDER / "loop.npz", {case: result})


def show_columns():
    data_parallel()
    np.savez(FOLDER / "columns.npz", **columns.on_jax(DEVICES))


def compiled():
    data_parallel()
    compiled_jax.show(8192)


def unequal():
    """Gives four devices six rows."""
    data_parallel()
    softmax = inbatch_neg.InBatchNegativeSoftmax(cross_replica=True)
    rows = np.ones((6, 2), "float32")
    try:
        softmax(rows, rows)
    except inbatch_neg.PartialBatchError as error:
        print(error)


def example():
    # It joins the processes, for the other parts as well.
    parts.run_example(
        "jax",
        FOLDER,
        *("--processes", 2, "--process", PROCESS, "--port", os.environ["PORT"]),
    )


def refusals():
    # More than 32 bits, which JAX would lose.
    problem.print_refusals(
        batch_size=4 + PROCESS,
        seed=2**40 * (1 + PROCESS),
        rows=24 + PROCESS,
        first_epoch=PROCESS,
    )


def fit_of_processes():
    data_parallel()
    # JAX compares the first weights of all processes.
    keras.utils.set_random_seed(0)
    fit(f"processes{PROCESS}.npz", ("everything", "memory"))


def killed():
    """Process 1 is killed while process 0 trains, and ends with 4."""
    if PROCESS:
        os.kill(os.getpid(), signal.SIGKILL)
    parts.ends_with_an_error(
        lambda: fit("never.npz", ["everything"]), Exception
    )
    sys.stdout.flush()
    os._exit(4)  # or JAX would wait for the other


PARTS = {
    "fit": fit_data_parallel,
    "fit of a sharded model": fit_model_parallel,
    "loop": loop,
    "columns": show_columns,
    "compiled": compiled,
    "unequal": unequal,
    "estimate": lambda: estimate.check(data_parallel()),
    "killed fit": lambda: killed_fit.train(data_parallel(), FOLDER / "backup"),
    "whole fit": lambda: killed_fit.train(
        data_parallel(), FOLDER / "whole", FOLDER / "whole.npz"
    ),
    "second fit": lambda: killed_fit.train(
        data_parallel(), FOLDER / "backup", FOLDER / "second.npz"
    ),
    "example": example,
    "refusals": refusals,
    "fit of processes": fit_of_processes,
    "killed": killed,
}

if __name__ == "__main__":
    parts.run(PARTS, sys.argv[2:])

"""A whole step of `fit` by the number of rows of the tables.

    KERAS_BACKEND=jax python -m tests.benchmarks.sparse_embedding

Two tables of V x 64 and the loss of 1,024 rows. Each figure comes from a
process of its own; the contenders of a size alternate. Options: sizes, comma
separated; contenders, comma separated; rounds. Beyond a million rows only
those run that take little more memory than the table, unless named.
"""

import resource
import subprocess
import sys
import time

BATCH, DIMENSIONS = 1024, 64
SIZES = "10000,100000,1000000,5000000"
CONTENDERS = ("sparse", "adam", "adagrad", "sgd", "sparse_adam")
LARGE = 10**6


def steps_of(contender, size):
    """Returns how many steps are timed at once; some take seconds."""
    return 12 if "sparse" in contender or size < LARGE else 3


def model_of(contender, size):
    import keras

    import inbatch_neg

    layer = keras.layers.Embedding
    if contender == "sparse":
        layer = inbatch_neg.SparseEmbedding
    inputs = [
        keras.Input((), BATCH, dtype="int32", name=x) for x in ("user", "item")
    ]
    vectors = [layer(size, DIMENSIONS)(x) for x in inputs]
    losses = inbatch_neg.InBatchNegativeSoftmax(temperature=0.2)(*vectors)
    model = keras.Model({"user": inputs[0], "item": inputs[1]}, losses)
    optimizer = "adam" if contender == "sparse" else contender
    model.compile(optimizer, loss=inbatch_neg.InBatchNegativeLoss())
    return model


def of_torch(size, rows):
    """Returns a step of PyTorch's sparse tables and its `SparseAdam`."""
    import keras
    import torch

    import inbatch_neg

    tables = torch.nn.ModuleList(
        torch.nn.Embedding(size, DIMENSIONS, sparse=True) for _ in range(2)
    )
    softmax = inbatch_neg.InBatchNegativeSoftmax(temperature=0.2)
    optimizer = torch.optim.SparseAdam(tables.parameters())
    keras.utils.set_random_seed(0)

    def run():
        for start in range(0, len(rows["user"]), BATCH):
            ids = [
                torch.as_tensor(rows[name][start : start + BATCH])
                for name in ("user", "item")
            ]
            vectors = [table(x) for table, x in zip(tables, ids)]
            optimizer.zero_grad()
            softmax(*vectors, training=True).mean().backward()
            optimizer.step()

    return run


def worker(contender, size):
    """Prints the milliseconds of a step, and the peak memory in MB.

    The time of the processor too, which others on the machine disturb less.
    """
    import numpy as np

    random = np.random.default_rng(0)
    steps = steps_of(contender, size)
    rows = {
        name: random.integers(0, size, steps * BATCH).astype("int32")
        for name in ("user", "item")
    }
    if contender == "sparse_adam":
        run = of_torch(size, rows)
    else:
        model = model_of(contender, size)

        def run():
            model.fit(
                rows,
                np.zeros(steps * BATCH),
                batch_size=BATCH,
                shuffle=False,
                verbose=0,
            )

    run()
    times, processor = [], []
    for _ in range(3):
        starts = time.perf_counter(), time.process_time()
        run()
        times.append((time.perf_counter() - starts[0]) / steps * 1000)
        processor.append((time.process_time() - starts[1]) / steps * 1000)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print("RESULT", min(times), min(processor), memory)


def main(sizes=SIZES, contenders=None, rounds=2):
    named = contenders and contenders.split(",")
    for size in map(int, sizes.split(",")):
        found = {}
        for _ in range(int(rounds)):
            for contender in named or CONTENDERS:
                heavy = contender in ("adam", "adagrad", "sgd")
                if not named and heavy and size > LARGE:
                    continue
                done = subprocess.run(
                    [sys.executable, "-m", __spec__.name]
                    + ["worker", contender, str(size)],
                    capture_output=True,
                    text=True,
                )
                if "RESULT" not in done.stdout:  # `sparse_adam` elsewhere
                    continue
                line = done.stdout.split("RESULT")[1].split()
                found.setdefault(contender, []).append(
                    (float(line[0]), float(line[1]), int(line[2]))
                )
        for contender, values in found.items():
            clock, processor, memory = map(list, zip(*values))
            print(
                f"V={size:,} {contender}: {min(clock):.1f} ms a step, "
                f"{min(processor):.1f} of the processor, best of "
                f"{len(clock)}; peak {max(memory)} MB",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], int(sys.argv[3]))
    else:
        main(*sys.argv[1:])

"""Speed of `full_batches`: `python -m tests.benchmarks.data --help`.

`arrays` shuffles rows in memory, two columns of integers and one of floats,
beside `tf.data` and PyTorch's `DataLoader`. `parquet` streams rows from files
that it writes first, and prints the memory as it goes. Every contender has a
process of its own.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

BATCH = 4096
ROWS = 10_000_000
FILE_ROWS = 100_000_000
# Contender: the backend that it runs on.
ARRAYS = {
    "ours_tensorflow": "tensorflow",
    "tf_data_places": "tensorflow",
    "ours_jax": "jax",
    "ours_torch": "torch",
    "data_loader": "torch",
}


def columns(start, rows):
    """Returns two columns of ids and one of floats, the same every time."""
    rng = np.random.default_rng(start)
    return {
        "user": rng.integers(0, 1_000_000, rows),
        "item": rng.integers(0, 100_000, rows),
        "probability": rng.random(rows, "float32"),
    }


def ours(data, rows):
    from inbatch_neg import full_batches

    del rows
    return full_batches(data, BATCH, shuffle=True, seed=1)


ours_tensorflow = ours_jax = ours_torch = ours


def tf_data_places(data, rows):
    """Shuffles the places and gathers whole batches, all in `tf.data`."""
    import tensorflow as tf

    data = {name: tf.constant(values) for name, values in data.items()}
    places = tf.data.Dataset.range(rows)
    places = places.shuffle(rows, 1, reshuffle_each_iteration=True)
    places = places.batch(BATCH, drop_remainder=True)
    return places.map(
        lambda batch: {n: tf.gather(v, batch) for n, v in data.items()},
        num_parallel_calls=tf.data.AUTOTUNE,
    ).prefetch(tf.data.AUTOTUNE)


def data_loader(data, rows):
    """PyTorch's loader, with its default collation."""
    from torch.utils import data as torch_data

    class Rows(torch_data.Dataset):
        def __len__(self):
            return rows

        def __getitem__(self, index):
            return {name: values[index] for name, values in data.items()}

    return torch_data.DataLoader(Rows(), BATCH, shuffle=True, drop_last=True)


def measure(contender, rows, epochs):
    """Prints the seconds of each epoch."""
    dataset = globals()[contender](columns(0, rows), rows)
    for _ in range(epochs):
        start, batches = time.perf_counter(), 0
        for batch in dataset:
            batches += len(batch["user"]) == BATCH
        assert batches == rows // BATCH, batches
        print(json.dumps(time.perf_counter() - start), flush=True)


def compare(rows, epochs):
    """Prints a table of rows a second, the best epoch of each contender."""
    print(f"{rows} rows shuffled, B = {BATCH}: two int64, one float32")
    for contender, backend in ARRAYS.items():
        times = 1 if contender == "data_loader" else epochs
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.data", "arrays"]
            + ["--rows", str(rows), "--epochs", str(times)]
            + ["--contender", contender],
            env=_environment(backend),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        seconds = [float(line) for line in done.stdout.splitlines()]
        listed = ", ".join(f"{second:.2f}" for second in seconds)
        print(
            f"{contender:16} {rows / min(seconds) / 1e6:7.2f} million rows/s "
            f"(epochs: {listed} s)",
            flush=True,
        )


def write(folder, rows):
    """Writes files of ten million rows."""
    import pyarrow
    import pyarrow.parquet

    for start in range(0, rows, ROWS):
        table = pyarrow.table(columns(start, min(ROWS, rows - start)))
        name = folder / f"part-{start // ROWS:04}.parquet"
        pyarrow.parquet.write_table(table, name)


def stream(folder, rows, shuffle):
    """Reads an epoch; prints memory and speed ten times on the way."""
    from inbatch_neg import full_batches

    start, batches = time.perf_counter(), 0
    dataset = full_batches(str(folder), BATCH, shuffle=shuffle, seed=1)
    for batch in dataset:
        batches += len(batch["user"]) == BATCH
        if batches % (rows // BATCH // 10) == 0:
            seconds = time.perf_counter() - start
            print(
                f"{batches * BATCH:>11} rows, {_megabytes()} MB, "
                f"{batches * BATCH / seconds / 1e6:.2f} million rows/s",
                flush=True,
            )
    assert batches == rows // BATCH, batches
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"at most {most} MB", flush=True)


def stream_all(rows, backend, keep):
    """Writes the files and reads them in order and shuffled."""
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(keep or place)
        if not list(folder.glob("*.parquet")):
            folder.mkdir(exist_ok=True)
            start = time.perf_counter()
            write(folder, rows)
            size = sum(f.stat().st_size for f in folder.iterdir()) / 1e9
            seconds = time.perf_counter() - start
            print(f"{rows} rows, {size:.2f} GB, written in {seconds:.0f} s")
        for shuffle in ("", "--shuffle"):
            print("in order" if not shuffle else "shuffled", flush=True)
            subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.data", "parquet"]
                + ["--rows", str(rows), "--read", str(folder)]
                + ([shuffle] if shuffle else []),
                env=_environment(backend),
                check=True,
            )


def _environment(backend):
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
    }


def _megabytes():
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.data")
    add = parser.add_argument
    add("what", choices=["arrays", "parquet"])
    add("--rows", type=int, help="ten million, of parquet a hundred million")
    add("--epochs", type=int, default=3, help="of arrays, 3")
    add("--backend", default="tensorflow", help="of parquet, tensorflow")
    add("--folder", help="of parquet: where the files are kept")
    add("--contender", choices=ARRAYS, help="one alone, in this process")
    add("--read", help=argparse.SUPPRESS)
    add("--shuffle", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what == "arrays":
        rows = options.rows or ROWS
        if options.contender:
            measure(options.contender, rows, options.epochs)
        else:
            compare(rows, options.epochs)
    else:
        rows = options.rows or FILE_ROWS
        if options.read:
            stream(options.read, rows, options.shuffle)
        else:
            stream_all(rows, options.backend, options.folder)


if __name__ == "__main__":
    main()

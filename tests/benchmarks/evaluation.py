"""What an evaluation over the whole catalogue costs, ours and others'.

    python -m tests.benchmarks.evaluation                # all, a table
    python -m tests.benchmarks.evaluation --rounds 3 --candidates 1000000

Each measurement runs in a process of its own, and the contenders take turns,
so that what else the machine does hits all of them. The least time of all
rounds counts. Extra memory is how much the peak of the process (`getrusage`)
rises above what it was with the vectors in memory and the engine warm.
Recall@100 comes from each contender, and should be the same.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np

K = 100
CONTENDERS = {
    f"{name}/{engine}": engine
    for name in ("matmul", "ours")
    for engine in ("tensorflow", "jax", "torch")
}
CONTENDERS["keras_rs/tensorflow"] = "tensorflow"
CONTENDERS["tfrs/tensorflow"] = "tensorflow"
_SECONDS = 6.0


def make(queries, candidates, dimensions):
    """Returns queries near their targets: recall@100 is neither 0 nor 1."""
    rng = np.random.default_rng(0)
    candidate = rng.standard_normal((candidates, dimensions), "float32")
    target = rng.integers(0, candidates, queries)
    noise = rng.standard_normal((queries, dimensions), "float32")
    return candidate[target] + 2.5 * noise, candidate, target


def matmul(query, candidate, target):
    """The product alone, in the chunks that suit the engine's caches."""
    from keras import ops

    from inbatch_neg.backends import backend

    product = backend.compile(lambda a, b: ops.matmul(a, ops.transpose(b)))

    def step():
        for first in range(0, len(candidate), 4096):
            part = ops.convert_to_tensor(candidate[first : first + 4096])
            for start in range(0, len(query), 256):
                rows = ops.convert_to_tensor(query[start : start + 256])
                scores = product(rows, part)
        ops.convert_to_numpy(scores)

    return step


def ours(query, candidate, target):
    """All figures of `RetrievalEvaluation` but coverage."""
    import inbatch_neg

    evaluation = inbatch_neg.RetrievalEvaluation(
        None, None, query, target, candidate, k=(10, K)
    )
    return lambda: evaluation()[f"recall@{K}"]


def keras_rs(query, candidate, target):
    """The k best of each query, and whether the target is among them."""
    import keras_rs as library

    # Chunks of 256 queries: with all of them at once it keeps 4 GB of scores.
    retrieve = library.layers.BruteForceRetrieval(candidate, k=K)

    def step():
        found = 0
        for start in range(0, len(query), 256):
            _, listed = retrieve(query[start : start + 256])
            wanted = target[start : start + 256, None]
            found += np.sum(np.asarray(listed) == wanted)
        return found / len(query)

    return step


def tfrs(query, candidate, target):
    """The metric over the streamed catalogue, as its tutorial has it."""
    import tensorflow as tf
    import tensorflow_recommenders as library

    chunks = tf.data.Dataset.from_tensor_slices(candidate).batch(4096)
    chunks = chunks.cache()

    def step():
        metric = library.metrics.FactorizedTopK(candidates=chunks, ks=[10, K])
        for start in range(0, len(query), 1024):
            at = slice(start, start + 1024)
            metric.update_state(
                tf.constant(query[at]), tf.constant(candidate[target[at]])
            )
        return float(metric.result()[-1])

    return step


def measure(contender, sizes):
    """Returns what this process took for a contender."""
    name = contender.split("/")[0]
    build = globals()[name]
    data = make(*sizes)
    # Warmed up on the first rows, as the shapes of the chunks are the same.
    build(data[0][:512], data[1], data[2][:512])()
    step = build(*data)
    before = _peak()
    seconds = []
    while not seconds or sum(seconds) < _SECONDS:
        start = time.perf_counter()
        recall = step()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": min(seconds),
        "megabytes": (_peak() - before) / 2**20,
        "recall": recall,
    }


def _peak():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_own_process(contender, sizes):
    """Returns what `measure` returns there, or stops with its error."""
    environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3")
    environment["KERAS_BACKEND"] = CONTENDERS[contender]
    if contender.startswith("tfrs"):
        environment["TF_USE_LEGACY_KERAS"] = "1"
    command = [sys.executable, "-m", "tests.benchmarks.evaluation"]
    command += ["--only", contender, "--queries", str(sizes[0])]
    command += ["--candidates", str(sizes[1]), "--dimensions", str(sizes[2])]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{contender} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS))
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.queries, options.candidates, options.dimensions
    if options.only:
        print(json.dumps(measure(options.only, sizes)))
        return
    best = {}
    for _ in range(options.rounds):
        for contender in options.contenders:
            result = in_own_process(contender, sizes)
            known = best.setdefault(contender, result)
            known["seconds"] = min(known["seconds"], result["seconds"])
    bare = [r["seconds"] for c, r in best.items() if c.startswith("matmul")]
    print("{:,} queries x {:,} candidates x {}".format(*sizes))
    print(f"{'':20}  seconds  x fastest matmul  extra MB  recall@{K}")
    for contender, result in best.items():
        times = result["seconds"] / min(bare) if bare else float("nan")
        recall = result["recall"]
        print(
            f"{contender:20}  {result['seconds']:7.2f}  {times:16.2f}  "
            f"{result['megabytes']:8.0f}  "
            + ("" if recall is None else f"{recall:10.5f}")
        )


if __name__ == "__main__":
    main()

"""What only a GPU shows: exactness, chunk sizes, time and memory.

    KERAS_BACKEND=torch python -m tests.benchmarks.gpu     # or jax
    KERAS_BACKEND=torch python -m tests.benchmarks.gpu --dry  # a CPU, tiny

Runs in a checkout, without TensorFlow and without a network. Beside a CUDA
build of PyTorch or JAX, and its NumPy, it needs keras, namex, optree, h5py,
ml_dtypes and rich, and what these need: absl-py, packaging, typing_extensions,
and of rich markdown-it-py, mdurl and pygments. On a machine without a network,
carry their wheels along:

    pip download --only-binary :all: --no-deps -d wheels keras namex optree \
        h5py ml_dtypes rich absl-py packaging typing_extensions \
        markdown-it-py mdurl pygments
    python -m pip install --no-index --no-deps --target there wheels/*.whl
    PYTHONPATH=there:. KERAS_BACKEND=torch python -m tests.benchmarks.gpu

The parts, in this order; `gpu-<backend>.json` and `.md` are written after each:

- `exact`: losses and gradients beside float64: chunks of a GPU's size, the kept
  table, several vectors, n-tuples, products in half precision, TensorFloat-32,
  compiled and eager, a tower in chunks;
- `chunks`: the time by the rows of a chunk, and with and without a kept table;
- `table`: time and memory by D, B and precision, as a share of three bare
  products, beside the naive form (`plain`), PyTorch's `linear_cross_entropy`,
  cut-cross-entropy, Liger and sentence-transformers, those that are installed.
  The first two and Liger have log q, as a bias; `ours_rules` has ids, too;
- `encoder`: a step of an encoder of the size of MiniLM-L6, with random weights
  and SGD, plain and in `ChunkedTower`.

A contender that fails has its error in the place of its figures. What no time
is left for is left out, and says so. Exit code 1 if something is not exact.
cut-cross-entropy, Liger and the calls of CUDA were never run by us.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import time

import numpy as np

from tests.benchmarks import gpu_engines, inputs, towers

MINILM = towers.Size(tokens=128, width=384, heads=12, layers=6, words=30_522)
TINY = towers.Size(tokens=4, width=8, heads=2, layers=1, words=50)


# The parts, and the share of the minutes after which each leaves out the rest.
PARTS = {"exact": 0.3, "chunks": 0.45, "table": 0.8, "encoder": 1.0}


class Run:
    """The parts, with the sizes of a GPU or tiny ones.

    Args:
        dry: Whether it runs on a CPU, in seconds.
        minutes: For all parts.
    """

    def __init__(self, dry, minutes=8.0):
        self.dry = dry
        self.engine = gpu_engines.engine(dry)
        self._start, self._minutes = time.monotonic(), minutes
        self._end = math.inf
        self._seconds = 1e-9 if dry else 0.2  # at least one repeat

    def part(self, name):
        """Returns a list of dicts, what the part found."""
        self._end = self._start + 60 * self._minutes * PARTS[name]
        return getattr(self, name)()

    def exact(self):
        """Returns the errors relative to the largest entry, and limits."""
        rows, half = (100, 120) if self.dry else (12_000, 8_000)
        kept, some = (20, 60) if self.dry else (1_000, 4_000)
        fine, rough = 2e-5, 2.0**-8
        single, double = (self.engine.usual,), ("compiled", "eager")
        cases = [  # name, how, rows, P, n-tuples, dtype, limit
            ("chunks", double, rows, 1, False, "float32", fine),
            ("kept table", double, kept, 1, False, "float32", fine),
            ("several vectors", single, some, 3, False, "float32", fine),
            ("n-tuples", single, some, 1, True, "float32", fine),
            ("bfloat16", single, half, 1, False, "bfloat16", 2 * rough),
            ("float16", single, half, 1, False, "float16", rough / 2),
            ("TensorFloat-32", single, rows, 1, False, "float32", rough),
        ]
        found = []
        for name, ways, *kind, limit in cases:
            precision = "tensorfloat32" if "Tensor" in name else "float32"
            for how in ways:
                one = {"case": f"{name}, {how}", "limit": limit}
                with self._failing(one), self.engine.precision(precision):
                    error = self._error(*kind, how == "compiled")
                    one.update(zip(("loss", "query", "candidate"), error))
                found.append(one)
        one = {"case": "tower in chunks", "limit": fine}
        with self._failing(one), self.engine.precision("float32"):
            one["weights"] = self._tower_error(40 if self.dry else 4_000)
        return [*found, one]

    def _error(self, rows, vectors, tuples, dtype, compiled):
        import keras

        from inbatch_neg import ops

        batch = inputs.make(rows, 16 if self.dry else 64, vectors=vectors)
        rules = dict(batch._replace(with_rules=True).rules)
        query, candidate = batch.query, batch.candidate
        if tuples:  # the second half are the hard negatives
            pairs = rows // 2
            query = query[:pairs]
            order = np.stack([np.arange(pairs), np.arange(pairs, 2 * pairs)], 1)
            candidate = candidate[order]
            rules = {name: value[order] for name, value in rules.items()}
        # Values that half precision has, and the truth of these.
        query, candidate = (
            keras.ops.convert_to_numpy(
                keras.ops.cast(keras.ops.cast(v, dtype), "float32")
            )
            for v in (query, candidate)
        )
        flat = _flat(candidate) if tuples else candidate
        of_flat = {n: _flat(v) if tuples else v for n, v in rules.items()}
        truth = list(reference(query, flat, **of_flat))
        tensors = {
            name: keras.ops.convert_to_tensor(value)
            for name, value in rules.items()
        }

        def loss_of(query, candidate):
            losses = ops.in_batch_softmax_loss(query, candidate, **tensors)
            return keras.ops.mean(losses)

        with self._as_on_gpu():
            results = self.engine.differentiate(
                loss_of, query, candidate, dtype, compiled
            )
        if tuples:
            results[2] = _flat(results[2])
        return list(map(_difference, results, truth))

    def _tower_error(self, rows):
        import keras

        import inbatch_neg

        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(16, "gelu"), keras.layers.Dense(8)]
        tower = keras.Sequential(layers)
        features = np.random.default_rng(0).normal(size=(2, rows, 8))
        query, item = map(
            keras.ops.convert_to_tensor, features.astype("float32")
        )
        tower(query[:1])
        chunked = inbatch_neg.ChunkedTower(tower, rows // 3)

        def loss_of(tower):
            losses = inbatch_neg.ops.in_batch_softmax_loss(
                tower(query), tower(item)
            )
            return keras.ops.mean(losses)

        found, truth = (
            self.engine.weight_gradients(
                lambda tower=tower: loss_of(tower), layers[0].weights
            )
            for tower in (chunked, tower)
        )
        return max(map(_difference, found, truth))

    def chunks(self):
        """Returns the times by rows of a chunk, and of kept tables."""
        sizes = (300,) if self.dry else (8_192, 65_536)
        many = (64, 128) if self.dry else (512, 1024, 2048, 4096, 8192, 16_384)
        found = []
        for rows in sizes:
            for precision in gpu_engines.PRECISIONS[1:]:
                for chunk in many:
                    if chunk <= rows and chunk * rows < 2**31:
                        tuning = self._tuning(
                            chunk_scores=chunk * rows, max_chunk_rows=chunk
                        )
                        found.append(
                            self._swept(rows, precision, tuning, chunk)
                        )
        for rows in (50,) if self.dry else (512, 1024, 2048, 4096):
            for kept in (True, False):
                scores = rows * rows if kept else 0
                tuning = self._tuning(max_dense_scores=scores)
                label = "kept" if kept else "in chunks"
                found.append(self._swept(rows, "float32", tuning, label))
        return found

    def _swept(self, rows, precision, tuning, label):
        one = {"B": rows, "precision": precision, "chunk": label}
        with self._failing(one), self._as_on_gpu(tuning):
            one.update(self._measure("ours", inputs.make(rows, 64), precision))
        return one

    def table(self):
        """Returns time and memory of the contenders."""
        sizes = (300,) if self.dry else (4_096, 16_384, 65_536, 131_072)
        widths = (16,) if self.dry else (64, 128, 768)
        peers = [
            peer
            for peer, module in self.engine.peers.items()
            if gpu_engines.installed(module)
        ]
        found = []
        for width in widths:
            for rows in sizes:
                plain = inputs.make(rows, width)
                rules = plain._replace(with_rules=True)
                for precision in gpu_engines.PRECISIONS[:: 1 + self.dry]:
                    for name in (
                        "products",
                        "ours",
                        "ours_rules",
                        "plain",
                        *peers,
                    ):
                        one = {"B": rows, "D": width, "precision": precision}
                        one["contender"] = name
                        found.append(one)
                        # A table of scores, its softmax and its gradient.
                        needed = 3 * 4 * rows * rows
                        keeps = ("plain", "sentence_transformers")
                        if name in keeps and needed > self.engine.free_bytes():
                            one["error"] = "needs more memory than there is"
                            continue
                        batch = plain if name in ("products", "ours") else rules
                        with self._failing(one), self._as_on_gpu():
                            one.update(
                                self._measure(
                                    name.removesuffix("_rules"),
                                    batch,
                                    precision,
                                )
                            )
        return found

    def _measure(self, contender, batch, precision):
        dtype = "bfloat16" if precision == "bfloat16" else "float32"
        with self.engine.precision(precision):
            step = self.engine.step(contender, batch, dtype)
            return self.engine.measure(step, self._seconds)

    def encoder(self):
        """Returns rows a second of whole steps."""
        import keras

        size = TINY if self.dry else MINILM
        before = keras.config.dtype_policy()
        found = []
        for policy in ("float32", "mixed_bfloat16"):
            keras.config.set_dtype_policy(policy)
            for rows in (8,) if self.dry else (256, 1024, 4096, 16_384):
                for chunk in (0, 4 if self.dry else 256):
                    one = {"B": rows, "policy": policy, "chunk": chunk}
                    # All that the layers keep for the gradients, roughly.
                    kept = (
                        2 * rows * size.tokens * size.layers * 20 * size.width
                    )
                    if not chunk and 4 * kept > self.engine.free_bytes():
                        one["error"] = "needs more memory than there is"
                    else:
                        with self._failing(one):
                            train = towers.keras_step(rows, chunk, size)
                            one.update(
                                self.engine.measure(
                                    lambda train=train, rows=rows: train(rows),
                                    self._seconds,
                                )
                            )
                            del train
                    found.append(one)
        keras.config.set_dtype_policy(before)
        return found

    @contextlib.contextmanager
    def _failing(self, one):
        """Keeps an error in the place of figures, and leaves late ones out."""
        try:
            if time.monotonic() > self._end:
                raise TimeoutError("left out: no time was left")
            yield
        except Exception as error:
            if self.dry:
                raise
            one["error"] = f"{type(error).__name__}: {str(error)[:200]}"
        print(one, file=sys.stderr, flush=True)

    def _tuning(self, **sizes):
        from inbatch_neg.backends import base

        tuning = base.GPU_TUNING
        if self.dry:  # so that a tiny batch has several chunks
            tuning = tuning._replace(
                chunk_scores=2**13,
                table_scores=2**10,
                min_chunk_rows=8,
                max_dense_scores=2**10,
            )
        return tuning._replace(**sizes)

    @contextlib.contextmanager
    def _as_on_gpu(self, tuning=None):
        """Sets the sizes; in a dry run a CPU takes the path of a GPU."""
        from inbatch_neg.backends import backend

        tuning = tuning or self._tuning()
        backend.tuning = lambda tensor: tuning
        if self.dry:
            backend.has_half_products = lambda tensor: True
        try:
            yield
        finally:
            del backend.tuning
            if self.dry:
                del backend.has_half_products


def reference(query, candidate, candidate_ids, candidate_sampling_probability):
    """Returns the mean loss and both gradients, in float64 and in NumPy."""
    shape = query.shape
    query = query.astype("float64").reshape(len(query), -1, shape[-1])
    candidate = candidate.astype("float64")
    bias = -np.log(candidate_sampling_probability.astype("float64"))
    rows, losses = len(query), []
    d_query, d_candidate = np.zeros_like(query), np.zeros_like(candidate)
    for start in range(0, rows, 512):
        part = query[start : start + 512]
        own = np.arange(start, start + len(part))
        products = np.stack([p @ candidate.T for p in np.moveaxis(part, 1, 0)])
        best = products.argmax(0)
        scores = products.max(0) + bias
        hit = candidate_ids[own][:, None] == candidate_ids[None]
        hit[np.arange(len(own)), own] = False
        scores[hit] = -np.inf
        scores -= scores.max(1, keepdims=True)
        share = np.exp(scores)
        total = share.sum(1)
        losses.append(np.log(total) - scores[np.arange(len(own)), own])
        share /= total[:, None]
        share[np.arange(len(own)), own] -= 1.0
        share /= rows
        for p in range(query.shape[1]):
            won = np.where(best == p, share, 0.0)
            d_query[own, p] = won @ candidate
            d_candidate += won.T @ part[:, p]
    return np.concatenate(losses).mean(), d_query.reshape(shape), d_candidate


def _flat(tensor):
    """(B, 2, ...) as candidates of all rows, the positives first."""
    return np.concatenate([tensor[:, 0], tensor[:, 1]])


def _difference(found, truth):
    return float(np.abs(found - truth).max() / np.abs(truth).max())


def is_exact(found):
    """Whether all cases ran, with no error above their limits."""
    return all(
        "error" not in one and one.get(name, 0.0) <= one["limit"]
        for one in found
        for name in ("loss", "query", "candidate", "weights")
    )


def markdown(title, results):
    """Returns a table for each part."""
    lines = [f"# {title}"]
    for part, found in results.items():
        names = list(dict.fromkeys(name for one in found for name in one))
        lines += ["", f"## {part}", "", f"| {' | '.join(names)} |"]
        lines.append("|---" * len(names) + "|")
        for one in found:
            cells = [_cell(name, one.get(name)) for name in names]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(name, value):
    if value is None:
        return "-"
    if name == "seconds":
        return f"{value * 1e3:.2f} ms"
    if name == "extra_bytes":
        return f"{value / 1e6:,.0f} MB"
    if name == "share":
        return f"{value:.2f}"
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def add_shares(found):
    """Adds the time of the three products over that of each contender."""
    limits = {
        (one["B"], one["D"], one["precision"]): one.get("seconds")
        for one in found
        if one["contender"] == "products"
    }
    for one in found:
        limit = limits[one["B"], one["D"], one["precision"]]
        if limit and "seconds" in one:
            one["share"] = limit / one["seconds"]


def main(arguments=None):
    """Runs the parts and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dry", action="store_true", help="tiny sizes, on a CPU")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS))
    add("--minutes", type=float, default=8.0, help="then the rest is left out")
    add("--folder", default=".", help="of the JSON and the Markdown file")
    options = parser.parse_args(arguments)
    os.environ.setdefault("KERAS_BACKEND", "torch")
    run = Run(options.dry, options.minutes)
    dry = " (a dry run: figures mean nothing)" if options.dry else ""
    title = f"{run.engine.name}, {run.engine.device}{dry}"
    results = {}
    for part in options.only:
        results[part] = run.part(part)
        if part == "table":
            add_shares(results[part])
        place = os.path.join(
            options.folder, f"gpu-{os.environ['KERAS_BACKEND']}"
        )
        with open(f"{place}.json", "w") as file:
            json.dump({"title": title, "results": results}, file, indent=1)
        with open(f"{place}.md", "w") as file:
            file.write(markdown(title, results))
    print(markdown(title, results))
    return 0 if is_exact(results.get("exact", [])) else 1


if __name__ == "__main__":
    sys.exit(main())

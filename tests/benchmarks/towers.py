"""`ChunkedTower` around a Transformer beside the plain Transformer.

A training step of one encoder for queries and items, with the softmax of the
package. Each figure comes from a process of its own; the contenders take
turns. `python -m tests.benchmarks.towers --help`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np


class Size(NamedTuple):
    """Of an encoder."""

    tokens: int
    width: int
    heads: int
    layers: int
    words: int


SIZE = Size(tokens=32, width=128, heads=4, layers=2, words=10_000)
BACKENDS = ("tensorflow", "jax", "torch")
TARGETS = {  # least ratio of memory, most ratio of time, at B = 4,096 and 256
    "tensorflow": (8.0, 1.1),
    "jax": (8.0, 1.1),
    "torch": (6.0, 1.4),
}
MOST_PLAIN_BYTES = 16e9


def keras_step(rows, chunk_size, size=SIZE):
    """Returns a function of a number of rows that trains one step on them."""
    import keras

    import inbatch_neg

    tower = _encoder(keras, size)
    if chunk_size:
        tower = inbatch_neg.ChunkedTower(tower, chunk_size)
    query, item = (keras.Input((size.tokens,), dtype="int32") for _ in "qi")
    softmax = inbatch_neg.InBatchNegativeSoftmax(
        temperature=0.05, batch_size="any"
    )
    model = keras.Model([query, item], softmax(tower(query), tower(item)))
    # XLA's products are slower than TensorFlow's own on a CPU.
    model.compile(
        keras.optimizers.SGD(1e-3),
        loss=inbatch_neg.InBatchNegativeLoss(),
        jit_compile=keras.backend.backend() == "jax",
    )
    return lambda rows: float(
        np.asarray(model.train_on_batch(_pairs(rows, size), np.zeros(rows)))
    )


def _encoder(keras, size):
    layers = keras.layers
    keras.utils.set_random_seed(0)

    class Position(layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=shape[1:])

        def call(self, x):
            return x + self.table

    ids = keras.Input((size.tokens,), dtype="int32")
    x = Position()(layers.Embedding(size.words, size.width)(ids))
    for _ in range(size.layers):
        attended = layers.MultiHeadAttention(
            size.heads, size.width // size.heads
        )(x, x)
        x = layers.LayerNormalization()(x + attended)
        hidden = layers.Dense(4 * size.width, activation="gelu")(x)
        x = layers.LayerNormalization()(x + layers.Dense(size.width)(hidden))
    vector = layers.GlobalAveragePooling1D()(x)
    return keras.Model(ids, layers.UnitNormalization()(vector))


def sentence_transformers_step(rows, chunk_size):
    """The same with the cached loss of sentence-transformers, around a BERT."""
    import torch
    from sentence_transformers import losses

    model = _bert()
    loss_of = losses.CachedMultipleNegativesRankingLoss(
        model, mini_batch_size=chunk_size
    )
    return _torch_step(
        model, lambda rows: loss_of(_features(rows), torch.zeros(rows))
    )


def chunked_bert_step(rows, chunk_size):
    """`ChunkedTower` around the modules that sentence-transformers trains."""
    import keras
    import torch

    import inbatch_neg

    model = _bert()

    class Embed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, features):
            return self.model(dict(features))["sentence_embedding"]

    tower = inbatch_neg.ChunkedTower(
        keras.layers.TorchModuleWrapper(Embed()), chunk_size
    )
    softmax = inbatch_neg.InBatchNegativeSoftmax(
        temperature=0.05, batch_size="any"
    )

    def loss_of(rows):
        query, item = (tower(x, training=True) for x in _features(rows))
        return softmax(query, item, training=True).mean()

    return _torch_step(model, loss_of)


def _torch_step(model, loss_of):
    """Returns a function of a number of rows that trains one step on them."""
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(rows):
        optimizer.zero_grad()
        loss = loss_of(rows)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _bert():
    """Returns a BERT of the same size with random weights, and its pooling."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer, models

    class Bert(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = transformers.BertModel(
                transformers.BertConfig(
                    vocab_size=SIZE.words,
                    hidden_size=SIZE.width,
                    num_hidden_layers=SIZE.layers,
                    num_attention_heads=SIZE.heads,
                    intermediate_size=4 * SIZE.width,
                    max_position_embeddings=SIZE.tokens,
                    hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0,
                ),
                add_pooling_layer=False,
            )

        def forward(self, features, **kwargs):
            output = self.bert(features["input_ids"])
            features["token_embeddings"] = output.last_hidden_state
            return features

    torch.manual_seed(0)
    return SentenceTransformer(
        modules=[Bert(), models.Pooling(SIZE.width), models.Normalize()]
    )


def _features(rows):
    """Returns the queries and the items as sentence-transformers takes them."""
    import torch

    return [
        {
            "input_ids": torch.as_tensor(ids.astype("int64")),
            "attention_mask": torch.ones(ids.shape, dtype=torch.int64),
        }
        for ids in _pairs(rows)
    ]


STEPS = {
    "plain": keras_step,
    "chunked": keras_step,
    "sentence_transformers": sentence_transformers_step,
    "chunked_bert": chunked_bert_step,
}


def _pairs(rows, size=SIZE):
    random = np.random.default_rng(rows)
    return [
        random.integers(1, size.words, (rows, size.tokens)).astype("int32")
        for _ in "qi"
    ]


def measure(contender, rows, chunk_size, steps):
    """Returns seconds, processor seconds and extra bytes of a step."""
    step = STEPS[contender](rows, chunk_size)
    step(32)  # loads what the engine loads late
    before = _peak()
    losses, seconds, processor = [], [], []
    for _ in range(1 + steps):
        start, processor_start = time.perf_counter(), time.process_time()
        losses.append(step(rows))
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - processor_start)
    return {
        "loss": losses[0],
        "seconds": min(seconds[1:]),  # the first one compiles
        "processor_seconds": min(processor[1:]),
        "extra_bytes": _peak() - before,
    }


def _peak():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run(backend, contender, rows, chunk_size, options):
    """Returns what `measure` finds in a process of its own, or its error."""
    arguments = [contender, rows, chunk_size, options.steps]
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, json; from tests.benchmarks import towers; "
            "print(json.dumps(towers.measure(*json.loads(sys.argv[1]))))",
            json.dumps(arguments),
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return {"error": done.stderr[-2000:] or f"exit {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def contenders_of(backend, chunks):
    """Returns (contender, chunk size), the plain tower first."""
    found = [("plain", 0), *(("chunked", size) for size in chunks)]
    if backend == "torch":
        for name in ("sentence_transformers", "chunked_bert"):
            found += [(name, size) for size in chunks]
    return found


def main():
    """Measures, prints a table and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    add("--rows", nargs="+", type=int, default=[1024, 2048, 4096, 8192])
    add("--chunks", nargs="+", type=int, default=[64, 128, 256, 512])
    add("--rounds", type=int, default=1)
    add("--steps", type=int, default=2, help="timed steps of a process")
    add("--without", nargs="*", default=[], help="contenders left out")
    add("--json", default="towers.json", help="keeps all figures")
    options = parser.parse_args()
    every, missed = [], False
    for backend in options.backends:
        plain_bytes = 0.0
        for rows in options.rows:
            found = {}
            for _ in range(options.rounds):
                for contender, size in contenders_of(backend, options.chunks):
                    too_large = 2 * plain_bytes > MOST_PLAIN_BYTES
                    if (
                        contender in options.without
                        or size >= rows
                        or (contender == "plain" and too_large)
                    ):
                        continue
                    result = run(backend, contender, rows, size, options)
                    found.setdefault((contender, size), []).append(result)
            if ("plain", 0) in found:
                plain_bytes = _best(found["plain", 0], "extra_bytes")
            missed |= _print(backend, rows, found)
            every += [
                {
                    "backend": backend,
                    "rows": rows,
                    "contender": contender,
                    "chunk_size": size,
                    "results": results,
                }
                for (contender, size), results in found.items()
            ]
            with open(options.json, "w") as file:
                json.dump(every, file, indent=1)
    return int(missed)


def _best(results, name):
    return min(r.get(name, float("inf")) for r in results)


def _print(backend, rows, found):
    """Prints the figures of a batch; returns whether a target is missed."""
    missed = False
    for (contender, size), results in found.items():
        for result in results:
            if "error" in result:
                print(f"{backend} {contender} failed: {result['error']}")
                missed = True
        line = f"| {backend} | {rows:,} | {contender} | {size or ''} |"
        seconds = _best(results, "seconds")
        memory = _best(results, "extra_bytes")
        line += f" {seconds:.2f} s | {memory / 1e6:,.0f} MB |"
        if ("plain", 0) in found and contender != "plain":
            times = seconds / _best(found["plain", 0], "seconds")
            less = _best(found["plain", 0], "extra_bytes") / memory
            line += f" {times:.2f} | 1/{less:.1f} |"
            if (contender, rows, size) == ("chunked", 4096, 256):
                least, most = TARGETS[backend]
                met = less >= least and times <= most
                line += " met" if met else " missed"
                missed |= not met
        print(line, flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())

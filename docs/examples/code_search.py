"""Finds Python functions by their descriptions, with large and small batches.

    pip install "inbatch_neg[examples]"
    python code_search.py                           # trains, compares, saves
    python code_search.py --ask "split a string into lines"
    python code_search.py --ask                     # one question after another

A pair is the description of a function, from its docstring, and its code
without the docstring. `code_search_data.py` reads the pairs from the packages
on this machine; its docstring says which are left out, and how they are split.
Two small Transformers are trained on the pairs, at B = 256 and at B = 4,096,
for the same number of epochs and with `ChunkedTower`. The learning rate is
chosen on the validation part. For every description of the test part, the
models and BM25, which compares words, search among all functions of that part.
`code_search_encoder.py` fine-tunes a pretrained encoder instead, and finds
more.
"""

import argparse
import json
import pathlib
import time
from typing import NamedTuple

import bm25s
import keras
import numpy as np
from code_search_data import (
    Vocabulary,
    default_folders,
    read_functions,
    split_by_package,
    words,
)
from keras import layers
from matplotlib.figure import Figure
from tqdm import tqdm

import inbatch_neg

DESCRIPTION, CODE = 16, 40  # words, longer texts are cut
WORDS = 20_000  # of the vocabulary, at most
WIDTH, HEADS = 64, 2
DROPOUT = 0.1
TEMPERATURE = 0.05
LEARNING_RATES = (2e-3, 8e-3)  # a batch 16 times as large may take 4 times
FIGURES = ("mrr", "recall@1", "recall@10")


# The model: plain Keras, but for `ChunkedTower` and the softmax.


@keras.saving.register_keras_serializable(package="code_search")
class Positions(layers.Layer):
    """Adds a learned vector to each place of a text."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, shape):
        """Makes the vectors."""
        self.table = self.add_weight(shape=shape[1:], initializer="zeros")

    def call(self, x):
        """Adds them."""
        return x + self.table


def tower(name, length, embedding):
    """Returns a model from numbers of words (B, length) to (B, WIDTH)."""
    word = keras.Input((length,), dtype="int32", name=name)
    x = layers.Dropout(DROPOUT)(Positions()(embedding(word)))
    y = layers.LayerNormalization()(x)
    y = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(y, y)
    x = layers.Add()([x, y])
    y = layers.Dense(2 * WIDTH, "relu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dense(WIDTH)(y)])
    vector = layers.GlobalAveragePooling1D()(x)  # leaves the padding out
    return keras.Model(word, layers.UnitNormalization()(vector), name=name)


def build(num_words, chunk_size):
    """Returns the model from pairs to losses (B,), and its two towers."""
    # The towers share the vectors of the words, so that a word of a
    # description is near the same word in code from the start.
    embedding = layers.Embedding(num_words, WIDTH, mask_zero=True)
    towers = [
        tower("description", DESCRIPTION, embedding),
        tower("code", CODE, embedding),
    ]
    inputs = {
        t.name: keras.Input(t.input_shape[1:], dtype="int32", name=t.name)
        for t in towers
    }
    vectors = [
        # A batch that is no larger than a chunk goes through the tower itself.
        inbatch_neg.ChunkedTower(t, chunk_size)(inputs[t.name])
        for t in towers
    ]
    softmax = inbatch_neg.InBatchNegativeSoftmax(
        temperature=TEMPERATURE, symmetric=True
    )
    return keras.Model(inputs, softmax(*vectors)), *towers


class Result(NamedTuple):
    """What came of one training, or of BM25."""

    mrr: float  # on the test part, as the next two
    recall_1: float
    recall_10: float
    learning_rate: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    validation: tuple = ()  # MRR of every epoch


# Training.


class Part(NamedTuple):
    """Functions as numbers of their words."""

    description: np.ndarray  # (rows, DESCRIPTION)
    code: np.ndarray  # (rows, CODE)


def encode(vocabulary, functions, lengths=(DESCRIPTION, CODE)):
    """Returns the `Part` of a list of functions."""
    return Part(
        vocabulary.encode([f.description for f in functions], lengths[0]),
        vocabulary.encode([f.code for f in functions], lengths[1]),
    )


def evaluation(towers, part):
    """Returns what ranks all functions of a part for each description."""
    return inbatch_neg.RetrievalEvaluation(
        *towers,
        part.description,
        np.arange(len(part.code)),
        part.code,
        k=(1, 10),
        batch_size=512,
        verbose=0,
    )


def schedule(learning_rate, steps):
    """Returns a rate that rises for a tenth of the steps, then falls to 0."""
    warmup = max(steps // 10, 1)
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / warmup,
        max(steps - warmup, 1),
        warmup_target=learning_rate,
        warmup_steps=warmup,
    )


def train(parts, num_words, batch_size, learning_rate, options):
    """Trains one pair of towers; returns it and its `Result`."""
    keras.utils.set_random_seed(options.seed)
    model, *towers = build(num_words, options.chunk_size)
    batches = inbatch_neg.full_batches(
        parts["train"]._asdict(), batch_size, shuffle=True, seed=options.seed
    )
    steps = len(batches) * options.epochs
    model.compile(
        keras.optimizers.Adam(schedule(learning_rate, steps)),
        loss=inbatch_neg.InBatchNegativeLoss(),
        # XLA's products are slower than TensorFlow's own on a CPU.
        jit_compile=keras.backend.backend() == "jax",
    )
    name = f"B = {batch_size:,}, {learning_rate:g}"
    with tqdm(total=steps, desc=name, unit="step") as bar:
        progress = Progress(bar)
        history = model.fit(
            batches,
            epochs=options.epochs,
            shuffle=False,  # the batches are shuffled already
            verbose=0,
            callbacks=[evaluation(towers, parts["validation"]), progress],
        ).history
    found = evaluation(towers, parts["test"])()
    return towers, Result(
        *(found[figure] for figure in FIGURES),
        learning_rate,
        steps,
        progress.seconds,
        tuple(history["val_mrr"]),
    )


class Progress(keras.callbacks.Callback):
    """Moves the bar, and adds up the seconds of the steps."""

    def __init__(self, bar):
        super().__init__()
        self.bar, self.seconds = bar, 0.0

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self.started = self.ended = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Moves the bar."""
        self.ended = time.perf_counter()
        self.bar.update()

    def on_epoch_end(self, epoch, logs=None):
        """Shows how it goes; the evaluation is not counted."""
        self.seconds += self.ended - self.started
        self.bar.set_postfix({n: logs[n] for n in ("loss", "val_mrr")})


def compare(split, options):
    """Trains at every batch size, with every learning rate.

    Returns:
        `(results, vocabulary, towers)`: {title: `Result`} of the best learning
        rates, and the best towers, both by the MRR on the validation part.
    """
    vocabulary = Vocabulary.of(split.train, WORDS)
    parts = {
        name: encode(vocabulary, functions)
        for name, functions in split._asdict().items()
    }
    results = {"BM25": bm25(split.test)}
    best_towers, best = None, -1.0
    for batch_size in options.batch_sizes:
        kept = None
        for rate in options.learning_rates:
            towers, result = train(
                parts, len(vocabulary), batch_size, rate, options
            )
            if kept is None or result.validation[-1] > kept.validation[-1]:
                kept = result
            if result.validation[-1] > best:
                best_towers, best = towers, result.validation[-1]
        results[f"B = {batch_size:,}"] = kept
    return results, vocabulary, best_towers


def bm25(functions):
    """Returns the `Result` of BM25 on the words, none cut off."""
    return ranked(bm25_scores(functions))


def bm25_scores(functions):
    """Returns the score of each description with each code, (rows, rows)."""
    index = bm25s.BM25()
    index.index([words(f.code) for f in functions], show_progress=False)
    return np.array([index.get_scores(words(f.description)) for f in functions])


def ranked(scores):
    """Returns the `Result` of scores whose diagonal belongs together."""
    # As in `RetrievalEvaluation`, a tie counts against the function.
    ranks = np.sum(scores >= np.diagonal(scores)[:, None], axis=1)
    return Result(np.mean(1 / ranks), np.mean(ranks <= 1), np.mean(ranks <= 10))


# The search.


class Search:
    """Finds functions by descriptions.

    Args:
        vocabulary: The `Vocabulary`.
        query_tower: The model of descriptions.
        vectors: (functions, WIDTH), from the model of code.
        labels: [(place, signature, description)] of the functions.
    """

    vocabulary_type = Vocabulary
    lengths = (DESCRIPTION, CODE)

    def __init__(self, vocabulary, query_tower, vectors, labels):
        self.vocabulary, self.query_tower = vocabulary, query_tower
        self.vectors, self.labels = vectors, labels

    @classmethod
    def over(cls, vocabulary, towers, functions):
        """Embeds the functions."""
        query_tower, code_tower = towers
        code = encode(vocabulary, functions, cls.lengths).code
        vectors = code_tower.predict(code, batch_size=512, verbose=0)
        labels = [
            (f.place, f.code.split("\n", 1)[0], f.description)
            for f in functions
        ]
        return cls(vocabulary, query_tower, vectors, labels)

    @classmethod
    def load(cls, folder):
        """Reads what `save` wrote."""
        stored = json.loads((folder / "functions.json").read_text("utf-8"))
        return cls(
            cls.vocabulary_type(stored["vocabulary"]),
            keras.models.load_model(folder / "description.keras"),
            np.load(folder / "vectors.npy"),
            stored["labels"],
        )

    def save(self, folder):
        """Writes the vectors, the tower of questions and the labels."""
        folder.mkdir(parents=True, exist_ok=True)
        self.query_tower.save(folder / "description.keras")
        np.save(folder / "vectors.npy", self.vectors)
        text = json.dumps(
            {"vocabulary": self.vocabulary.known, "labels": self.labels}
        )
        (folder / "functions.json").write_text(text, "utf-8")

    def __call__(self, question, count=10):
        """Returns the best [(score, place, signature, description)]."""
        numbers = self.vocabulary.encode([question], self.lengths[0])
        scores = self.vectors @ self.query_tower.predict(numbers, verbose=0)[0]
        best = np.argsort(-scores)[:count]
        return [(float(scores[k]), *self.labels[k]) for k in best]


def answer(search, question):
    """Prints the best functions for a question, or for those that are typed."""
    questions = [question] if question else iter(lambda: input("? "), "")
    try:
        for asked in questions:
            for score, place, signature, description in search(asked):
                print(f"{score:.2f}  {place}  {signature[:60]}")
                print(f"      {description[:72]}")
    except EOFError:
        print()


# The report.


def table(results):
    """Returns the final table of {title: `Result`}."""
    heading = "on the test part"
    width = max(map(len, [heading, *results]))
    lines = [
        f"{heading:{width}}    MRR  recall@1  recall@10    rate  steps     s"
    ]
    for title, r in results.items():
        line = f"{title:{width}}  {r.mrr:.3f}  {r.recall_1:8.3f}"
        line += f"  {r.recall_10:9.3f}"
        if r.steps:
            line += f"  {r.learning_rate:6g}  {r.steps:5}  {r.seconds:4.0f}"
        lines.append(line)
    return "\n".join(lines)


def plot(path, results):
    """Saves a picture of the MRR by epoch, a line per batch size."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for title, result in results.items():
        if result.validation:
            epochs = np.arange(1, len(result.validation) + 1)
            axes.plot(epochs, result.validation, marker=".", label=title)
    axes.set(xlabel="epoch", ylabel="MRR on the validation part")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def add_common(parser, folder):
    """Adds the options that both examples have."""
    add = parser.add_argument
    add(
        "--ask",
        nargs="?",
        const="",
        metavar="QUESTION",
        help="search, with what the folder holds; without a question, asks",
    )
    add("--folder", default=folder, help="of the trained search")
    add("--source", nargs="+", help="folders of packages (else the installed)")
    add("--seed", type=int, default=0)
    add("--plot", default=f"{folder}.png", help="picture file")


def asked(options, search_type):
    """Answers from the folder, if it is asked to; returns whether it did."""
    folder = pathlib.Path(options.folder)
    found = options.ask is not None and (folder / "functions.json").is_file()
    if found:
        answer(search_type.load(folder), options.ask)
    return found


def read(options, limit):
    """Returns at most `limit` functions, and their `Split`."""
    with tqdm(total=limit, desc="reading", unit="pair") as bar:
        functions = read_functions(
            options.source or default_folders(),
            limit,
            options.seed,
            bar.update,
        )
    split = split_by_package(functions, seed=options.seed)
    for name, part in split._asdict().items():
        packages = len({f.package for f in part})
        print(f"{name}: {len(part):,} functions of {packages} packages")
    return functions, split


def main(arguments=None):
    """Runs the command line; returns {title: `Result`}, if it trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common(parser, "code_search")
    add = parser.add_argument
    add("--pairs", type=int, default=24_000, help="at most")
    add("--epochs", type=int, default=8)
    add("--batch-sizes", type=int, nargs="+", default=[256, 4096])
    add("--chunk-size", type=int, default=256)
    add(
        "--learning-rates",
        type=float,
        nargs="+",
        default=LEARNING_RATES,
        help="the best on the validation part is kept",
    )
    options = parser.parse_args(arguments)
    if asked(options, Search):
        return None

    started = time.time()
    functions, split = read(options, options.pairs)
    results, vocabulary, towers = compare(split, options)
    print(f"\n{table(results)}\n")
    plot(options.plot, results)
    search = Search.over(vocabulary, towers, functions)
    search.save(pathlib.Path(options.folder))
    print(
        f"{time.time() - started:.0f} s on {keras.backend.backend()}; the MRR "
        f"by epoch is drawn in {options.plot}, the search is in "
        f"{options.folder}"
    )
    if options.ask is not None:
        answer(search, options.ask)
    return results


if __name__ == "__main__":
    main()

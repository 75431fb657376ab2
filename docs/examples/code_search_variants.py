"""Compares ways to train the encoder of `code_search_encoder.py`.

    KERAS_BACKEND=jax python code_search_encoder.py --all
    KERAS_BACKEND=jax python code_search_encoder.py --all guide lora

Every variant begins with the weights as they come, and is trained on the same
pairs, once. It differs from the default training by what `VARIANTS` says. A
larger batch makes fewer steps of the same pairs; its learning rate grows with
the square root of the batch. No rate was searched. The table is printed after
each variant, and its line is kept in `variants.jsonl` in the folder.
"""

import argparse
import gc
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import code_search
import code_search_encoder
import keras
import numpy as np
from code_search_encoder import softmax
from keras import ops

import inbatch_neg

FIRST, LAST, SHARE = 10, 50, 0.95  # ranks of negatives; docs/more-negatives.md
MARGIN = 0.0  # of the guide; docs/false-negatives.md
WIDTHS = (384, 128, 64)
RANK = 8  # of LoRA


# The losses: each takes the tower and the columns, and returns (B,).


def pairs(tower, x):
    """The default: pairs of a description and a code."""
    return softmax(tower(x["description"]), tower(x["code"]))


def with_negative(tower, x):
    """A row has a negative of its own, which the other rows have, too."""
    candidate = ops.stack([tower(x["code"]), tower(x["negative"])], axis=1)
    return softmax(tower(x["description"]), candidate, candidate_ids=x["id"])


def guided(tower, x):
    """Leaves out what a guide puts closer to the query than the positive."""
    description, code = tower(x["description"]), tower(x["code"])
    guide = x["guide_description"], x["guide_code"]
    losses = guided_losses(description, code, *guide)
    return (losses + guided_losses(code, description, *reversed(guide))) / 2


def guided_losses(query, candidate, guide_query, guide_candidate):
    """Returns (B,) losses of one direction."""
    scores = inbatch_neg.InBatchNegativeSoftmax(return_logits=True)
    logits = scores(query, candidate) / code_search_encoder.TEMPERATURE
    similarity = scores(guide_query, guide_candidate)  # the positive first
    too_near = similarity[:, 1:] > similarity[:, :1] - MARGIN
    negatives = ops.where(too_near, -1e30, logits[:, 1:])
    logits = ops.concatenate([logits[:, :1], negatives], axis=1)
    return ops.logsumexp(logits, axis=1) - logits[:, 0]


def at_all_widths(tower, x):
    """The sum of the losses of vectors that are cut to several widths."""
    description, code = tower(x["description"]), tower(x["code"])
    return sum(softmax(cut(description, w), cut(code, w)) for w in WIDTHS)


def cut(vectors, width):
    """Returns the first numbers of each vector, as a unit vector."""
    return ops.normalize(vectors[:, :width], axis=-1)


# The columns that they take beside those of the pairs.


def mine(train, vectors):
    """Returns a negative of each row, from the lists of the encoder."""
    description, code = vectors
    rows = np.arange(len(code))
    lists = inbatch_neg.RetrievalEvaluation(None, None, description, rows, code)
    scores, ids = lists.top_k(description, LAST, seen=rows)
    scores, ids = scores[:, FIRST:], ids[:, FIRST:]
    positive = np.sum(description * code, axis=1, keepdims=True)
    usable = np.isfinite(scores) & (scores < SHARE * positive)
    # The best that is usable. Without any, the row itself, which is masked.
    best = ids[rows, np.argmax(usable, axis=1)]
    negative = np.where(usable.any(axis=1), best, rows)
    print(f"{usable.any(axis=1).mean():.0%} of the rows have a negative")
    ids = np.stack([rows, negative], axis=1).astype("int32")
    return {"negative": train.code[negative], "id": ids}


def of_guide(train, vectors):
    """Returns the vectors of the guide."""
    scores = vectors[0] @ vectors[1].T
    too_near = scores > np.diagonal(scores)[:, None] - MARGIN
    print(f"the guide leaves out {too_near.mean():.1%} of the negatives")
    return dict(zip(("guide_description", "guide_code"), vectors))


# The comparison.


class Variant(NamedTuple):
    """What differs from the default training."""

    title: str  # takes the batch size
    losses: Callable = pairs
    columns: Callable | None = None  # of `(train, vectors as they come)`
    batch: int = 1  # the batch size is so many times that of the default
    rate: float = 1  # likewise the learning rate
    lora: bool = False


VARIANTS = {
    "mined": Variant("a mined negative a row", with_negative, mine),
    "large": Variant("B = {:,}", batch=4, rate=2),
    "guide": Variant("the encoder as guide", guided, of_guide),
    "widths": Variant("losses at all widths", at_all_widths),
    "larger": Variant("B = {:,}", batch=16, rate=4),
    "lora": Variant(f"LoRA of rank {RANK}", lora=True, rate=10),
}


def equal_rows(rows, options):
    """Returns a number of pairs that fills the batches of every size."""
    unknown = set(options.all) - set(VARIANTS)
    largest = max(v.batch for v in VARIANTS.values()) * options.batch_size
    if unknown or rows < largest:
        raise SystemExit(
            f"--all takes variants of {', '.join(VARIANTS)}, and needs "
            f"{largest:,} pairs to train on, so that every batch size takes "
            f"the same pairs. Received: {options.all}, {rows:,} pairs."
        )
    # `fine_tune` makes points of equal size.
    several = min(code_search_encoder.POINTS, rows // largest)
    return rows - rows % (largest * several)


def fresh(weights, options, lora=False):
    """Returns the encoder as it comes."""
    keras.utils.set_random_seed(options.seed)
    backbone = code_search_encoder.load_backbone(weights)
    if lora:
        backbone.enable_lora(rank=RANK)  # freezes all other weights
    return code_search_encoder.encoder_of(backbone)


def train(variant, parts, weights, vectors, options):
    """Returns the title, the encoder and its `Result` without test figures."""
    options = argparse.Namespace(**vars(options))
    options.batch_size *= variant.batch
    options.learning_rate *= variant.rate
    title = variant.title.format(options.batch_size)
    columns = parts["train"]._asdict()
    if variant.columns is not None:
        columns |= variant.columns(parts["train"], vectors)
    inputs = {
        name: keras.Input(rows.shape[1:], dtype=rows.dtype.name, name=name)
        for name, rows in columns.items()
    }
    encoder = fresh(weights, options, variant.lora)
    tower = inbatch_neg.ChunkedTower(encoder, options.chunk_size)
    model = keras.Model(inputs, variant.losses(tower, inputs))
    training = code_search_encoder.fine_tune(
        title, encoder, model, columns, parts, options
    )
    return title, encoder, training


def tested(title, encoder, part, training, widths):
    """Returns {title: `Result`} of the test part, at several widths."""
    vectors = code_search_encoder.embed(encoder, part)
    found = {}
    for width in widths:
        query, code = (
            ops.convert_to_numpy(cut(ops.convert_to_tensor(x), width))
            for x in vectors
        )
        name = title if width == max(WIDTHS) else f"{title}, cut to {width}"
        figures = code_search.ranked(query @ code.T)[:3]
        found[name] = code_search.Result(*figures, *training[3:])
    return found


def compare(results, parts, weights, encoder, options):
    """Trains the variants; returns all {title: `Result`}.

    Args:
        results: Those of the default training.
        parts: {name: `Part`}.
        weights: The folder of the weights.
        encoder: The encoder after the default training.
        options: Of the command line.
    """
    file = pathlib.Path(options.folder) / "variants.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as lines:

        def keep(new):
            for title, result in new.items():
                line = {"title": title, **result._asdict()}
                print(json.dumps(line, default=float), file=lines, flush=True)
            results.update(new)
            print(f"\n{code_search.table(results)}\n", flush=True)

        keep(results)
        title, test = f"fine-tuned, B = {options.batch_size}", parts["test"]
        keep(tested(title, encoder, test, results[title], WIDTHS[1:]))
        vectors = None
        for variant in [VARIANTS[name] for name in options.all or VARIANTS]:
            if variant.columns is not None and vectors is None:
                encoder = fresh(weights, options)
                vectors = code_search_encoder.embed(encoder, parts["train"])
            title, encoder, training = train(
                variant, parts, weights, vectors, options
            )
            widths = WIDTHS if variant.losses is at_all_widths else WIDTHS[:1]
            keep(tested(title, encoder, test, training, widths))
            del encoder
            gc.collect()  # the models hold references to themselves
    return results

"""Near-duplicates without ids: what leaving them out gains.

    python -m tests.benchmarks.near_duplicates            # all, minutes
    python -m tests.benchmarks.near_duplicates 0 1        # these seeds

12,000 pairs of short texts: 300 meanings, each with one text of 12 words and 40
near-duplicates of it, up to three words replaced. A query has 5 words, of the
meaning, its topic or any. So a batch of 512 has 1.7 near-duplicates of each
document, and no id says so. Both towers are one mean of word vectors. The lists
hold 600 documents that were not trained on; those of the query's meaning are
relevant. The code of docs/false-negatives.md leaves near-duplicates out.
Temperature, margin and epoch are chosen on as many validation texts. The guide
is made up: the right vectors of the meanings, with noise.
"""

import pathlib
import sys

import keras
import numpy as np
from keras import layers

import inbatch_neg
from tests.docs import fences

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "false-negatives.md"
WORDS, TOPICS, MEANINGS, COPIES = 4_000, 50, 300, 40
LENGTH, QUERY_LENGTH, HELD_OUT = 12, 5, 2
ROWS, WIDTH, EPOCHS = 512, 64, 10
TEMPERATURES = (0.1, 0.15, 0.2)
# What is compared, and its margin.
WAYS = (
    ("nothing left out", None),
    ("ids of the texts", None),
    ("own similarity", 0.0),
    ("own similarity", 0.1),
    ("guide", 0.1),
)


class Texts:
    """Draws meanings, and texts of them."""

    def __init__(self, seed):
        self.random = random = np.random.default_rng(seed)
        topics = np.stack(
            [random.choice(WORDS, 60, replace=False) for _ in range(TOPICS)]
        )
        self.topic = topics[random.integers(0, TOPICS, MEANINGS)]
        own = np.stack(
            [random.choice(words, 8, replace=False) for words in self.topic]
        )
        rare = random.integers(0, WORDS, (MEANINGS, 2))
        self.words = np.concatenate([own, rare], axis=1)
        self.originals = self._draw(np.arange(MEANINGS), LENGTH)

    def _draw(self, meaning, length):
        random, shape = self.random, (len(meaning), length)
        own = self.words[meaning[:, None], random.integers(0, 10, shape)]
        topic = self.topic[meaning[:, None], random.integers(0, 60, shape)]
        kind = random.random(shape)
        text = np.where(kind < 0.65, topic, own)
        return np.where(kind < 0.325, random.integers(0, WORDS, shape), text)

    def pairs(self, copies):
        """Returns the meanings, queries and documents of `copies` each."""
        meaning = self.random.permutation(np.repeat(range(MEANINGS), copies))
        document = self.originals[meaning].copy()
        for _ in range(3):
            place = self.random.integers(0, LENGTH, len(meaning))
            word = self.random.integers(0, WORDS, len(meaning))
            document[np.arange(len(meaning)), place] = word
        return meaning, self._draw(meaning, QUERY_LENGTH), document

    def vectors(self, document):
        """Returns random projections of the words, weighted by rarity."""
        count = np.bincount(document.ravel(), minlength=WORDS)
        weight = np.log(len(document) / np.maximum(count, 1))
        word = self.random.normal(size=(WORDS, 256)) * weight[:, None]
        return unit(sum(word[column] for column in document.T))

    def guide(self, meaning, noise):
        """Returns vectors of a model that knows the meanings quite well."""
        right = unit(self.random.normal(size=(MEANINGS, 32)))
        noise = noise * self.random.normal(size=(2, len(meaning), 32)) / 32**0.5
        return [unit(right[meaning] + one) for one in noise]


def unit(vectors):
    """Returns the vectors in unit length."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / length).astype("float32")


def train(seed, way, margin, temperature):
    """Returns NDCG@10 of validation and test by epoch, (epochs, 2)."""
    page = {"__name__": "page"}
    fences.run(PAGE, page)
    texts = Texts(seed)
    meaning, query, document = texts.pairs(COPIES)
    keras.utils.set_random_seed(seed)
    tower = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(WORDS, WIDTH, embeddings_initializer="normal"),
            layers.GlobalAveragePooling1D(),
            layers.UnitNormalization(),
        ]
    )
    data = {"query": query, "document": document}
    inputs = {
        name: keras.Input((text.shape[1],), dtype="int32", name=name)
        for name, text in data.items()
    }
    vectors = [tower(text) for text in inputs.values()]
    if way == "ids of the texts":
        ids = page["near_duplicate_ids"](texts.vectors(document), 0.6)
        data["ids"] = ids
        inputs["ids"] = keras.Input((), dtype="int64", name="ids")
    if way == "guide":
        for name, guide in zip("qd", texts.guide(meaning, 0.6)):
            data[name] = guide
            inputs[name] = keras.Input((32,), name=name)
    if margin is None:
        softmax = inbatch_neg.InBatchNegativeSoftmax(temperature=temperature)
        output = softmax(*vectors, candidate_ids=inputs.get("ids"))
    else:
        guide = [inputs["q"], inputs["d"]] if way == "guide" else vectors
        output = page["guided_logits"](*vectors, guide, margin, temperature)
    model = keras.Model(inputs, output)
    model.compile(
        keras.optimizers.Adam(0.005),
        inbatch_neg.InBatchNegativeLoss(),
        jit_compile=False,
    )
    evaluations = []
    for prefix in ("validation_", "test_"):
        held_out, *text = texts.pairs(HELD_OUT)
        targets = [np.flatnonzero(held_out == one) for one in held_out]
        evaluations.append(
            inbatch_neg.RetrievalEvaluation(
                tower, tower, text[0], targets, text[1], k=10, prefix=prefix
            )
        )
    history = model.fit(
        inbatch_neg.full_batches(data, ROWS, shuffle=True, seed=seed),
        epochs=EPOCHS,
        shuffle=False,
        callbacks=evaluations,
        verbose=0,
    ).history
    return np.stack(
        [history[f"{one}_ndcg@10"] for one in ("validation", "test")], axis=1
    )


def main(seeds):
    """Prints the figures of every way at its best temperature and epoch."""
    for way in dict.fromkeys(way for way, _ in WAYS):
        best = (-1.0,)
        for temperature in TEMPERATURES:
            for margin in [m for name, m in WAYS if name == way]:
                found = np.stack(
                    [train(s, way, margin, temperature) for s in seeds]
                )
                epoch = found[:, :, 0].argmax(axis=1)
                chosen = found[np.arange(len(seeds)), epoch]
                validation = chosen[:, 0].mean()
                row = (validation, chosen[:, 1], temperature, margin, epoch)
                print("  ", way, *row, flush=True)
                best = max(best, row, key=lambda one: one[0])
        _, test, temperature, margin, epoch = best
        print(
            f"{way}: NDCG@10 {test.mean():.3f} +- {test.std(ddof=1):.3f}, "
            f"temperature {temperature}, margin {margin}, epoch "
            f"{1 + epoch.mean():.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2, 3, 4])

"""Recall on MovieLens-100K of towers that read the user's history.

    pip install "inbatch_neg[benchmark]"
    python -m tests.benchmarks.sequences            # all, five seeds
    python -m tests.benchmarks.sequences --only history catalogue --seeds 2
    python -m tests.benchmarks.sequences --table    # of what has ended
    python -m tests.benchmarks.sequences --windows  # seconds of an epoch by T

Each training appends a line to the file of `--results` when it ends. Started
again, the command goes on with what the file does not hold. All settings run
with the first seed, then all with the second, and so on. Data, tower and
evaluation are those of `docs/examples/movielens.py`; the epoch is chosen by
NDCG@10 on the validation items, as are the settings of the others.
"""

import argparse
import json
import pathlib
import time
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from tests.benchmarks import quality
from tests.docs import examples

DIMENSIONS, POSITIONS, EPOCHS, PATIENCE = 64, 1600, 60, 10
# On the validation items, on the test items, and on those of the users whose
# last two ratings have different times.
STAGES = ("validation", "test", "untied")


class Setting(NamedTuple):
    """A way to train the history tower."""

    title: str
    length: int = 50  # T
    blocks: int = 1
    temperature: float = 0.2
    learning_rate: float = 2e-3
    log_q: bool = True
    ids: bool = True
    catalogue: bool = False  # all items as negatives, in place of the batch's
    mean: bool = False  # in place of attention
    user_id: bool = False  # a vector of the user, too
    sparse_rate: float = 0.0  # of `SparseEmbedding`, in place of Adam


SETTINGS = {
    "history": Setting("history of 50 items, one block"),
    "uncorrected": Setting("... without log q", log_q=False),
    "temperature-0.1": Setting("... temperature 0.1", temperature=0.1),
    "unmasked": Setting("... without ids", ids=False),
    "catalogue": Setting("... softmax over the catalogue", catalogue=True),
    "two_blocks": Setting("... two blocks", blocks=2),
    "length-20": Setting("... of 20 items", length=20),
    "length-200": Setting("... of 200 items", length=200),
    "mean": Setting("... their mean, no attention", mean=True),
    "user_id": Setting("... and the user's id", user_id=True),
    "temperature-0.05": Setting("... temperature 0.05", temperature=0.05),
    "temperature-0.15": Setting("... temperature 0.15", temperature=0.15),
    # Not on JAX: both towers call the table.
    "sparse-0.1": Setting("... `SparseEmbedding`, 0.1", sparse_rate=0.1),
    "sparse-0.2": Setting("... `SparseEmbedding`, 0.2", sparse_rate=0.2),
    "sparse-0.4": Setting("... `SparseEmbedding`, 0.4", sparse_rate=0.4),
}


def prepare(split, setting, seed):
    """Returns the compiled model, its batches, and the two towers."""
    import keras

    import inbatch_neg

    keras.utils.set_random_seed(seed)
    example = examples.load("movielens")
    rows = examples.load("movielens_history").windows(split, setting.length)
    inputs = example.inputs_of(rows)
    losses, *towers = build(split, setting, inputs)
    model = keras.Model(inputs, losses)
    model.compile(
        keras.optimizers.Adam(setting.learning_rate),
        loss=inbatch_neg.InBatchNegativeLoss(),
        jit_compile=example.JIT_COMPILE,
    )
    batches = inbatch_neg.full_batches(
        rows, POSITIONS // setting.length, shuffle=True, seed=seed
    )
    return model, batches, towers


def train(split, setting, seed):
    """Returns what came of one training: a dict of `STAGES`, and the epoch."""
    import keras

    example = examples.load("movielens")
    model, batches, (query_tower, item_tower) = prepare(split, setting, seed)
    found, started = [], time.time()
    evaluations = example.evaluations(
        split,
        queries(split, setting),
        np.arange(1, 1 + split.num_items),
        query_tower,
        item_tower,
    )

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found.append({"validation": example.figures(evaluations[0])})
            if best(found) == epoch:
                found[epoch] |= test_figures(evaluations)
            elif epoch - best(found) >= PATIENCE:
                self.model.stop_training = True

    model.fit(
        batches, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[Watch()]
    )
    number = best(found)
    return {
        **found[number],
        "chosen": f"epoch {number + 1}",
        "seconds": time.time() - started,
    }


def print_windows(split, rounds=3):
    """Prints the seconds of an epoch by T, in turns, the least of `rounds`.

    An epoch has the same valid positions for every T, and a batch as many
    positions, with padding.
    """
    prepared, seconds = {}, {}
    for length in (20, 50, 100, 200, 242):
        model, batches, _ = prepare(split, Setting("", length), seed=0)
        model.fit(batches, epochs=1, shuffle=False, verbose=0)  # compiles
        prepared[length], seconds[length] = (model, batches), []
    for _ in range(rounds):
        for length, (model, batches) in prepared.items():
            started = time.perf_counter()
            model.fit(batches, epochs=1, shuffle=False, verbose=0)
            seconds[length].append(time.perf_counter() - started)
    for length, found in seconds.items():
        ratio = min(found) / min(seconds[50])
        print(f"T = {length}: {min(found):.1f} s, {ratio:.2f} of T = 50")


def test_figures(evaluations):
    """Returns the figures of the stages after the validation."""
    figures = examples.load("movielens").figures
    return {
        stage: figures(evaluation)
        for stage, evaluation in zip(STAGES[1:], evaluations[1:])
    }


def best(found):
    """Returns the number of the best NDCG@10 on the validation items."""
    return int(np.argmax([one["validation"][1] for one in found]))


def queries(split, setting):
    """Returns what the query tower takes, at validation and at the test."""
    history = examples.load("movielens_history")
    users = np.arange(split.num_users, dtype="int32")
    return [
        {"history": each, "user_id": users} if setting.user_id else each
        for each in history.latest(split, setting.length)
    ]


def build(split, setting, inputs):
    """Returns the losses of symbolic inputs, and the two towers."""
    import keras

    import inbatch_neg

    example = examples.load("movielens_history")
    embedding = quality.embedding_layer(setting.sparse_rate)
    with mock.patch.object(keras.layers, "Embedding", embedding):
        history_tower, item_tower = example.towers(
            split.num_items,
            setting.length,
            DIMENSIONS,
            setting.blocks,
            block=mean_block if setting.mean else example.transformer_block,
        )
    query, query_tower = history_tower(inputs["history"]), None
    if setting.user_id:
        users = keras.layers.Embedding(split.num_users, DIMENSIONS)
        normalise = example.SafeUnitNormalization()

        def of_user(vectors, user_id):
            user = normalise(users(user_id))
            return normalise(vectors + user)

        query = of_user(query, inputs["user_id"][:, None])
        history = keras.Input((setting.length,), dtype="int32", name="history")
        user_id = keras.Input((), dtype="int32", name="user_id")
        last = example.last_position(history_tower)(history)
        query_tower = keras.Model(
            {"history": history, "user_id": user_id}, of_user(last, user_id)
        )
    arguments = inbatch_neg.ops.positions(
        query,
        item_tower(inputs["item_id"]),
        inputs["item_id"] != 0,
        inputs["item_id"] if setting.ids else None,
        inputs["user_id"] if setting.ids else None,
        inputs["probability"] if setting.log_q else None,
    )
    if setting.catalogue:
        del arguments["candidate_sampling_probability"]
        arguments |= with_catalogue(item_tower, split.num_items, arguments)
    softmax = inbatch_neg.InBatchNegativeSoftmax(
        temperature=setting.temperature
    )
    tower = query_tower or example.last_position(history_tower)
    return softmax(**arguments), tower, item_tower


def with_catalogue(item_tower, num_items, arguments):
    """Returns the candidates, with all items behind the positives."""
    import keras
    from keras import ops

    class Catalogue(keras.layers.Layer):
        # A tower of constants alone is computed once in a functional model,
        # so it must be called in a layer.
        def __init__(self):
            super().__init__()
            self.item_tower = item_tower

        def call(self, candidate, candidate_ids):
            ids = ops.arange(1, 1 + num_items, dtype="int32")
            own = ops.zeros_like(candidate_ids, dtype="bool")
            joined = (
                (candidate, self.item_tower(ids)),
                (candidate_ids, ids),
                (own, ops.ones(num_items, "bool")),
            )
            return [ops.concatenate(pair) for pair in joined]

    names = ("candidate", "candidate_ids", "candidate_mask")
    return dict(
        zip(
            names,
            Catalogue()(arguments["candidate"], arguments["candidate_ids"]),
        )
    )


def mean_block(vectors, dropout):
    """The mean up to each position in place of attention."""
    import keras
    from keras import ops

    class CausalMean(keras.layers.Layer):
        def call(self, x):
            count = ops.arange(1, 1 + x.shape[1], dtype="float32")
            return ops.cumsum(x, axis=1) / count[:, None]

    dimensions = vectors.shape[-1]
    mean = keras.layers.Dense(dimensions)(CausalMean()(vectors))
    vectors = vectors + keras.layers.Dropout(dropout)(mean)
    hidden = keras.layers.LayerNormalization()(vectors)
    hidden = keras.layers.Dense(2 * dimensions, "gelu")(hidden)
    hidden = keras.layers.Dense(dimensions)(hidden)
    return vectors + keras.layers.Dropout(dropout)(hidden)


# What people would pick instead: the same for every seed.


def markov_chain(split):
    """P(next item | last item), counted, and mixed with the popularity.

    Returns the best on the validation items, by the weight of the popularity.
    """
    histories = examples.load("movielens_history").histories(split)
    counts = transitions(histories, split.num_items)
    last = [
        np.array([items[-1] for items in histories]),
        split.validation,
    ]
    queries = [np.eye(split.num_items, dtype="float32")[one] for one in last]
    return chosen(
        {
            f"weight {weight:g}": (
                queries,
                mixed(counts, split.probability, weight).T,
            )
            for weight in (0.1, 0.3, 1, 3, 10, 30, 100, 300)
        },
        split,
    )


def transitions(histories, num_items):
    """Returns (V, V), how often item j came next after item i."""
    counts = np.zeros((num_items, num_items))
    for items in histories:
        np.add.at(counts, (items[:-1], items[1:]), 1)
    return counts


def mixed(counts, probability, weight):
    """Returns (V, V) probabilities: `weight` rows of the popularity more."""
    total = counts.sum(axis=1, keepdims=True) + weight
    return (counts + weight * probability) / total


def item_item(split):
    """`implicit`'s nearest items, by the cosine or by BM25."""
    from implicit.nearest_neighbours import BM25Recommender, CosineRecommender
    from scipy.sparse import csr_matrix

    tried = {}
    for kind in (CosineRecommender, BM25Recommender):
        for nearest in (2, 5, 10, 20, 50, 100, 200):
            model = kind(K=nearest, num_threads=1)
            matrix = quality.interactions(split)
            model.fit(matrix, show_progress=False)
            # The score of item j is the sum over what the user had.
            similarity = csr_matrix(model.similarity).toarray()
            tried[f"{kind.__name__}, K = {nearest}"] = (
                histories_as_rows(split, matrix.toarray()),
                similarity,
            )
    return chosen(tried, split)


def ease(split):
    """As in `quality`, with the validation item in the row at the test."""
    matrix = quality.interactions(split)
    gram = (matrix.T @ matrix).toarray().astype("float64")
    tried = {}
    for penalty in (50, 100, 200, 300, 500, 700, 1000):
        inverse = np.linalg.inv(gram + penalty * np.eye(len(gram)))
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0.0)
        queries = histories_as_rows(split, matrix.toarray())
        tried[f"penalty {penalty}"] = (queries, weights.T)
    return chosen(tried, split)


def histories_as_rows(split, matrix):
    """Returns the (users, V) rows at validation and at the test."""
    later = matrix.copy()
    later[np.arange(split.num_users), split.validation] = 1
    return [matrix, later]


def chosen(tried, split):
    """Returns the figures of the best of {name: (queries, candidates)}."""
    example = examples.load("movielens")
    found, made = [], []
    for name, (queries, candidates) in tried.items():
        made.append(example.evaluations(split, queries, candidates))
        figures = example.figures(made[-1][0])
        found.append({"validation": figures, "chosen": name})
    number = best(found)
    return found[number] | test_figures(made[number])


OTHERS = {
    "markov_chain": (markov_chain, "Markov chain of the last item, NumPy"),
    "ease": (ease, "EASE, which reads the validation item too"),
    "item_item": (item_item, "item-item, `implicit`"),
}


# The file of results, and its table.


def read(path):
    """Returns {name: {seed: result}} of the lines of a file, if it is there."""
    found: dict[str, dict[int, Any]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            one = json.loads(line)
            found.setdefault(one.pop("name"), {})[one.pop("seed")] = one
    return found


def table(found):
    """Returns the lines of a Markdown table: means and deviations."""
    titles = {name: title for name, (_, title) in OTHERS.items()}
    titles |= {name: setting.title for name, setting in SETTINGS.items()}
    columns = [(stage, n) for stage in ("test", "untied") for n in (0, 1)]
    columns.append(("validation", 1))
    lines = [
        "| | seeds | Recall@10 | NDCG@10 | Recall@10, no ties "
        "| NDCG@10, no ties | validation NDCG@10 | chosen |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in [*SETTINGS, *OTHERS]:
        runs = list(found.get(name, {}).values())
        if not runs:
            continue
        cells = [titles[name], str(len(runs)) if name in SETTINGS else "-"]
        for stage, number in columns:
            values = [run[stage][number] for run in runs]
            text = f"{np.mean(values):.4f}"
            if len(values) > 1:
                text += f" +- {np.std(values, ddof=1):.4f}"
            cells.append(text)
        cells.append(", ".join(dict.fromkeys(run["chosen"] for run in runs)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*SETTINGS, *OTHERS])
    parser.add_argument("--results", default="sequences.jsonl", metavar="FILE")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--windows", action="store_true", help="time only")
    options = parser.parse_args()
    if options.windows:
        print_windows(quality.load_split())
        return
    path = pathlib.Path(options.results)
    if not options.table:
        split = quality.load_split()
        names = options.only or [*OTHERS, *SETTINGS]
        jobs = [(name, 0) for name in names if name in OTHERS]
        jobs += [
            (name, seed)
            for seed in range(options.seeds)
            for name in names
            if name in SETTINGS
        ]
        for name, seed in jobs:
            if seed in read(path).get(name, {}):
                continue
            if name in OTHERS:
                result = OTHERS[name][0](split)
            else:
                result = train(split, SETTINGS[name], seed)
            line = json.dumps({"name": name, "seed": seed, **result})
            with path.open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)
    print(table(read(path)))


if __name__ == "__main__":
    main()

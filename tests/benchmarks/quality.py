"""Recall on MovieLens-100K: the recipe, and what people would pick instead.

    pip install "inbatch_neg[benchmark]"
    python -m tests.benchmarks.quality  # all, five seeds, a table
    python -m tests.benchmarks.quality --only recipe ease

Every rating is a positive. A user's last item is for test, the last but one
for validation; the rest trains. An item is ranked against all that the user
has not rated before, ties against it (`RetrievalEvaluation`). Every choice,
the epoch of the towers and the settings of the others, goes by NDCG@10 on the
validation items; the test items are looked at once. Settings are searched
with seed 0 and then run with each seed. Each contender has its own process.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np

from tests.docs import examples

DIMENSIONS, BATCH, EPOCHS, RATE, TEMPERATURE = 64, 1024, 20, 1e-2, 0.2
FIGURES = ("recall@10", "ndcg@10")


def load_split():
    """Returns the split of the example, from its own code."""
    data = examples.load("movielens_data")
    return data.split_last_two(data.load_ratings())


def figures(split, query, candidate):
    """Returns the figures on the validation and on the test items."""
    import inbatch_neg

    seen = [[] for _ in range(split.num_users)]
    for user, item in zip(split.users, split.items):
        seen[user].append(item)
    results = []
    for targets in (split.validation, split.test):
        found = inbatch_neg.RetrievalEvaluation(
            None, None, query, targets, candidate, seen=seen, k=10
        )()
        results.append([found[name] for name in FIGURES])
        seen = [row + [item] for row, item in zip(seen, targets)]
    return results


def best(results):
    """Returns (number, (validation, test)) of the best on validation."""
    number = int(np.argmax([validation[1] for validation, _ in results]))
    return number, results[number]


# Two towers, by Keras 3.


class Settings(NamedTuple):
    """Of the two towers and their training."""

    unit_length: bool = True
    dimensions: int = DIMENSIONS
    batch_size: int = BATCH
    learning_rate: float = RATE
    epochs: int = EPOCHS
    patience: int = EPOCHS  # epochs without a better validation NDCG
    sparse_rate: float = 0.0  # of `SparseEmbedding`, in place of Adam


def embedding_layer(sparse_rate):
    """Returns what makes a table; by `SparseEmbedding`, if it has a rate."""
    import keras

    import inbatch_neg

    if not sparse_rate:
        return keras.layers.Embedding
    return functools.partial(
        inbatch_neg.SparseEmbedding, learning_rate=sparse_rate
    )


def two_towers(split, seed, losses, settings):
    """Trains with `losses(user ids, item ids, q, user, item)`.

    Returns:
        The `figures` after each epoch.
    """
    import keras

    import inbatch_neg

    keras.utils.set_random_seed(seed)

    def tower(rows):
        embedding = embedding_layer(settings.sparse_rate)
        layers = [
            keras.Input((), dtype="int32"),
            embedding(rows, settings.dimensions),
        ]
        if settings.unit_length:
            layers.append(keras.layers.UnitNormalization())
        return keras.Sequential(layers)

    user_tower, item_tower = tower(split.num_users), tower(split.num_items)
    user = keras.Input((), dtype="int32", name="user")
    item = keras.Input((), dtype="int32", name="item")
    q = keras.Input((), dtype="float32", name="q")
    model = keras.Model(
        {"user": user, "item": item, "q": q},
        losses(user, item, q, user_tower(user), item_tower(item)),
    )
    model.compile(
        keras.optimizers.Adam(settings.learning_rate),
        loss=inbatch_neg.InBatchNegativeLoss(),
    )
    history = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            vectors = (
                t.predict(np.arange(n, dtype="int32"), 4096, verbose=0)
                for t, n in (
                    (user_tower, split.num_users),
                    (item_tower, split.num_items),
                )
            )
            history.append(figures(split, *vectors))
            if len(history) > best(history)[0] + settings.patience:
                self.model.stop_training = True

    model.fit(
        batches(split, seed, settings.batch_size),
        epochs=settings.epochs,
        verbose=0,
        shuffle=False,
        callbacks=[Watch()],
    )
    return history


def batches(split, seed, batch_size=BATCH):
    """Returns the batches that all two-tower contenders train on."""
    import inbatch_neg

    rows = {
        "user": split.users.astype("int32"),
        "item": split.items.astype("int32"),
        "q": split.probability[split.items].astype("float32"),
    }
    return inbatch_neg.full_batches(rows, batch_size, shuffle=True, seed=seed)


def recipe(split, seed):
    """The README's."""
    epoch, result = best(
        two_towers(split, seed, recipe_losses(TEMPERATURE), Settings())
    )
    return f"epoch {epoch + 1}", result


def recipe_losses(temperature, exponent=1.0):
    """Returns the losses of the recipe, corrected by log(q ** exponent)."""
    import inbatch_neg

    softmax = inbatch_neg.InBatchNegativeSoftmax(temperature=temperature)

    def losses(user_id, item_id, q, user, item):
        return softmax(
            user,
            item,
            candidate_ids=item_id,
            query_ids=user_id,
            candidate_sampling_probability=q**exponent,
        )

    return losses


def sparse(split, seed):
    """The recipe with `SparseEmbedding`."""

    def run(seed, learning_rate):
        settings = Settings(sparse_rate=learning_rate)
        losses = recipe_losses(TEMPERATURE)
        return best(two_towers(split, seed, losses, settings))[1]

    grid = {"learning_rate": (0.05, 0.1, 0.2, 0.4, 0.8)}
    return searched(seed, grid, run)


def plain(split, seed):
    """Dot product, temperature 1, nothing else: the defaults of TFRS."""
    import inbatch_neg

    softmax = inbatch_neg.InBatchNegativeSoftmax()
    settings = Settings(unit_length=False)
    epoch, result = best(
        two_towers(split, seed, lambda u, i, q, a, b: softmax(a, b), settings)
    )
    return f"epoch {epoch + 1}", result


def keras_rs(split, seed):
    """Its layers for log q and accidental hits; unit length, the same T."""
    import keras
    import keras_rs as library

    correct = library.layers.SamplingProbabilityCorrection()
    remove = library.layers.RemoveAccidentalHits()

    class Losses(keras.layers.Layer):
        def call(self, user, item, item_id, q):
            scores = keras.ops.matmul(user, keras.ops.transpose(item))
            labels = keras.ops.eye(BATCH)
            scores = correct(scores / TEMPERATURE, q)
            scores = remove(scores, labels, item_id)
            return keras.losses.categorical_crossentropy(
                labels, scores, from_logits=True
            )

        def compute_output_spec(self, user, item, item_id, q):
            # `call` knows the size of the batch, which is not traced yet.
            return keras.KerasTensor(user.shape[:1], "float32")

    layer = Losses()
    epoch, result = best(
        two_towers(
            split, seed, lambda u, i, q, a, b: layer(a, b, i, q), Settings()
        )
    )
    return f"epoch {epoch + 1}", result


def tfrs(split, seed):
    """`tfrs.tasks.Retrieval` with log q, accidental hits out, unit length."""
    import tensorflow as tf
    import tensorflow_recommenders as library

    tf.keras.utils.set_random_seed(seed)
    towers = [
        tf.keras.Sequential(
            [
                tf.keras.layers.Embedding(rows, DIMENSIONS),
                tf.keras.layers.UnitNormalization(),
            ]
        )
        for rows in (split.num_users, split.num_items)
    ]
    task = library.tasks.Retrieval(
        temperature=TEMPERATURE, remove_accidental_hits=True
    )
    optimizer = tf.keras.optimizers.Adam(RATE)

    @tf.function
    def step(row):
        with tf.GradientTape() as tape:
            loss = task(
                towers[0](row["user"]),
                towers[1](row["item"]),
                candidate_sampling_probability=row["q"],
                candidate_ids=row["item"],
                compute_metrics=False,
            )
        weights = towers[0].trainable_weights + towers[1].trainable_weights
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))

    history, data = [], batches(split, seed)
    for _ in range(EPOCHS):
        for row in data:
            step(row)
        vectors = (
            tower(tf.range(rows)).numpy()
            for tower, rows in zip(towers, (split.num_users, split.num_items))
        )
        history.append(figures(split, *vectors))
    epoch, result = best(history)
    return f"epoch {epoch + 1}", result


# What people would pick instead.


def interactions(split):
    """Returns the (users, items) matrix of the training rows."""
    from scipy.sparse import csr_matrix

    return csr_matrix(
        (np.ones(len(split.users), "float32"), (split.users, split.items)),
        (split.num_users, split.num_items),
    )


def searched(seed, grid, run):
    """Returns the best setting with seed 0, and what it gives with `seed`.

    Args:
        seed: Of the result.
        grid: {argument of `run`: its values}.
        run: Takes the seed and a setting, and returns the `figures`.
    """
    if not _FOUND:
        settings = [
            dict(zip(grid, values))
            for values in itertools.product(*grid.values())
        ]
        tried = [run(seed=0, **setting) for setting in settings]
        _FOUND.append(settings[best(tried)[0]])
    (setting,) = _FOUND
    result = run(seed=seed, **setting)
    return " ".join(f"{k}={v}" for k, v in setting.items()), result


_FOUND: list = []


def ials(split, seed):
    """Weighted matrix factorisation by alternating least squares."""
    from implicit.als import AlternatingLeastSquares

    matrix = interactions(split)

    def run(seed, **setting):
        model = AlternatingLeastSquares(
            use_gpu=False, num_threads=1, random_state=seed, **setting
        )
        model.fit(matrix, show_progress=False)
        return figures(split, model.user_factors, model.item_factors)

    grid = {
        "factors": (24, 32, 48, 64),
        "regularization": (0.001, 0.01, 1.0, 5.0, 20.0),
        "alpha": (1.0, 2.0, 3.0, 5.0, 15.0),
        "iterations": (15,),
    }
    return searched(seed, grid, run)


def bpr(split, seed):
    """Bayesian personalised ranking."""
    from implicit.bpr import BayesianPersonalizedRanking

    matrix = interactions(split)

    def run(seed, **setting):
        model = BayesianPersonalizedRanking(
            use_gpu=False, num_threads=1, random_state=seed, **setting
        )
        model.fit(matrix, show_progress=False)
        return figures(split, model.user_factors, model.item_factors)

    grid = {
        "factors": (64,),
        "learning_rate": (0.003, 0.01, 0.03),
        "regularization": (0.003, 0.01, 0.03),
        "iterations": (100, 200),
    }
    return searched(seed, grid, run)


def ease(split, seed):
    """Embarrassingly shallow autoencoder; the same for every seed."""
    matrix = interactions(split)
    gram = (matrix.T @ matrix).toarray().astype("float64")

    def run(seed, penalty):
        inverse = np.linalg.inv(gram + penalty * np.eye(len(gram)))
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0.0)
        # The score of item j for user u is <row u of X, column j of B>.
        return figures(split, matrix.toarray(), weights.T)

    grid = {"penalty": (50, 100, 200, 300, 500, 700, 1000, 1500, 2500)}
    return searched(seed, grid, run)


# Each contender and the modules that it needs.
CONTENDERS = {
    "recipe": (),
    "sparse": (),
    "plain": (),
    "tfrs": ("tensorflow_recommenders", "tf_keras"),
    "keras_rs": ("keras_rs",),
    "ials": ("implicit", "scipy"),
    "bpr": ("implicit", "scipy"),
    "ease": ("scipy",),
}


def require_installed(names):
    """Exits with what to install, before anything has run for minutes."""
    modules = sorted({module for name in names for module in CONTENDERS[name]})
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        sys.exit(
            f"Not installed: {', '.join(missing)}. "
            'pip install "inbatch_neg[benchmark]"\n'
            "Or leave out what needs it with `--only`."
        )


def in_own_process(name, seeds):
    """Returns [(setting, [validation, test])] of every seed."""
    environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3")
    environment["OPENBLAS_NUM_THREADS"] = "1"
    if name == "tfrs":
        environment["TF_USE_LEGACY_KERAS"] = "1"
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.quality",
        "--worker",
        name,
    ]
    done = subprocess.run(
        [*command, "--seeds", str(seeds)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{name} failed.")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS)
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        split, run = load_split(), globals()[options.worker]
        print(json.dumps([run(split, seed) for seed in range(options.seeds)]))
        return
    require_installed(options.only or CONTENDERS)
    print(
        f"{'':9}  test Recall@10   test NDCG@10    valid. NDCG@10", flush=True
    )
    for name in options.only or CONTENDERS:
        results = in_own_process(name, options.seeds)
        figures = np.array([figures for _, figures in results])  # (S, 2, 2)
        mean, spread = figures.mean(axis=0), figures.std(axis=0, ddof=1)
        cells = [
            f"{mean[row, column]:.4f} +- {spread[row, column]:.4f}"
            for row, column in ((1, 0), (1, 1), (0, 1))
        ]
        settings = ", ".join(dict.fromkeys(setting for setting, _ in results))
        print(f"{name:9}  {'  '.join(cells)}  {settings}", flush=True)


if __name__ == "__main__":
    main()

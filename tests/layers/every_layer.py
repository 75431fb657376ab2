"""A model of every layer, and the fixture that version 0.2.0 made of it.

`saved/version_0_2.*` was written by version 0.2.0 with Keras 3.5.0 (jax and
torch with Keras 3.15), on the CPU, by these commands:

    KERAS_BACKEND=tensorflow python -m tests.layers.every_layer FOLDER
    KERAS_BACKEND=jax python -m tests.layers.every_layer FOLDER
    KERAS_BACKEND=torch python -m tests.layers.every_layer FOLDER

The first one trains and saves the model. The others load it and add what
differs between the backends: they draw other random numbers.
"""

import json
import pathlib
import sys

import keras
import numpy as np

import inbatch_neg
from tests.helpers import BACKEND, to_numpy

USERS, ITEMS, DIMENSIONS, ROWS = 9, 7, 4, 6
NAME = "version_0_2"


def build():
    """Returns the compiled model. Each of its outputs is one softmax layer."""
    user = keras.Input((), dtype="int32", name="user")
    item = keras.Input((), dtype="int32", name="item")
    # Two chunked towers share one, which has random and assigned state.
    tower = keras.Sequential(
        [
            keras.Input((DIMENSIONS,)),
            keras.layers.Dense(DIMENSIONS, activation="tanh", name="dense"),
            keras.layers.Dropout(0.2, seed=5, name="dropout"),
            keras.layers.BatchNormalization(name="normalization"),
        ],
        name="tower",
    )
    query = keras.layers.Embedding(USERS, DIMENSIONS, name="users")(user)
    candidate = keras.layers.Embedding(ITEMS, DIMENSIONS, name="items")(item)
    query = inbatch_neg.ChunkedTower(tower, 2, name="by_two")(query)
    candidate = inbatch_neg.ChunkedTower(tower, 4, name="by_four")(candidate)
    one_hash = inbatch_neg.StreamingSamplingProbability(
        16, learning_rate=0.1, name="one_hash"
    )(item)
    three_hashes = inbatch_neg.StreamingSamplingProbability(
        8, num_hashes=3, name="three_hashes"
    )(item)
    memory = inbatch_neg.CrossBatchMemory(16, name="memory")(
        candidate, item, one_hash
    )
    warming_up = inbatch_neg.CrossBatchMemory(
        8, warmup_steps=9, name="warming_up"
    )(candidate)

    def softmax(name, **options):
        return inbatch_neg.InBatchNegativeSoftmax(name=name, **options)

    outputs = {
        "number": softmax("number", temperature=0.5, symmetric=True)(
            query, candidate, item, user
        ),
        "learned": softmax("learned", temperature="learned")(query, **memory),
        "trainable": softmax(
            "trainable",
            num_negatives=3,
            sampling="hardest",
            temperature=keras.Variable(0.3, name="trainable_temperature"),
        )(query, **warming_up),
        "fixed": softmax(
            "fixed",
            temperature=keras.Variable(
                0.7, trainable=False, name="fixed_temperature"
            ),
        )(query, candidate, candidate_sampling_probability=three_hashes),
        "rotation": softmax(
            "rotation", num_negatives=2, seed=3, batch_size=ROWS
        )(query, candidate),
        "logits": softmax("logits", num_negatives=3, return_logits=True)(
            query, candidate, item
        ),
    }
    model = keras.Model({"user": user, "item": item}, outputs)
    model.compile(
        # With momentum, so that the optimizer has state for each weight.
        keras.optimizers.SGD(0.1, momentum=0.9, name="sgd"),
        {name: inbatch_neg.InBatchNegativeLoss() for name in outputs},
        metrics={
            "logits": [
                inbatch_neg.InBatchTopKAccuracy(k=2),
                inbatch_neg.InBatchMeanReciprocalRank(),
            ]
        },
        jit_compile=False,
    )
    return model


def train(model, steps):
    """Trains on the same few batches, one step each."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = {
            "user": rng.integers(0, USERS, ROWS).astype("int32"),
            "item": rng.integers(0, ITEMS, ROWS).astype("int32"),
        }
        labels = {name: np.zeros(ROWS) for name in model.output_names}
        model.train_on_batch(rows, labels)


def outputs_of(model):
    """Returns the outputs of an inference step, by name."""
    rows = {
        "user": np.arange(ROWS, dtype="int32"),
        "item": np.array([0, 3, 3, 5, 1, 6], "int32"),
    }
    return {k: to_numpy(v) for k, v in model.predict_on_batch(rows).items()}


def numbers_in(model):
    """Returns all numbers of the model and its optimizer, in their order."""
    variables = [*model.variables, *model.optimizer.variables]
    return np.concatenate([to_numpy(v).reshape(-1) for v in variables])


def variables_of(model):
    """Returns the path and the shape of every variable, in their order."""
    variables = [*model.variables, *model.optimizer.variables]
    return [[v.path, list(v.shape)] for v in variables]


def values_of(model):
    """Returns the state and the outputs, before and after one more step.

    The outputs before that step are the same on all backends, except those
    for which negatives are drawn.
    """
    # Of each function, there are two calls. JAX would compile each operation
    # of an eager one.
    model.jit_compile = BACKEND == "jax"
    model.run_eagerly = BACKEND == "tensorflow"
    before, state = outputs_of(model), numbers_in(model)
    train(model, 1)
    after, trained = outputs_of(model), numbers_in(model)
    own = {f"{BACKEND}/after/{name}": value for name, value in after.items()}
    own[f"{BACKEND}/state after"] = trained
    for name in ("rotation", "logits"):
        own[f"{BACKEND}/before/{name}"] = before.pop(name)
    return {
        "state before": state,
        **{f"before/{name}": value for name, value in before.items()},
        **own,
    }


def main(folder):
    place = pathlib.Path(folder)
    stored = {}
    if BACKEND == "tensorflow":
        keras.utils.set_random_seed(0)
        model = build()
        train(model, 2)
        outputs_of(model)
        model.save(place / f"{NAME}.keras")
        variables = variables_of(model)
        text = ",\n".join(json.dumps(one) for one in variables)
        (place / f"{NAME}.json").write_text(f"[\n{text}\n]\n")
    else:
        with np.load(place / f"{NAME}.npz") as before:
            stored = dict(before)
    model = keras.models.load_model(place / f"{NAME}.keras")
    values = {**values_of(model), **stored}
    np.savez_compressed(place / f"{NAME}.npz", **values)


if __name__ == "__main__":
    main(*sys.argv[1:])

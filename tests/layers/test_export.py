"""A training model is exported for a static batch, or refused with a way.

On JAX it is always refused: an export saves gradients there.
"""

import keras
import numpy as np
import pytest

import inbatch_neg
from tests.helpers import BACKEND

BATCH = {
    "user": np.array([1, 2, 3, 4], "int32"),
    "item": np.array([1, 2, 2, 4], "int32"),
}


def training_model(with_state=False, **arguments):
    inputs = {name: keras.Input((), dtype="int32", name=name) for name in BATCH}
    user, item = (
        keras.layers.Embedding(9, 4)(inputs[name]) for name in ("user", "item")
    )
    candidates = {"candidate": item, "candidate_ids": inputs["item"]}
    if with_state:
        estimate = inbatch_neg.StreamingSamplingProbability(20)
        candidates["candidate_sampling_probability"] = estimate(inputs["item"])
        candidates = inbatch_neg.CrossBatchMemory(8)(**candidates)
    softmax = inbatch_neg.InBatchNegativeSoftmax(**arguments)
    return keras.Model(inputs, softmax(user, **candidates))


def export(model, folder, rows=None):
    arguments = {}
    if BACKEND == "torch":
        arguments["format"] = "torch"
    if rows is not None and BACKEND != "tensorflow":  # which ignores the rows
        spec = keras.InputSpec(shape=(rows,), dtype="int32")
        arguments["input_signature"] = [dict.fromkeys(BATCH, spec)]
    path = str(folder / "model.pt2")
    model.export(path, **arguments)
    return path


def served(path):
    if BACKEND == "torch":
        import torch

        model = torch.export.load(path).module()
        batch = {name: torch.as_tensor(x) for name, x in BATCH.items()}
        return model(batch).detach().numpy()
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    return loaded.serve({k: tf.constant(x) for k, x in BATCH.items()}).numpy()


SHIFTS = {"num_negatives": 2}
CASES = [
    {},
    SHIFTS,
    {"num_negatives": 2, "sampling": "hardest"},
    {"return_logits": True},
    {"with_state": True},
]


@pytest.mark.parametrize("arguments", CASES)
def test_a_batch_of_unknown_size(arguments, tmp_path):
    # PyTorch tries one row, and makes a RuntimeError of whatever fails.
    error = RuntimeError if BACKEND == "torch" else ValueError
    with pytest.raises(error, match="Fix(.|\n)*export the tower"):
        export(training_model(**arguments), tmp_path)


@pytest.mark.keras_at_least("3.6")  # Keras 3.5 serves no dicts
@pytest.mark.backends("tensorflow", "torch")
@pytest.mark.parametrize("arguments", [c for c in CASES if c != SHIFTS])
def test_a_static_batch(arguments, tmp_path):
    model = training_model(batch_size=4, **arguments)
    found = served(export(model, tmp_path, rows=4))
    expected = model.predict_on_batch(BATCH)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.backends("jax")
def test_a_static_batch_on_jax(tmp_path):
    with pytest.raises(ValueError, match="cannot be exported.*export the tow"):
        export(training_model(batch_size=4), tmp_path, rows=4)
    inputs = keras.Input((), dtype="int32")
    tower = keras.Model(inputs, keras.layers.Embedding(9, 4)(inputs))
    export(tower, tmp_path)  # the way that the message names


class Subclassed(keras.Model):
    """Keras exports all its inputs as floats, also the ids."""

    def __init__(self):
        super().__init__()
        self.tower = keras.layers.Embedding(9, 4)
        self.softmax = inbatch_neg.InBatchNegativeSoftmax()

    def call(self, row, training=None):
        query, candidate = self.tower(row["user"]), self.tower(row["item"])
        return self.softmax(
            query, candidate, candidate_ids=row["item"], training=training
        )


@pytest.mark.backends("tensorflow")
def test_a_subclassed_model(tmp_path):
    model = Subclassed()
    model.compile("sgd", loss=inbatch_neg.InBatchNegativeLoss())
    model.fit(inbatch_neg.full_batches(BATCH, 4), verbose=0)
    with pytest.raises(Exception, match="export the tower, as in"):
        export(model, tmp_path)

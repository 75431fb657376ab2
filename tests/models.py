"""The two-tower models that the tests train."""

import keras
import numpy as np

import inbatch_neg

USERS, ITEMS, DIMENSIONS = 60, 50, 8


def interactions(rows, seed=0):
    """Returns `rows` pairs: dict of (rows,) int32 by "user" and "item"."""
    rng = np.random.default_rng(seed)
    return {
        "user": rng.integers(0, USERS, rows).astype("int32"),
        "item": rng.integers(0, ITEMS, rows).astype("int32"),
    }


def full(rows, batch_size, seed=0):
    """Returns a dataset of `interactions` in full batches."""
    return inbatch_neg.full_batches(interactions(rows, seed), batch_size)


def fit(model, data, **arguments):
    """Trains by a dataset, in its order; returns Keras' history."""
    return model.fit(data, shuffle=False, verbose=0, **arguments).history


def two_towers(
    softmax,
    *,
    between=None,
    estimate=None,
    memory=None,
    rows=None,
    mask=True,
    dtype=None,
):
    """Returns a functional model of two embeddings that ends in `softmax`.

    Its weights are those of the users, of the items, and of the layers.

    Args:
        softmax: The `InBatchNegativeSoftmax`.
        between: Layer that both embeddings go through.
        estimate: `StreamingSamplingProbability` of the items.
        memory: `CrossBatchMemory` of the items.
        rows: Of a batch, if they are static.
        mask: Whether `softmax` gets the ids of the items and the users.
        dtype: Of the embeddings.
    """
    user = keras.Input((), batch_size=rows, dtype="int32", name="user")
    item = keras.Input((), batch_size=rows, dtype="int32", name="item")
    query = keras.layers.Embedding(USERS, DIMENSIONS, name="users", dtype=dtype)
    candidate = keras.layers.Embedding(
        ITEMS, DIMENSIONS, name="items", dtype=dtype
    )
    query, candidate = query(user), candidate(item)
    if between is not None:
        query, candidate = between(query), between(candidate)
    given = {"candidate_ids": item} if mask else {}
    if estimate is not None:
        given["candidate_sampling_probability"] = estimate(item)
    if memory is not None:
        given = memory(candidate, **given)
        candidate = given.pop("candidate")
    if mask:
        given["query_ids"] = user
    losses = softmax(query, candidate, **given)
    return keras.Model({"user": user, "item": item}, losses)


class Subclassed(keras.Model):
    """The same, which Keras builds by a batch of its own making.

    Args:
        softmax: The `InBatchNegativeSoftmax`.
        memory: `CrossBatchMemory` of the items, or None.
    """

    def __init__(self, softmax, memory=None):
        super().__init__()
        self.users = keras.layers.Embedding(USERS, DIMENSIONS)
        self.items = keras.layers.Embedding(ITEMS, DIMENSIONS)
        self.softmax = softmax
        self.memory = memory

    def call(self, inputs, training=None):
        given = {
            "candidate": self.items(inputs["item"]),
            "candidate_ids": inputs["item"],
        }
        # Keras does not pass `training` on by itself on JAX.
        if self.memory is not None:
            given = self.memory(**given, training=training)
        return self.softmax(
            self.users(inputs["user"]), **given, training=training
        )

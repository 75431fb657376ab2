"""The data and the two towers of `replicas_{tensorflow,jax,torch}.py`.

Users and items are of one of 20 kinds, and users take items of their own kind.
"""

import keras
import numpy as np

import inbatch_neg

KINDS, USERS, ITEMS = 20, 2_000, 1_000
GLOBAL_BATCH = 512
EPOCHS = 6


def pairs(rows=20_480, seed=0):
    """Returns the ids of users and of the items that they took."""
    random = np.random.default_rng(seed)
    user = random.integers(0, USERS, rows)
    # Popularity falls with the number; item i is of kind i mod 20.
    place = (ITEMS / KINDS * random.uniform(size=rows) ** 2).astype("int64")
    return {"user": user, "item": place * KINDS + user % KINDS}


class Towers(keras.Model):
    """From a batch of pairs to its losses, with everyone's candidates."""

    def __init__(self):
        super().__init__()
        self.users = keras.layers.Embedding(USERS, 32)
        self.items = keras.layers.Embedding(ITEMS, 32)
        self.unit_length = keras.layers.UnitNormalization()
        self.probability = inbatch_neg.StreamingSamplingProbability(2 * ITEMS)
        self.softmax = inbatch_neg.InBatchNegativeSoftmax(
            temperature=0.1, cross_replica=True
        )

    def call(self, batch, training=None):
        """Returns one loss per row."""
        item_id = batch["item"]
        return self.softmax(
            self.unit_length(self.users(batch["user"])),
            self.unit_length(self.items(item_id)),
            candidate_ids=item_id,
            query_ids=batch["user"],
            candidate_sampling_probability=self.probability(
                item_id, training=training
            ),
            training=training,
        )


def report(towers):
    """Prints whether the towers have learned the kinds."""
    user = keras.ops.convert_to_numpy(towers.users.embeddings)
    item = keras.ops.convert_to_numpy(towers.items.embeddings)
    item = item / np.linalg.norm(item, axis=1, keepdims=True)
    nearest = np.argsort(-(user @ item.T), axis=1)[:, :10]
    own_kind = nearest % KINDS == np.arange(USERS)[:, None] % KINDS
    print(
        f"of a user's 10 nearest items, {own_kind.mean():.0%} are of the "
        f"user's kind ({1 / KINDS:.0%} by chance)"
    )

"""A tower that reads a user's history, for `movielens.py`.

A user is the list of items that they had, not a row of a table. So a new user
needs no training. At each position of a history, a causal Transformer returns a
vector. Training makes this vector find the item that came next.
"""

import keras
import numpy as np
from keras import ops

PADDING = 0  # items are numbered from 1 here


def histories(split):
    """Returns the items to train on, by time, one array a user."""
    # `split.users` is sorted, and a user's rows are in the order of time.
    ends = np.cumsum(np.bincount(split.users, minlength=split.num_users))
    return np.split(split.items, ends[:-1])


def windows(split, length):
    """Returns rows to train on: what was read, and what came next.

    Each history is cut from its end into windows of `length` steps. Padding
    comes last, where a causal tower does not see it.

    Args:
        split: The `Split`.
        length: T, how many items the tower reads.

    Returns:
        A dict of arrays: `history` and `item_id` (W, T), the items read and
        those that came next, numbered from 1; `probability` (W, T);
        `user_id` (W,).
    """
    rows = {"history": [], "item_id": [], "probability": [], "user_id": []}
    for user, items in enumerate(histories(split)):
        for end in range(len(items), 1, -length):
            steps = items[max(end - length - 1, 0) : end]
            rows["history"].append(padded(1 + steps[:-1], length))
            rows["item_id"].append(padded(1 + steps[1:], length))
            rows["probability"].append(
                padded(split.probability[steps[1:]], length)
            )
            rows["user_id"].append(user)
    dtypes = {"probability": "float32"}
    return {
        name: np.array(values, dtypes.get(name, "int32"))
        for name, values in rows.items()
    }


def latest(split, length):
    """Returns the histories (users, length) at validation and at the test.

    The test item comes after the validation item, so the tower reads it then.
    """
    by_user = [1 + items for items in histories(split)]
    with_validation = [
        np.append(items, 1 + item)
        for items, item in zip(by_user, split.validation)
    ]
    return [
        np.array([padded(items[-length:], length) for items in each], "int32")
        for each in (by_user, with_validation)
    ]


def padded(values, length):
    """Returns the values with zeros behind them."""
    return np.pad(values, (0, length - len(values)))


@keras.saving.register_keras_serializable(package="movielens")
class SafeUnitNormalization(keras.layers.Layer):
    """Divides by the length, with a finite gradient at a vector of zeros.

    `UnitNormalization` gives NaN there on JAX and PyTorch, and NaN spreads to
    all weights.
    """

    def call(self, vectors):
        """Returns vectors of length 1, or of zeros."""
        square = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
        return vectors * ops.rsqrt(square + 1e-6)


@keras.saving.register_keras_serializable(package="movielens")
class ItemTower(keras.Model):
    """From ids of any shape to unit vectors."""

    def __init__(self, num_ids, dimensions, **kwargs):
        super().__init__(**kwargs)
        self.embedding = keras.layers.Embedding(num_ids, dimensions)
        self.normalise = SafeUnitNormalization()

    def call(self, item_id):
        """Returns one more dimension than the ids have."""
        return self.normalise(self.embedding(item_id))


@keras.saving.register_keras_serializable(package="movielens")
class Positions(keras.layers.Layer):
    """Adds a vector that is learned for each place in the window.

    To unit vectors, made as long as vectors of as many normal numbers.
    """

    def build(self, shape):
        """Makes the vectors."""
        self.vectors = self.add_weight(shape=shape[1:], name="vectors")

    def call(self, vectors):
        """Returns (B, T, D)."""
        return vectors * vectors.shape[-1] ** 0.5 + self.vectors


def transformer_block(vectors, heads=2, dropout=0.2):
    """Attends to this position and those before it, then to each alone."""
    dimensions = vectors.shape[-1]
    normal = keras.layers.LayerNormalization()(vectors)
    attention = keras.layers.MultiHeadAttention(heads, dimensions // heads)
    attended = attention(normal, normal, use_causal_mask=True)
    vectors = vectors + keras.layers.Dropout(dropout)(attended)
    hidden = keras.layers.LayerNormalization()(vectors)
    hidden = keras.layers.Dense(2 * dimensions, "gelu")(hidden)
    hidden = keras.layers.Dense(dimensions)(hidden)
    return vectors + keras.layers.Dropout(dropout)(hidden)


def towers(
    num_items,
    length,
    dimensions,
    blocks=1,
    dropout=0.2,
    block=transformer_block,
):
    """Returns the tower of histories, and that of items, which it contains.

    Args:
        num_items: V; there is one id more, for padding.
        length: T.
        dimensions: D.
        blocks: How many blocks.
        dropout: Share of the entries that training drops.
        block: Makes a block, from vectors (B, T, D) to such vectors.

    Returns:
        A model from ids (B, T) to vectors (B, T, D), and one from ids to
        vectors.
    """
    item_tower = ItemTower(1 + num_items, dimensions)
    history = keras.Input((length,), dtype="int32")
    vectors = Positions()(item_tower(history))
    vectors = keras.layers.Dropout(dropout)(vectors)
    for _ in range(blocks):
        vectors = block(vectors, dropout=dropout)
    vectors = keras.layers.LayerNormalization()(vectors)
    history_tower = keras.Model(
        history, SafeUnitNormalization()(vectors), name="histories"
    )
    return history_tower, item_tower


def last_position(history_tower):
    """Returns the model from histories (B, T) to the vector of the last item.

    This is the query tower that goes into production.
    """
    history = keras.Input(history_tower.input_shape[1:], dtype="int32")
    count = ops.sum(ops.cast(history != PADDING, "int32"), axis=1)
    last = ops.one_hot(count - 1, history.shape[1], dtype="float32")
    vectors = ops.sum(history_tower(history) * last[:, :, None], axis=1)
    return keras.Model(history, vectors, name="user")

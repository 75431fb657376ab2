"""The recipes of the MovieLens example: from a batch of pairs to its losses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras

import inbatch_neg


class Pairs(NamedTuple):
    """A batch of (user, item) pairs inside of the model, B rows."""

    user_id: Any  # (B,)
    item_id: Any  # (B,)
    probability: Any  # (B,), how likely the item is in a row of the data
    user: Any  # (B, D), from the user tower
    item: Any  # (B, D), from the item tower
    item_tower: Any  # the model from item ids to vectors
    every_probability: Any  # (num_items,), the same of every item
    seed: int


class Recipe(NamedTuple):
    """A way to train the two towers."""

    title: str
    losses: Callable[[Pairs], Any]
    unit_length: bool = True  # of the towers' vectors


def plain(pairs):
    """All in-batch negatives, nothing else."""
    return inbatch_neg.InBatchNegativeSoftmax()(pairs.user, pairs.item)


def rotation(pairs):
    """Ten in-batch negatives a row, by rotating the batch of items."""
    softmax = inbatch_neg.InBatchNegativeSoftmax(
        num_negatives=10, seed=pairs.seed
    )
    return softmax(pairs.user, pairs.item)


def corrected(pairs, **arguments):
    """Low temperature; log q corrected; no positive is a negative."""
    arguments = {"temperature": 0.2, **arguments}
    softmax = inbatch_neg.InBatchNegativeSoftmax(**arguments)
    return softmax(
        pairs.user,
        pairs.item,
        candidate_ids=pairs.item_id,
        query_ids=pairs.user_id,
        candidate_sampling_probability=pairs.probability,
    )


def streaming(pairs):
    """The recipe, with probabilities estimated from the batches."""
    estimate = inbatch_neg.StreamingSamplingProbability(4096, num_hashes=2)
    return corrected(pairs._replace(probability=estimate(pairs.item_id)))


def memory(pairs):
    """The recipe, with the items of earlier batches as negatives too."""
    stored = inbatch_neg.CrossBatchMemory(capacity=1024, warmup_steps=100)
    candidates = stored(
        pairs.item,
        candidate_ids=pairs.item_id,
        candidate_sampling_probability=pairs.probability,
    )
    softmax = inbatch_neg.InBatchNegativeSoftmax(temperature=0.2)
    return softmax(pairs.user, query_ids=pairs.user_id, **candidates)


def hardest(pairs):
    """The recipe, with a quarter of the negatives: the highest-scoring."""
    return corrected(pairs, num_negatives=256, sampling="hardest")


def symmetric(pairs):
    """The recipe, with the users of an item as negatives too."""
    return corrected(pairs, symmetric=True)


def learned(pairs):
    """The recipe, with a temperature that is learned."""
    return corrected(pairs, temperature="learned")


class AddUniform(keras.layers.Layer):
    """Adds uniformly drawn ids to those of the batch: mixed negatives.

    A column of the B + M is item j with probability (B p_j + M / V) / (B + M),
    averaged over the columns, whichever source it came from (see
    docs/negatives.md).

    Args:
        probability: (V,), how likely each item is in a row of the data.
        count: M, how many ids to draw.
        seed: Of the draws.
    """

    def __init__(self, probability, count, seed):
        super().__init__(autocast=False)
        self.probability = keras.ops.convert_to_tensor(probability, "float32")
        self.count = count
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, ids):
        """Returns the ids (B + M,) and the probabilities of their columns."""
        items = self.probability.shape[0]
        rows = keras.ops.shape(ids)[0]
        drawn = keras.random.randint(
            (self.count,), 0, items, "int32", self.seed_generator
        )
        ids = keras.ops.concatenate([ids, drawn])
        of_row = keras.ops.take(self.probability, ids)
        share = keras.ops.cast(rows / (rows + self.count), "float32")
        return ids, share * of_row + (1.0 - share) / items

    def compute_output_spec(self, ids):
        """Returns the symbolic outputs."""
        rows = None if ids.shape[0] is None else ids.shape[0] + self.count
        return (
            keras.KerasTensor((rows,), "int32"),
            keras.KerasTensor((rows,), "float32"),
        )


def mixed(pairs):
    """The recipe, with 512 uniformly drawn items as negatives too."""
    ids, probability = AddUniform(pairs.every_probability, 512, pairs.seed)(
        pairs.item_id
    )
    softmax = inbatch_neg.InBatchNegativeSoftmax(temperature=0.2)
    return softmax(
        pairs.user,
        pairs.item_tower(ids),
        candidate_ids=ids,
        query_ids=pairs.user_id,
        candidate_sampling_probability=probability,
    )


RECIPES = {
    "plain": Recipe("dot product, temperature 1", plain, unit_length=False),
    "rotation": Recipe("rotation, 10 negatives", rotation),
    "recipe": Recipe("unit length, 0.2, log q, masks", corrected),
    "streaming": Recipe("recipe, estimated q", streaming),
    "memory": Recipe("recipe, memory of 1024", memory),
    "hardest": Recipe("recipe, 256 hardest", hardest),
    "symmetric": Recipe("recipe, both directions", symmetric),
    "mixed": Recipe("recipe, 512 uniform ones more", mixed),
    "learned": Recipe("recipe, learned temperature", learned),
}
DEFAULT_RECIPES = ("plain", "rotation", "recipe")

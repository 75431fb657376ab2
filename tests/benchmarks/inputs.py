"""The batch that every contender gets."""

from typing import NamedTuple

import numpy as np

# Items of the catalogue: few enough that many rows share one, as in practice.
_CATALOGUE = 2_000


class Inputs(NamedTuple):
    """A batch of B rows.

    Attributes:
        query: (B, D) float32, or (B, P, D), P vectors a row. Products have a
            standard deviation of 2.5 at D = 64, as with unit vectors and a
            temperature of 0.05.
        candidate: (B, D) float32, the vectors of the items, or (B, 1 + K, D),
            with K hard negatives a row.
        candidate_ids: (B,) or (B, 1 + K) int64, drawn from a catalogue by
            popularity.
        probability: Of the same shape, float32, the popularity of each.
        shifts: The rotations, integers in 1..B-1.
        with_rules: Whether ids and probabilities are to be used.
    """

    query: np.ndarray
    candidate: np.ndarray
    candidate_ids: np.ndarray
    probability: np.ndarray
    shifts: list
    with_rules: bool

    @property
    def rules(self):
        """The arguments of our functions beside the embeddings."""
        if not self.with_rules:
            return {}
        return {
            "candidate_ids": self.candidate_ids,
            "candidate_sampling_probability": self.probability,
        }


def make(
    rows,
    dimensions,
    with_rules=False,
    negatives=0,
    vectors=1,
    hard_negatives=0,
    seed=0,
):
    """Returns the `Inputs`, the same for the same arguments."""
    rng = np.random.default_rng(seed)

    def unit_vectors(*shape):
        vectors = rng.normal(size=(*shape, dimensions))
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        return vectors.astype("float32")

    popularity = 1.0 / (np.arange(_CATALOGUE) + 10.0)
    popularity /= popularity.sum()
    items = (rows, 1 + hard_negatives) if hard_negatives else (rows,)
    ids = rng.choice(_CATALOGUE, size=items, p=popularity)
    shape = (rows,) if vectors == 1 else (rows, vectors)
    shifts = [rows * (2 * k + 1) // (2 * negatives) for k in range(negatives)]
    return Inputs(
        query=20.0 * unit_vectors(*shape),
        candidate=unit_vectors(_CATALOGUE)[ids],
        candidate_ids=ids.astype("int64"),
        probability=popularity[ids].astype("float32"),
        shifts=shifts,
        with_rules=with_rules,
    )

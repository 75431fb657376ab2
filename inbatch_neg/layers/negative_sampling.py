"""Which of the other candidates a row uses as negatives."""

import keras
from keras import ops

from inbatch_neg.arguments import check_choice, check_integer
from inbatch_neg.softmax import logits
from inbatch_neg.softmax.batch import Batch
from inbatch_neg.softmax.log_q_and_masks import (
    cross_entropy_with_first,
    make_scoring,
)
from inbatch_neg.softmax.rotation import draw_shifts
from inbatch_neg.types import Size, Tensor


class NegativeSampling:
    """The choice of negatives, from the arguments of the softmax layer.

    Args:
        num_negatives: How many negatives a row uses, None for all.
        sampling: `"rotation"` or `"hardest"`.
    """

    def __init__(self, num_negatives: int | None, sampling: str) -> None:
        if num_negatives is not None:
            num_negatives = check_integer(
                "num_negatives", num_negatives, minimum=1, otherwise=" or None"
            )
        self.num_negatives = num_negatives
        self.sampling = check_choice(
            "sampling", sampling, ("rotation", "hardest")
        )
        if sampling == "hardest" and num_negatives is None:
            raise ValueError(
                '`sampling="hardest"` needs `num_negatives`, the number of '
                "negatives to use. Received: num_negatives=None"
            )

    @property
    def is_random(self) -> bool:
        """Whether the negatives are drawn at random."""
        return self.num_negatives is not None and self.sampling == "rotation"

    def draw(self, seed: keras.random.SeedGenerator) -> Tensor:
        """Returns (N,) random numbers in [0, 1), which choose the shifts."""
        # Not in Keras' `floatx`: half precision has too few values to reach
        # every shift of a large batch.
        return keras.random.uniform(
            (self.num_negatives,), dtype="float32", seed=seed
        )

    def check_batch(self, batch: Batch, symmetric: bool, replicas: int) -> None:
        """Refuses a batch with too few candidates to choose from.

        Args:
            batch: Symbolic tensors or values.
            symmetric: Whether negatives are chosen in both directions.
            replicas: How many replicas' candidates a row is scored against.
        """
        # Only the hardest negatives can be extra candidates, and only in the
        # direction from queries to candidates.
        among_extra = self.sampling == "hardest" and not symmetric
        rows = (batch.candidate if among_extra else batch.query).shape[0]
        self.check_rows(rows * replicas if isinstance(rows, int) else None)

    def check_rows(self, rows: int | None) -> None:
        """Refuses so few candidates that N negatives cannot be chosen."""
        if self.num_negatives is None or rows is None:
            return
        if 1 < rows <= self.num_negatives:
            raise ValueError(
                "`num_negatives` must be smaller than the batch: a row has "
                f"{rows - 1} negatives to choose from. "
                f"Received: num_negatives={self.num_negatives}"
            )

    def columns(self, rows: Size, candidates: Size, replicas: int) -> Size:
        """Returns the number of logits per row, None if it is unknown."""
        count = self.num_negatives
        if count is not None and self.sampling == "hardest":
            return 1 + count
        if candidates is None:
            return None
        if count is None:
            return candidates * replicas
        if rows is None:
            return None
        return 1 + count + (candidates - rows) * replicas

    def logits(
        self,
        batch: Batch,
        in_batch: Size,
        uniform: Tensor,
        temperature: float | Tensor,
    ) -> Tensor:
        """Returns the (B, 1 + K) logits of the positives and the negatives.

        Args:
            batch: The checked batch.
            in_batch: How many candidates are in-batch ones: one per row, and
                with `cross_replica=True` one per row of the global batch.
            uniform: From `draw`, if `is_random`.
            temperature: Divides the scores.
        """
        scoring = make_scoring(batch)
        query, candidate = batch.query / temperature, batch.candidate
        if self.num_negatives is None:
            return logits.all_logits(query, candidate, scoring, in_batch)
        if self.sampling == "hardest":
            return logits.hardest_logits(
                query, candidate, scoring, self.num_negatives
            )
        shifts = draw_shifts(self.num_negatives, in_batch, uniform)
        return logits.rotation_logits(
            query, candidate, scoring, shifts, in_batch
        )

    def losses(
        self,
        batch: Batch,
        in_batch: Size,
        uniform: Tensor,
        temperature: float | Tensor,
    ) -> Tensor:
        """Returns the (B,) weighted losses among the chosen negatives.

        The arguments are those of `logits`.
        """
        losses = cross_entropy_with_first(
            self.logits(batch, in_batch, uniform, temperature)
        )
        if batch.sample_weight is None:
            return losses
        return losses * ops.cast(batch.sample_weight, losses.dtype)

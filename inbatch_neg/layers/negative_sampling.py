"""Which of the other candidates are a row's negatives."""

from inbatch_neg import arguments
from inbatch_neg.backends import Size, Tensor
from inbatch_neg.softmax import logits
from inbatch_neg.softmax.batch import Batch
from inbatch_neg.softmax.rotation import draw_shifts
from inbatch_neg.softmax.scoring import make_scoring


class NegativeSampling:
    """The choice of negatives, from the arguments of the softmax layer.

    Args:
        num_negatives: How many negatives a row keeps, None for all.
        sampling: `"rotation"` or `"hardest"`.
    """

    def __init__(self, num_negatives: int | None, sampling: str) -> None:
        if num_negatives is not None:
            num_negatives = arguments.integer(
                "num_negatives", num_negatives, minimum=1, otherwise=" or None"
            )
        self.num_negatives = num_negatives
        self.sampling = arguments.choice(
            "sampling", sampling, ("rotation", "hardest")
        )
        if sampling == "hardest" and num_negatives is None:
            raise ValueError(
                '`sampling="hardest"` needs `num_negatives`, how many of the '
                "highest-scoring negatives take part. Received: "
                "num_negatives=None"
            )

    @property
    def is_random(self) -> bool:
        """Whether the negatives are drawn."""
        return self.num_negatives is not None and self.sampling == "rotation"

    def check_rows(self, rows: Size) -> None:
        """Refuses a batch with too few candidates to choose from."""
        if self.num_negatives is None or not isinstance(rows, int):
            return
        if 1 < rows <= self.num_negatives:
            raise ValueError(
                "`num_negatives` must be smaller than the batch: a row has "
                f"{rows - 1} negatives to choose from. "
                f"Received: num_negatives={self.num_negatives}"
            )

    def columns(self, rows: Size, candidates: Size, replicas: int) -> Size:
        """Returns the columns of the logits, None if a size is unknown."""
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
            uniform: (N,) random numbers in [0, 1), if `is_random`.
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

"""The loop over chunks for several vectors, of which the best one scores.

As in `exact`, but the gradient of the scores, (R, C), is split among the P
vectors that won them (see `vectors`): each entry goes into one of P tables.
The products for the gradients are dense and take 2 x 2PBCD flops in all.
Products of the winning entries alone take 2 x 2BCD flops, but are sparse: for
P = 4 they take longer on every backend.
"""

from collections.abc import Callable, Sequence

from keras import ops

from inbatch_neg.backends import backend
from inbatch_neg.softmax import several_vectors
from inbatch_neg.softmax.chunks import Chunks
from inbatch_neg.softmax.scoring import Scoring
from inbatch_neg.types import Size, Tensor


class Gradients:
    """Sums the gradients of the queries and the candidates over the chunks.

    Args:
        chunks: The chunks of the batch.
        query: (B, D) or (B, P, D).
        candidate: (C, D), or (C, P, D) if the queries have one vector each.
        row_weight: (B,), multiplies the loss of each row; or None.
        wanted: Which gradients are computed, "query", "candidate" or both.
            The others stay 0.
    """

    def __init__(
        self,
        chunks: Chunks,
        query: Tensor,
        candidate: Tensor,
        row_weight: Tensor = None,
        wanted: Sequence[str] = ("query", "candidate"),
    ) -> None:
        self._chunks = chunks
        self._wanted = wanted
        self._query, self._candidate = query, candidate
        self._queries = several_vectors.split(query)
        self._candidates = several_vectors.split(candidate)
        self._row_weight = row_weight

    def zeros(self) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the initial sums, those of the candidates as (D, C)."""
        return (
            [ops.zeros_like(query) for query in self._queries],
            [ops.transpose(ops.zeros_like(c)) for c in self._candidates],
        )

    def add(
        self,
        sums: tuple[list[Tensor], list[Tensor]],
        index: Size,
        shares: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns `sums` with the gradients of a chunk added.

        Args:
            sums: From `zeros`, or from the previous chunk.
            index: Number of the chunk.
            shares: P tensors (R, C), the gradients of the scores that each
                vector has won.
        """
        chunks, (d_queries, d_candidates) = self._chunks, map(list, sums)
        start = chunks.start(index)
        weight = None
        if self._row_weight is not None:
            weight = chunks.of(self._row_weight, start)[:, None]
        of_chunk: dict[int, Tensor] = {}
        for share, (row, column) in zip(
            shares, several_vectors.pairs(d_queries, d_candidates)
        ):
            if "query" in self._wanted:
                new = backend.matmul_no_grad(share, self._candidates[column])
                of_chunk[row] = of_chunk[row] + new if row in of_chunk else new
            if "candidate" not in self._wanted:
                continue
            part = chunks.of(self._queries[row], start)
            if weight is not None:
                part = weight * part
            part = chunks.without_repeats(part, index)
            # (D, R) by (R, C): the long side last is faster under XLA.
            d_candidates[column] = backend.addmm(
                d_candidates[column], ops.transpose(part), share
            )
        for row, rows in of_chunk.items():
            if weight is not None:
                rows = weight * rows
            d_queries[row] = backend.update_rows(d_queries[row], start, rows)
        return d_queries, d_candidates

    def joined(
        self, sums: tuple[list[Tensor], list[Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Returns the sums, in the shapes of query and candidate."""
        d_queries, d_candidates = sums
        d_candidates = [ops.transpose(d) for d in d_candidates]
        return (
            several_vectors.join(d_queries, self._query),
            several_vectors.join(d_candidates, self._candidate),
        )


def over_chunks(
    query: Tensor,
    candidate: Tensor,
    row_weight: Tensor,
    scoring: Scoring,
    wanted: Sequence[str],
) -> dict[str, Tensor]:
    """Returns a dict of the `wanted` results.

    The arguments are those of `exact`. For "loss" the dict has
    "positive_probability", (B,).
    """
    chunks = Chunks(query, candidate, scoring)
    gradients = Gradients(chunks, query, candidate, row_weight, wanted)
    differentiate = "query" in wanted or "candidate" in wanted

    def visit(index: Size, results: dict) -> dict:
        start = chunks.start_after(index, results)
        scores, better = chunks.scores_and_winners(start, include_positive=True)
        probability = ops.softmax(scores)  # p, (R, C)
        own = chunks.own(probability, start)
        results = dict(results)
        if "loss" in wanted:
            results["positive_probability"] = backend.update_rows(
                results["positive_probability"], start, own
            )
        if differentiate:
            # The gradient of a row's own score is p - 1, which is exactly 0
            # for a row without negatives, whose p is 1.
            d_scores = ops.scatter_update(
                probability, chunks.own_places(start), own - 1.0
            )
            results["sums"] = gradients.add(
                results["sums"], index, several_vectors.shares(d_scores, better)
            )
        return results

    results: dict = {}
    if "loss" in wanted:
        results["positive_probability"] = ops.zeros_like(row_weight)
    if differentiate:
        results["sums"] = gradients.zeros()
    results = dict(ops.fori_loop(0, chunks.count, visit, results))
    if differentiate:
        sums = gradients.joined(results.pop("sums"))
        results["query"], results["candidate"] = sums
    return results


def all_products(query: Tensor, candidate: Tensor) -> Tensor:
    """Returns (B, C) products, the best where one side has several vectors.

    Neither this nor the gradient keeps P such tables.
    """
    if several_vectors.count(query, candidate) == 1:
        return backend.matmul(query, ops.transpose(candidate))

    def best_products(
        query: Tensor, candidate: Tensor
    ) -> tuple[Tensor, Callable]:
        chunks = Chunks(query, candidate, Scoring())
        gradients = Gradients(chunks, query, candidate)

        def visit(index: Size, table: Tensor) -> Tensor:
            start = chunks.start_after(index, table)
            scores = chunks.scores(start, include_positive=True)
            return backend.update_rows(table, start, scores)

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
            def visit(index: Size, sums: tuple) -> tuple:
                start = chunks.start_after(index, sums)
                _, better = chunks.scores_and_winners(
                    start, include_positive=True
                )
                part = chunks.of(upstream, start)
                return gradients.add(
                    sums, index, several_vectors.shares(part, better)
                )

            return gradients.joined(
                ops.fori_loop(0, chunks.count, visit, gradients.zeros())
            )

        shape = (ops.shape(query)[0], ops.shape(candidate)[0])
        table = ops.zeros(shape, query.dtype)
        return ops.fori_loop(0, chunks.count, visit, table), gradient

    return backend.custom_gradient(best_products)(query, candidate)

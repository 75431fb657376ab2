"""The walk over chunks where the best of several vectors scores.

As in `exact`, with the gradient by the scores, (R, C), shared out to the P
vectors that won them (see `vectors`): P tables of which each entry is in one.
So the products of the gradients are dense, 2 x 2PBCD flops in all. Products
of the entries that won alone, 2 x 2BCD flops, are sparse ones: for P = 4 they
take longer, on every backend.
"""

from collections.abc import Callable, Sequence

from keras import ops

from inbatch_neg.backends import Size, Tensor, backend
from inbatch_neg.softmax import vectors
from inbatch_neg.softmax.chunks import Chunks
from inbatch_neg.softmax.scoring import Scoring


class Gradients:
    """Adds up the gradients by the queries and the candidates, by chunks.

    Args:
        chunks: The chunks of the batch.
        query: (B, D) or (B, P, D).
        candidate: (C, D), or (C, P, D) if the queries have one vector each.
        row_weight: (B,) multiplies the loss of each row, or None.
        wanted: Which gradients, "query" or "candidate", are added up. The
            other one stays 0.
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
        self._like = query, candidate
        self._queries = vectors.split(query)
        self._candidates = vectors.split(candidate)
        self._row_weight = row_weight

    def zeros(self) -> tuple[list[Tensor], list[Tensor]]:
        """Returns what the chunks add to, candidates as (D, C)."""
        return (
            [ops.zeros_like(query) for query in self._queries],
            [ops.transpose(ops.zeros_like(c)) for c in self._candidates],
        )

    def add(
        self,
        found: tuple[list[Tensor], list[Tensor]],
        index: Size,
        shares: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns `found` with what a chunk adds to it.

        Args:
            found: From `zeros`, or from the chunk before.
            index: Number of the chunk.
            shares: P tensors (R, C), the gradients by the scores that each
                vector has won.
        """
        chunks, (d_queries, d_candidates) = self._chunks, map(list, found)
        start = chunks.start(index)
        weight = None
        if self._row_weight is not None:
            weight = chunks.of(self._row_weight, start)[:, None]
        sums: dict[int, Tensor] = {}
        for share, (row, column) in zip(
            shares, vectors.pairs(d_queries, d_candidates)
        ):
            if "query" in self._wanted:
                pull = backend.matmul_no_grad(share, self._candidates[column])
                sums[row] = sums[row] + pull if row in sums else pull
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
        for row, pull in sums.items():
            if weight is not None:
                pull = weight * pull
            d_queries[row] = backend.update_rows(d_queries[row], start, pull)
        return d_queries, d_candidates

    def joined(
        self, found: tuple[list[Tensor], list[Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Returns the sums, of the shapes of query and candidate."""
        query, candidate = self._like
        d_queries, d_candidates = found
        return (
            vectors.join(d_queries, query),
            vectors.join([ops.transpose(d) for d in d_candidates], candidate),
        )


def over_chunks(
    query: Tensor,
    candidate: Tensor,
    row_weight: Tensor,
    scoring: Scoring,
    wanted: Sequence[str],
) -> dict[str, Tensor]:
    """Returns a dict of what is wanted.

    The arguments are those of `exact`. In the place of "loss" stands
    "positive_probability", (B,).
    """
    chunks = Chunks(query, candidate, scoring)
    gradients = Gradients(chunks, query, candidate, row_weight, wanted)
    differentiate = "query" in wanted or "candidate" in wanted

    def visit(index: Size, found: dict) -> dict:
        start = chunks.start_after(index, found)
        scores, better = chunks.scores_and_winners(start, include_positive=True)
        probability = ops.softmax(scores)  # p, (R, C)
        own = chunks.own(probability, start)
        found = dict(found)
        if "loss" in wanted:
            found["positive_probability"] = backend.update_rows(
                found["positive_probability"], start, own
            )
        if differentiate:
            # The gradient by a row's own score is p - 1, and exactly 0 for a
            # row without negatives, whose p is 1.
            d_scores = ops.scatter_update(
                probability, chunks.own_places(start), own - 1.0
            )
            found["sums"] = gradients.add(
                found["sums"], index, vectors.shares(d_scores, better)
            )
        return found

    found: dict = {}
    if "loss" in wanted:
        found["positive_probability"] = ops.zeros_like(row_weight)
    if differentiate:
        found["sums"] = gradients.zeros()
    found = dict(ops.fori_loop(0, chunks.count, visit, found))
    if differentiate:
        found["query"], found["candidate"] = gradients.joined(found.pop("sums"))
    return found


def all_products(query: Tensor, candidate: Tensor) -> Tensor:
    """Returns (B, C) products, the best of the several vectors of one side.

    The table is kept, P of them are not, nor by the gradients.
    """
    if vectors.count(query, candidate) == 1:
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
            def visit(index: Size, found: tuple) -> tuple:
                start = chunks.start_after(index, found)
                _, better = chunks.scores_and_winners(
                    start, include_positive=True
                )
                part = chunks.of(upstream, start)
                return gradients.add(found, index, vectors.shares(part, better))

            return gradients.joined(
                ops.fori_loop(0, chunks.count, visit, gradients.zeros())
            )

        shape = (ops.shape(query)[0], ops.shape(candidate)[0])
        table = ops.zeros(shape, query.dtype)
        return ops.fori_loop(0, chunks.count, visit, table), gradient

    return backend.custom_gradient(best_products)(query, candidate)

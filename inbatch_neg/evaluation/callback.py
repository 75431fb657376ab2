"""`RetrievalEvaluation`: recall over the whole catalogue, every epoch."""

import logging
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from inbatch_neg.arguments import check_choice, check_flag, check_integer
from inbatch_neg.evaluation import embedding, ids, metrics, ranking
from inbatch_neg.evaluation.ids import Array

_logger = logging.getLogger("inbatch_neg")


class RetrievalEvaluation(keras.callbacks.Callback):
    """Recall@k, NDCG@k and MRR over the whole catalogue.

    ```
    rank of a target = 1 + #{unseen candidates j other than it: s_j >= s_t}
    recall@k   = (targets of rank <= k) / (targets)
    hit_rate@k = 1 if any target has rank <= k, else 0
    ndcg@k     = sum of 1 / log2(1 + rank) over targets of rank <= k,
                 divided by the same sum for ranks 1..min(k, targets)
    mrr        = 1 / (rank of the best target)
    coverage@k = (candidates in the k best of any query) / (candidates)
    ```

    each averaged over the queries. As a callback of `fit`, it adds the
    figures to the logs of each epoch under `prefix`, so that `EarlyStopping`
    or `ModelCheckpoint` can monitor `"val_recall@10"`; put it before them in
    the list of callbacks. Without `fit`, call it: `evaluation()`. Accuracy
    within a batch says little about these figures.

    Ties count against a target, and so do scores that differ only by the
    rounding of float32 and NaN scores. So a model that gives every candidate
    the same vector ranks last, not first. The targets of a query are in one
    list and compete with each other.

    Args:
        query_model: Model from `queries` to vectors (rows, D), or to P
            vectors per row (rows, P, D), of which the best one scores.
            `None`: `queries` are vectors.
        candidate_model: The same for `candidates`, with one vector per row.
        queries: Array, dict of arrays, frame, or dataset of batches, not
            shuffled, with Q rows in all. A functional model gets the columns
            that its inputs name; a model with one input gets the only column.
        targets: The ids of each query's targets: (Q,) ids, a list of Q id
            lists, a ragged tensor, or a scipy sparse matrix (Q, C) whose
            column j is the j-th candidate. A query without targets is left
            out of the averages. A target that is not in the catalogue counts
            as not found, and is logged.
        candidates: The whole catalogue, C rows, in the forms of `queries`.
        candidate_ids: (C,) integers of up to 64 bits or strings, all
            different. Defaults to 0..C-1.
        seen: The ids to leave out of each query's list, in the forms of
            `targets`. A target stays in the list even if it is seen; ids that
            are not in the catalogue are ignored.
        k: Length of the list, an integer or several. If k is larger than the
            catalogue, the list is the whole catalogue. Defaults to (10, 100).
        batch_size: Rows that a model embeds at a time; a dataset keeps its
            own batches. Defaults to 4096.
        prefix: Prefix of the names in the logs. Defaults to `"val_"`.
        verbose: 1 shows the progress of embedding, 0 does not. `"auto"` (the
            default) follows `fit`.
        similarity: `"dot"` (the default) or `"cosine"`, the score of two
            vectors. Scores have 32 bits, also under mixed precision.
        sample_weight: (Q,) numbers of 0 or more, the weight of each query in
            the averages. Defaults to 1.
        coverage: Whether to compute coverage@k too. It needs the lists, and
            takes several times as long as all other figures. Defaults to
            False.

    Raises:
        ValueError, TypeError: for an argument outside of the above, as soon
            as the sizes are known; if no query has a target, or no target
            is in the catalogue.

    Example:
    >>> import numpy as np
    >>> items = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> evaluation = RetrievalEvaluation(
    ...     None, None, items[:2], ["b", "a"], items,
    ...     candidate_ids=["a", "b", "c"], seen=[["a"], []], k=1,
    ... )
    >>> evaluation()
    {'recall@1': 0.5, 'hit_rate@1': 0.5, 'ndcg@1': 0.5, 'mrr': 0.75}

    References: Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation
    of IR techniques" (doi 10.1145/582415.582418); on the whole catalogue
    rather than sampled candidates: Krichene and Rendle 2020, "On sampled
    metrics for item recommendation" (doi 10.1145/3394486.3403226).

    Differs from: `tfrs.metrics.FactorizedTopK` and
    `keras_rs.layers.BruteForceRetrieval`, which keep the k best candidates of
    every query. This callback counts the scores ahead of a target without
    sorting, so its cost does not depend on k, and leaves out seen items.
    """

    def __init__(
        self,
        query_model: keras.Model | None,
        candidate_model: keras.Model | None,
        queries: Any,
        targets: Any,
        candidates: Any,
        *,
        candidate_ids: Any = None,
        seen: Any = None,
        k: int | Sequence[int] = (10, 100),
        batch_size: int = 4096,
        prefix: str = "val_",
        verbose: int | str = "auto",
        similarity: str = "dot",
        sample_weight: Any = None,
        coverage: bool = False,
    ) -> None:
        super().__init__()
        embedding.check_model("query_model", query_model)
        embedding.check_model("candidate_model", candidate_model)
        self.query_model, self.candidate_model = query_model, candidate_model
        self.queries, self.candidates = queries, candidates
        self.targets = ids.parse("targets", targets)
        self.seen = None if seen is None else ids.parse("seen", seen)
        self.candidate_ids = candidate_ids
        if candidate_ids is not None:
            self.candidate_ids = ids.as_ids("candidate_ids", candidate_ids)
        self.k = metrics.lengths(k)
        self.batch_size = check_integer("batch_size", batch_size, minimum=1)
        if not isinstance(prefix, str):
            raise TypeError(
                f"`prefix` must be a string. Received: prefix={prefix!r}"
            )
        self.prefix = prefix
        self.verbose = check_choice("verbose", verbose, ("auto", 0, 1))
        self.similarity = check_choice(
            "similarity", similarity, ("dot", "cosine")
        )
        self.sample_weight = sample_weight
        if sample_weight is not None:
            self.sample_weight = metrics.weights(sample_weight)
        self.coverage = check_flag("coverage", coverage)
        if not len(self.targets.row):
            raise ValueError(
                "`targets` must hold at least one target. Received: "
                f"{self.targets.rows} queries without targets"
            )
        self._catalogue: ids.Catalogue | None = None
        self._check_queries(embedding.rows(query_model, queries))
        size = embedding.rows(candidate_model, candidates)
        if size is not None:
            self._catalogue_of(size)

    def __call__(self) -> dict[str, float]:
        """Returns the figures by name, without the prefix."""
        query, candidate, catalogue = self._embed_all(self.queries)
        self._check_queries(len(query))
        row, place = catalogue.places("targets", self.targets)
        known = place >= 0
        if not known.all():
            self._warn(int(len(known) - known.sum()), len(known))
        targets = _known(row, place)
        seen = None
        if self.seen is not None:
            seen = _known(*catalogue.places("seen", self.seen))
            seen = ranking.without(seen, targets, len(candidate))
        ranks = np.full(len(row), np.inf)
        ranks[known] = ranking.target_ranks(query, candidate, targets, seen)
        results = metrics.averages(
            row, ranks, len(query), self.k, self.sample_weight
        )
        if self.coverage:
            lists = ranking.top_k(query, candidate, max(self.k), seen)
            results |= metrics.coverage(lists, len(candidate), self.k)
        return results

    def top_k(
        self, queries: Any, k: int, seen: Any = None
    ) -> tuple[Array, Array]:
        """Returns the k best candidates of each query, exactly.

        Every call embeds all candidates anew.

        Args:
            queries: n queries, in the forms that the constructor takes.
            k: Length of the lists, an integer. Lists have at most C entries.
            seen: Ids to leave out, in the forms that the constructor takes.

        Returns:
            `(scores, ids)`, NumPy arrays (n, min(k, C)), the best first. If
            `seen` leaves fewer candidates, the list ends with scores of -inf,
            whose ids have no meaning. Candidates with equal scores are in
            any order.
        """
        k = check_integer("k", k, minimum=1)
        query, candidate, catalogue = self._embed_all(queries)
        left_out = None
        if seen is not None:
            lists = ids.parse("seen", seen)
            _require_rows("seen", lists.rows, len(query))
            left_out = _known(*catalogue.places("seen", lists))
        k = min(k, len(candidate))
        chunks = list(ranking.top_k(query, candidate, k, left_out))
        scores = np.concatenate([chunk for chunk, _ in chunks])
        places = np.concatenate([chunk for _, chunk in chunks])
        if self.candidate_ids is not None:
            return scores, self.candidate_ids[places]
        return scores, places

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Adds the figures to the logs of the epoch."""
        results = self()
        if logs is not None:
            for name, value in results.items():
                logs[self.prefix + name] = value

    def _embed_all(self, queries: Any) -> tuple[Array, Array, ids.Catalogue]:
        """Returns the vectors of queries and candidates, and the catalogue."""
        query = self._embed("queries", "query_model", queries)
        candidate = self._embed(
            "candidates", "candidate_model", self.candidates
        )
        embedding.check(query, candidate)
        return query, candidate, self._catalogue_of(len(candidate))

    def _embed(self, name: str, model_name: str, features: Any) -> Array:
        verbose = self.verbose == 1
        if self.verbose == "auto":
            verbose = (self.params or {}).get("verbose", 1) == 1
        vectors = embedding.embed(
            name,
            model_name,
            getattr(self, model_name),
            features,
            self.batch_size,
            int(verbose),
            several=model_name == "query_model",
        )
        if self.similarity == "cosine":
            return embedding.l2_normalize(vectors)
        return vectors

    def _check_queries(self, queries: int | None) -> None:
        """Refuses lists that do not have one entry per query, if known."""
        if queries is None:
            return
        _require_rows("targets", self.targets.rows, queries)
        if self.seen is not None:
            _require_rows("seen", self.seen.rows, queries)
        if self.sample_weight is not None:
            _require_rows("sample_weight", len(self.sample_weight), queries)

    def _catalogue_of(self, candidates: int) -> ids.Catalogue:
        """Returns the catalogue; refuses another number of candidates."""
        own_ids = self.candidate_ids
        if own_ids is not None and len(own_ids) != candidates:
            raise ValueError(
                "`candidate_ids` must have one id per candidate, "
                f"{candidates}. Received: {len(own_ids)} ids"
            )
        if self._catalogue is None or self._catalogue.size != candidates:
            self._catalogue = ids.Catalogue(own_ids, candidates)
        return self._catalogue

    def _warn(self, absent: int, count: int) -> None:
        if absent == count:
            raise ValueError(
                "`targets` must be ids from `candidate_ids` (by default, the "
                "indices 0..C-1 of the candidates). Received: no such id; the "
                f"first is {self.targets.ids[0].item()!r}"
            )
        _logger.warning(
            "%d of %d targets are not in the catalogue and count as not found.",
            absent,
            count,
        )


def _known(row: Array, place: Array) -> ranking.Places:
    """Returns the places of the ids that are in the catalogue."""
    return ranking.Places(row[place >= 0], place[place >= 0])


def _require_rows(name: str, rows: int, queries: int) -> None:
    if rows != queries:
        raise ValueError(
            f"`{name}` must have one entry per query, {queries}. Received: "
            f"{rows}"
        )

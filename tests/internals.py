"""Where the tests reach inside of the package, but for tests of an inside.

What moves there is to be changed here alone.
"""

from inbatch_neg.backends import backend
from inbatch_neg.replicas.current import replicas
from inbatch_neg.softmax import loss


def set_tuning(monkeypatch, **changes):
    """Changes some of the backend's sizes that decide about speed alone."""
    monkeypatch.setattr(backend, "tuning", _changed(backend.tuning, changes))


def _changed(tuning, changes):
    return lambda tensor: tuning(tensor)._replace(**changes)


def small_chunks(monkeypatch, rows=4):
    """Computes few rows at a time, so that even a small batch has chunks."""
    compute_in_chunks(monkeypatch)
    set_tuning(monkeypatch, min_chunk_rows=1, max_chunk_rows=rows)


def compute_in_chunks(monkeypatch):
    """Keeps no table of scores, however small the batch is."""
    set_tuning(monkeypatch, max_dense_scores=0)


def compute_in_chunks_from_now_on():
    """The same for the rest of the process."""
    backend.tuning = _changed(backend.tuning, {"max_dense_scores": 0})


def refuse_chunks(monkeypatch):
    """Fails where a batch is computed in chunks."""

    def fail(*args, **kwargs):
        raise AssertionError("computed in chunks")

    monkeypatch.setattr(loss, "_over_chunks", fail)


def pretend_replicas(monkeypatch, count):
    """Lets layers believe that there are so many replicas."""
    monkeypatch.setattr(replicas, "count", lambda: count)

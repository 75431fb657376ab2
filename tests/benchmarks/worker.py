"""Measures in this process: a line of JSON asks, a line of JSON answers.

One line is a call of `measure`. Extra memory is told of the first one alone:
later ones find memory that an earlier one has given back.
"""

import importlib
import json
import resource
import sys
import time

import numpy as np

from tests.benchmarks import inputs

# There are at least so many repeats, unless they take too long, and then as
# many more as fit.
_FEWEST_REPEATS = 5
_LONGEST_SECONDS = 5.0
_SECONDS = 1.0


def measure(
    contender,
    rows,
    dimensions,
    with_rules,
    negatives,
    vectors,
    hard_negatives,
):
    """Returns time in seconds, extra memory in bytes and the results.

    Args:
        contender: "engine/function": a function of `on_<engine>.py`.
        rows: B.
        dimensions: D.
        with_rules: Whether ids and sampling probabilities are given.
        negatives: N rotations.
        vectors: P, of a query.
        hard_negatives: K, of a row.
    """
    engine, function = contender.split("/")
    module = importlib.import_module(f"tests.benchmarks.on_{engine}")
    build = getattr(module, function)
    # Too many for the form that ours takes for small batches, if it can be.
    warm_up_rows = max(256, min(rows // 4, 1100))
    kind = (dimensions, with_rules, negatives, vectors, hard_negatives)
    build(inputs.make(warm_up_rows, *kind))()
    step = build(inputs.make(rows, *kind))

    peak_before = _peak_memory()
    step()  # traces and compiles
    seconds, processor_seconds = [], []
    while sum(seconds) < (
        _LONGEST_SECONDS if len(seconds) < _FEWEST_REPEATS else _SECONDS
    ):
        start, processor_start = time.perf_counter(), time.process_time()
        results = step()
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - processor_start)
    extra = _peak_memory() - peak_before

    loss, *gradients = results if results is not None else [None]
    return {
        "contender": contender,
        "seconds": min(seconds),
        "processor_seconds": min(processor_seconds),
        "repeats": len(seconds),
        "extra_bytes": extra,
        "loss": None if loss is None else float(loss),
        "gradient_norms": [
            float(np.linalg.norm(np.asarray(gradient, "float64")))
            for gradient in gradients
        ],
    }


def _peak_memory():
    """Returns the most resident memory that the process had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main():
    for number, line in enumerate(sys.stdin):
        result = measure(**json.loads(line))
        if number:
            result["extra_bytes"] = None
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

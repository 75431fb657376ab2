"""Measures one contender in this process and prints one line of JSON.

python -m tests.benchmarks.worker tensorflow/ours --rows 8192
"""

import argparse
import importlib
import json
import resource
import sys
import time

import numpy as np

from tests.benchmarks import inputs

WARM_UP_ROWS = 256
# There are at least so many repeats, unless they take too long, and then as
# many more as fit.
_FEWEST_REPEATS = 5
_LONGEST_SECONDS = 5.0
_SECONDS = 1.0


def measure(contender, rows, dimensions, with_rules, negatives):
    """Returns time in seconds, extra memory in bytes and the results.

    Args:
        contender: "engine/function": a function of `on_<engine>.py`.
        rows: B.
        dimensions: D.
        with_rules: Whether ids and sampling probabilities are given.
        negatives: N rotations.
    """
    engine, function = contender.split("/")
    module = importlib.import_module(f"tests.benchmarks.on_{engine}")
    build = getattr(module, function)
    build(inputs.make(WARM_UP_ROWS, dimensions, with_rules, negatives))()
    step = build(inputs.make(rows, dimensions, with_rules, negatives))

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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--with-rules", action="store_true")
    parser.add_argument("--negatives", type=int, default=0)
    print(json.dumps(measure(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()

"""Runs the contenders of a measurement by turns, each in a new process."""

import json
import math
import os
import subprocess
import sys

from tests.benchmarks import measurements

# In the table over B no contender is started that should need more.
MOST_BYTES = 4e9


class WorkerError(RuntimeError):
    """A contender's process failed."""


def run(measurement, rounds, dimensions, report=print):
    """Returns {contender: [what the worker printed, a round each]}.

    Args:
        measurement: The `Measurement`.
        rounds: How often each contender has its turn.
        dimensions: D.
        report: Called with a line for every figure.

    Raises:
        WorkerError: if a contender fails, or if two of them give different
            losses or gradients.
    """
    results = {short(contender): [] for contender in measurement.contenders}
    for turn in range(rounds):
        for contender in measurement.contenders:
            result = _worker(measurement, contender, dimensions)
            results[short(contender)].append(result)
            report(
                f"{measurement.name}, round {turn + 1}, {contender}: "
                f"{result['seconds'] * 1e3:.1f} ms, "
                f"{result['extra_bytes'] / 1e6:.0f} MB"
            )
    _require_same_maths(measurement, results)
    return results


def run_scale(by_rows, rounds, dimensions, report=print):
    """Returns {name: results} of the table over B.

    A contender that failed, or whose memory, which grows as B^2 for those
    that keep the scores, would exceed `MOST_BYTES`, drops out.

    Args:
        by_rows: List of `Measurement` by rising number of rows.
        rounds: As in `run`; from 32,768 rows on there is one.
        dimensions: As in `run`.
        report: As in `run`.
    """
    results = {}
    dropped = set()
    for measurement in by_rows:
        kept = tuple(c for c in measurement.contenders if c not in dropped)
        measurement = measurement._replace(contenders=kept)
        while True:
            try:
                found = run(
                    measurement,
                    rounds if measurement.rows < 32_768 else 1,
                    dimensions,
                    report,
                )
                break
            except WorkerError as error:
                failed = error.args[1] if len(error.args) > 1 else None
                if failed is None or short(failed) == "ours":
                    raise
                report(f"{measurement.name}: {failed} failed and drops out")
                dropped.add(failed)
                kept = tuple(c for c in kept if c != failed)
                measurement = measurement._replace(contenders=kept)
        results[measurement.name] = found
        for contender in kept:
            # The limit goes by blocks, ours needs O(B).
            if short(contender) in ("ours", "limit"):
                continue
            most = max(r["extra_bytes"] for r in found[short(contender)])
            if 4 * most > MOST_BYTES and contender not in dropped:
                report(
                    f"{contender} would need about {4 * most / 1e9:.1f} GB at "
                    f"{2 * measurement.rows} rows and drops out"
                )
                dropped.add(contender)
    return results


def short(contender):
    """Returns the contender's name without its engine."""
    return contender.split("/")[1]


def run_together(wanted, own_process, dimensions, report=print):
    """Measures everything once, in as few processes as possible.

    Starting an engine takes longer than a figure, so those contenders of an
    engine whose memory nobody asks for share a process.

    Args:
        wanted: List of `Measurement`.
        own_process: Set of "measurement:contender" whose memory is wanted.
        dimensions: As in `run`.
        report: As in `run`.

    Returns:
        {measurement: {contender: [what the worker printed]}}.
    """
    alone, shared = [], {}
    for measurement in wanted:
        for contender in measurement.contenders:
            asked = (measurement, contender)
            name = f"{measurement.name}:{short(contender)}"
            # What others have left in memory would speed up the limit.
            if name in own_process or short(contender) == "limit":
                alone.append([asked])
            else:
                key = (_engine(contender), _is_legacy(contender))
                shared.setdefault(key, []).append(asked)
    results = {measurement.name: {} for measurement in wanted}
    for group in [*alone, *shared.values()]:
        for (measurement, contender), result in zip(
            group, _workers(group, dimensions)
        ):
            results[measurement.name][short(contender)] = [result]
            report(
                f"{measurement.name}, {contender}: "
                f"{result['seconds'] * 1e3:.1f} ms"
            )
    for measurement in wanted:
        _require_same_maths(measurement, results[measurement.name])
    return results


def _engine(contender):
    return contender.split("/")[0].split("_")[0]


def _is_legacy(contender):
    return short(contender) == "tfrs"


def _worker(measurement, contender, dimensions):
    (result,) = _workers([(measurement, contender)], dimensions)
    return result


def _workers(group, dimensions):
    """Returns what one process finds for (measurement, contender) pairs."""
    first = group[0][1]
    environment = dict(
        os.environ,
        KERAS_BACKEND=_engine(first),
        TF_CPP_MIN_LOG_LEVEL="3",
        CUDA_VISIBLE_DEVICES="-1",
        JAX_PLATFORMS="cpu",
        TF_USE_LEGACY_KERAS="1" if _is_legacy(first) else "0",
    )
    questions = [
        json.dumps(
            {
                "contender": contender,
                "rows": measurement.rows,
                "dimensions": measurement.dimensions or dimensions,
                "with_rules": measurement.with_rules,
                "negatives": measurement.negatives,
                "vectors": measurement.vectors,
                "hard_negatives": measurement.hard_negatives,
            }
        )
        for measurement, contender in group
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.worker"],
        input="\n".join(questions),
        env=environment,
        capture_output=True,
        text=True,
    )
    found = [json.loads(x) for x in done.stdout.splitlines() if x[:1] == "{"]
    if done.returncode or len(found) != len(group):
        measurement, contender = group[min(len(found), len(group) - 1)]
        raise WorkerError(
            f"{contender} failed in {measurement.name} with exit code "
            f"{done.returncode}:\n{done.stderr[-2000:]}",
            contender,
        )
    return found


def _require_same_maths(measurement, results):
    """Raises if a contender's loss or gradients are not those of the first."""
    expected = None
    for contender in measurement.contenders:
        if not measurements.is_same_maths(contender, measurement.with_rules):
            continue
        result = results[short(contender)][0]
        if result["loss"] is None:
            continue
        found = [result["loss"], *result["gradient_norms"]]
        expected = expected or found
        for value, other in zip(found, expected):
            if not math.isclose(value, other, rel_tol=1e-5):
                raise WorkerError(
                    f"{contender} has another loss or other gradients than "
                    f"{measurement.contenders[0]} in {measurement.name}: "
                    f"{found}, {expected}"
                )

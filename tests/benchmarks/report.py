"""Tables, machine and JSON of what was measured."""

import importlib.metadata
import os
import platform
import statistics

_LIBRARIES = (
    "inbatch_neg",
    "keras",
    "tensorflow",
    "tensorflow-recommenders",
    "tf-keras",
    "keras-rs",
    "jax",
    "torch",
    "sentence-transformers",
    "numpy",
)


def machine():
    """Returns what the figures depend on: processor and versions."""
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor():
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def heading(command, about):
    """Returns the lines above the tables."""
    versions = ", ".join(
        f"{library} {version or '-'}"
        for library, version in about["versions"].items()
    )
    busy = about["load_before"] > 0.5
    return (
        f"$ {command}\n"
        f"{about['processor']}, {about['cores']} cores, load "
        f"{about['load_before']:.1f} before, {about['system']}\n"
        f"Python {about['python']}, {versions}"
        + ("\nOTHERS USE THIS MACHINE: times and ratios waver." if busy else "")
    )


def table(name, results):
    """Returns the table of one measurement, ratios to its first contender."""
    rows = [("", "ms", "x", "processor ms", "x", "extra MB", "x")]
    reference = next(iter(results.values()))
    for contender, rounds in results.items():
        if not rounds:
            continue
        rows.append(
            (
                contender,
                f"{median(rounds, 'seconds') * 1e3:.1f}",
                f"{ratio(rounds, reference, 'seconds'):.2f}",
                f"{median(rounds, 'processor_seconds') * 1e3:.1f}",
                f"{ratio(rounds, reference, 'processor_seconds'):.2f}",
                f"{median(rounds, 'extra_bytes') / 1e6:.0f}",
                f"{ratio(rounds, reference, 'extra_bytes'):.2f}",
            )
        )
    return f"{name}, rounds: {len(reference)}\n{_aligned(rows)}"


def scale_table(scale):
    """Returns the table over B: ms and MB of each, ours beside the limit."""
    contenders = list(max(scale.values(), key=len))
    rows = [("B", *(f"{c} ms" for c in contenders), "limit / ours")]
    rows[0] += tuple(f"{c} MB" for c in contenders if c != "limit")
    for name, results in scale.items():
        times = [
            _cell(results, c, "seconds", 1e3, "{:.1f}") for c in contenders
        ]
        memory = [
            _cell(results, c, "extra_bytes", 1e-6, "{:.0f}")
            for c in contenders
            if c != "limit"
        ]
        share = "-"
        if "limit" in results:
            share = ratio(results["limit"], results["ours"], "seconds")
            share = f"{share:.2f}"
        rows.append((name.split("-")[1], *times, share, *memory))
    return _aligned(rows)


def target_table(targets, results):
    """Returns the lines of the targets, and whether all were met."""
    rows = [("", "target", "figure", "")]
    met = True
    for target in targets:
        figure = target.figure(results)
        if figure is None:
            continue
        verdict = target.is_met(figure)
        met = met and verdict
        rows.append(
            (
                target.claim,
                f"{target.comparison} {target.limit:.4g}",
                f"{figure:.4g}",
                "PASS" if verdict else "MISS",
            )
        )
    return _aligned(rows), met


def median(rounds, quantity):
    """Returns the median of a quantity over the rounds."""
    return statistics.median(result[quantity] for result in rounds)


def ratio(rounds, reference, quantity):
    """Returns the median over the rounds of the ratio within a round."""
    return statistics.median(
        # A process may need no memory at all beyond its warm-up.
        one[quantity] / max(other[quantity], 1e-9)
        for one, other in zip(rounds, reference)
    )


def _cell(results, contender, quantity, factor, form):
    if not results.get(contender):
        return "-"
    return form.format(median(results[contender], quantity) * factor)


def _aligned(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    )

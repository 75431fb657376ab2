"""Tables, machine, JSON and picture of what was measured."""

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

# Of each contender of the picture: its name, colour and marker. The colours are
# those of Okabe and Ito, which people with any colour vision tell apart.
_LOOKS = {
    "ours": ("inbatch_neg", "#0072B2", "o"),
    "tfrs": ("TensorFlow Recommenders", "#E69F00", "s"),
    "keras_rs": ("keras-rs", "#009E73", "^"),
    "plain": ("matmul + sparse cross-entropy", "#CC79A7", "D"),
    "limit": ("three matrix products", "#000000", "."),
}


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


def plot(scale, path):
    """Draws time and extra memory over B, all axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.8))
    titles = ("seconds per step", "extra memory (MB)")
    for axes, title, curves in zip(panels, titles, _curves(scale)):
        for contender, points in curves.items():
            label, colour, marker = _LOOKS[contender]
            axes.plot(
                *zip(*points),
                color=colour,
                label=label,
                linestyle="--" if contender == "limit" else "-",
                linewidth=2.5 if contender == "ours" else 1.5,
                marker=marker,
                markersize=6,
                zorder=2.5 if contender == "limit" else 2,
            )
        axes.set_title(title)
        axes.set_xlabel("rows in the batch, B")
        axes.set_xscale("log", base=2)
        axes.set_xticks([rows for rows, _ in curves["ours"]])
        axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        axes.tick_params(axis="x", labelsize=8)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter(
            ticker.FuncFormatter(lambda value, _: f"{value:,g}")
        )
        axes.grid(alpha=0.3)
    entries = panels[0].get_legend_handles_labels()
    figure.legend(
        *entries,
        columnspacing=1.5,
        fontsize=9,
        frameon=False,
        loc="lower center",
        ncols=len(entries[0]),
    )
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    # Opaque, so that it can be read on a dark page too.
    figure.savefig(path, dpi=150, facecolor="white")


def _curves(scale):
    """Returns {contender: [(B, value)]} of the time and of the memory."""
    quantities = (("seconds", 1), ("extra_bytes", 1e-6))
    result = [{}, {}]
    for name, results in scale.items():
        for contender, rounds in results.items():
            for curves, (quantity, unit) in zip(result, quantities):
                # The limit is a bound of the time alone.
                if rounds and (contender, quantity) != ("limit", "extra_bytes"):
                    value = median(rounds, quantity) * unit
                    point = (int(name.split("-")[1]), value)
                    curves.setdefault(contender, []).append(point)
    return result


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

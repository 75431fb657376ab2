"""Draws the charts of the pages, for light and for dark pages.

    python docs/pictures/charts.py

The points are read from the tables of the pages, so the two always agree.
"""

import pathlib
import re
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

from in_batch import THEMES  # noqa: E402
from matplotlib import pyplot  # noqa: E402

FOLDER = pathlib.Path(__file__).parent


class Look(NamedTuple):
    """How a line is drawn. The colours are those of Okabe and Ito."""

    label: str
    colour: str
    marker: str


BLUE, LIGHT_BLUE = "#0072B2", "#56B4E9"  # the light one on dark pages
OURS = Look("inbatch_neg", BLUE, "o")
TFRS = Look("TensorFlow Recommenders", "#E69F00", "s")
KERAS_RS = Look("keras-rs", "#009E73", "^")
PLAIN = Look("matmul + sparse cross-entropy", "#CC79A7", "D")
LIMIT = Look("three matrix products", "#888888", ".")
TOWER = Look("plain tower", "#D55E00", "s")
CHUNKED = Look("ChunkedTower, chunks of 256", BLUE, "o")


def table(page, beginning):
    """Returns the cells of the rows of the table whose heading begins so."""
    lines = (FOLDER.parent / page).read_text(encoding="utf-8").splitlines()
    first = next(i for i, x in enumerate(lines) if x.startswith(beginning))
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def number(cell, unit=1.0):
    """Returns the value of a cell, None where nothing was measured."""
    units = {"ms": 1e-3, "s": 1.0, "MB": 1.0}
    match = re.fullmatch(r"([\d.,]+) ?(ms|s|MB)?", cell)
    if match:
        value = float(match[1].replace(",", ""))
        return value * units.get(match[2], unit)
    return None


def points(rows, column, unit=1.0):
    """Returns the (B, value) of a column."""
    found = ((number(row[0]), number(row[column], unit)) for row in rows)
    return [(b, value) for b, value in found if value is not None]


def scale():
    """Returns the panels of time and memory by batch size."""
    rows = table("performance.md", "| B | `inbatch_neg` | TFRS | keras-rs |")
    more = table("appendix-experiments.md", "| B | `inbatch_neg` | the limit")
    return {
        "seconds": {
            OURS: points(rows, 1),
            TFRS: points(rows, 2),
            KERAS_RS: points(rows, 3),
            PLAIN: points(more, 4, 1e-3),
            LIMIT: points(more, 2, 1e-3),
        },
        "extra memory (MB)": {
            OURS: points(rows, 4),
            TFRS: points(rows, 5),
            KERAS_RS: points(rows, 6),
            PLAIN: points(more, 5),
        },
    }


def towers():
    """Returns the panels of memory with plain and with chunked towers."""
    rows = table("beyond-memory.md", "| | B | plain | chunks of 512 |")
    panels = {}
    for row in rows:
        if row[0]:
            panel = panels.setdefault(row[0], {TOWER: [], CHUNKED: []})
        for look, column in ((TOWER, 2), (CHUNKED, 4)):
            panel[look] += points([row[1:]], column - 1)
    return panels


def draw(panels, ticks, ink, blue, **options):
    """Returns a figure with both axes logarithmic, a panel for each title."""
    figure, all_axes = pyplot.subplots(
        1, len(panels), layout="constrained", **options
    )
    for axes, (title, lines) in zip(all_axes, panels.items()):
        for look, values in lines.items():
            axes.plot(
                *zip(*values),
                color=blue if look.colour == BLUE else look.colour,
                label=look.label,
                marker=look.marker,
                markersize=5,
                linestyle="--" if look is LIMIT else "-",
                zorder=2.5 if look is LIMIT else 2,
            )
        axes.set_title(title, size=11)
        axes.set_xlabel("rows in the batch, B")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{rows:,}" for rows in ticks])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.grid(color=ink, alpha=0.2)
    entries = all_axes[0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=2, frameon=False)
    return figure


def main():
    """Draws each chart twice."""
    for end, blue in ((".svg", BLUE), ("_dark.svg", LIGHT_BLUE)):
        ink = THEMES[f"in_batch{end}"].ink
        kinds = ("text.color", "axes.edgecolor", "axes.labelcolor")
        pyplot.rcParams.update(
            {
                "svg.hashsalt": "inbatch_neg",
                "font.family": "DejaVu Sans",
                **dict.fromkeys((*kinds, "xtick.color", "ytick.color"), ink),
            }
        )
        ticks = [1024, 4096, 16384, 65536]
        charts = {
            "scale": draw(scale(), ticks, ink, blue, figsize=(7.2, 4.2)),
            "towers": draw(
                towers(), ticks[:2], ink, blue, figsize=(7.2, 3.2), sharey=True
            ),
        }
        charts["towers"].axes[0].set_ylabel("extra memory (MB)")
        for name, figure in charts.items():
            figure.savefig(
                FOLDER / f"{name}{end}",
                transparent=True,
                metadata={"Date": None},
            )
            pyplot.close(figure)


if __name__ == "__main__":
    main()

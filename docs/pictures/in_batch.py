"""Draws the picture of docs/start.md, for light and for dark pages.

    python docs/pictures/in_batch.py

The cells of the square follow from the pairs below, by the rule of the package:
a negative with the row's item, or of a row with the same user, is masked.
"""

import pathlib
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle  # noqa: E402

FOLDER = pathlib.Path(__file__).parent
PAIRS = [
    ("Ann", "tea"),
    ("Ben", "milk"),
    ("Ann", "cake"),
    ("Cho", "milk"),
    ("Dan", "rice"),
]
# Of the palette of Okabe and Ito, which people with any colour vision tell
# apart. The signs in the cells say the same once more.
BLUE, ORANGE = "#0072B2", "#E69F00"
LEFT, TOP, CELL = 2.55, 4.55, 0.62


class Colours(NamedTuple):
    """What differs between light and dark pages."""

    ink: str
    tower: str
    negative: str


THEMES = {
    "in_batch.svg": Colours(ink="#222222", tower="#dfe3ea", negative="#f1f3f6"),
    "in_batch_dark.svg": Colours(
        ink="#e6e6e6", tower="#3a4050", negative="#2b303c"
    ),
}


def kind(row, column):
    """Returns what the cell of a query and a candidate is."""
    if row == column:
        return "positive"
    same_user = PAIRS[row][0] == PAIRS[column][0]
    same_item = PAIRS[row][1] == PAIRS[column][1]
    return "masked" if same_user or same_item else "negative"


def cell(axes, x, y, what, colours):
    """Draws a cell with its sign; (x, y) is its lower left corner."""
    face = {"positive": BLUE, "masked": ORANGE, "negative": colours.negative}
    sign = {"positive": ("+", "white"), "masked": ("×", "black")}
    axes.add_patch(
        Rectangle(
            (x, y), CELL, CELL, fc=face[what], ec=colours.ink, lw=0.8, zorder=2
        )
    )
    text, colour = sign.get(what, ("−", colours.ink))
    axes.text(
        *(x + CELL / 2, y + CELL / 2, text),
        **{"color": colour, "fontsize": 17, "zorder": 3},
        **{"ha": "center", "va": "center_baseline"},
    )


def arrow(axes, start, end, colours):
    """Draws an arrow."""
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "lw": 1}
    axes.add_patch(FancyArrowPatch(start, end, color=colours.ink, **style))


def draw(axes, colours):
    """Draws the pairs, the two towers and the square of their scores."""
    rows = len(PAIRS)
    right, bottom = LEFT + rows * CELL, TOP - rows * CELL
    label = {"color": colours.ink, "fontsize": 13}
    middle = {"ha": "center", "va": "center"}
    tower = {"fc": colours.tower, "ec": colours.ink, "lw": 1}
    # The towers grow narrower towards the vectors.
    axes.add_patch(
        Polygon(
            [(0.95, bottom - 0.1), (0.95, TOP + 0.1)]
            + [(1.95, TOP - 0.15), (1.95, bottom + 0.15)],
            **tower,
        )
    )
    axes.text(1.45, (TOP + bottom) / 2, "query\ntower", **label, **middle)
    axes.add_patch(
        Polygon(
            [(LEFT - 0.1, 6.0), (right + 0.1, 6.0)]
            + [(right - 0.15, 5.15), (LEFT + 0.15, 5.15)],
            **tower,
        )
    )
    axes.text((LEFT + right) / 2, 5.58, "candidate tower", **label, **middle)
    for i, (user, item) in enumerate(PAIRS):
        y = TOP - (i + 0.5) * CELL
        axes.text(0.55, y, user, ha="right", va="center", **label)
        arrow(axes, (0.6, y), (0.93, y), colours)
        arrow(axes, (1.97, y), (LEFT - 0.05, y), colours)
        x = LEFT + (i + 0.5) * CELL
        axes.text(x, 6.5, item, **label, **middle)
        arrow(axes, (x, 6.35), (x, 6.02), colours)
        arrow(axes, (x, 5.13), (x, TOP + 0.05), colours)
        for j in range(rows):
            place = LEFT + j * CELL, TOP - (i + 1) * CELL
            cell(axes, *place, kind(i, j), colours)
    words = (
        ("positive", "the pair that happened: its score rises"),
        ("negative", "a negative: its score falls"),
        ("masked", "masked: the same user, or the same item"),
    )
    for number, (what, text) in enumerate(words):
        y = 0.45 - 0.72 * number
        cell(axes, 0.1, y, what, colours)
        axes.text(0.95, y + CELL / 2, text, va="center", **label)


def main():
    """Draws both pictures."""
    pyplot.rcParams.update(
        {"svg.hashsalt": "inbatch_neg", "font.family": "DejaVu Sans"}
    )
    for name, colours in THEMES.items():
        figure = pyplot.figure(figsize=(6, 7.85))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-0.05, 5.95), ylim=(-1.1, 6.75), aspect="equal")
        axes.axis("off")
        draw(axes, colours)
        figure.savefig(FOLDER / name, transparent=True, metadata={"Date": None})
        pyplot.close(figure)


if __name__ == "__main__":
    main()

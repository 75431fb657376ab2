"""Reads and runs the code of the pages."""

import pathlib
import re

from tests.docs import fences

FOLDER = pathlib.Path(__file__).parents[3] / "docs" / "coming-from"
DATA, BEFORE, AFTER = "The data of both", "Before", "After"


def run(page, *headings):
    """Runs the blocks below these headings in order; returns the names."""
    path = FOLDER / f"{page}.md"
    text = path.read_text(encoding="utf-8")
    names = {"__name__": page}
    for heading in headings:
        section = re.search(
            rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.S | re.M
        )
        if not fences.run(path, names, *section.span(1)):
            raise ValueError(f"{path} has no code below {heading}.")
    return names


def losses(page, heading):
    """Trains the model of the page; returns the losses of its steps."""
    return [float(loss) for loss in run(page, DATA, heading)["losses"]]


def stated_losses(page):
    """Returns the losses that the page gives."""
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    (numbers,) = re.findall(
        r"^The losses of the three steps(?:, per row,)? are (.*) in both\.$",
        text,
        re.M,
    )
    return [float(number) for number in re.findall(r"\d+\.\d+", numbers)]

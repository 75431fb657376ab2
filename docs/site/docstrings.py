"""Lets mkdocstrings read the docstrings as they are written here.

They are read in `help()` first: "Example:" stands alone, with its `>>>` lines
below it at the same indentation, and "References:" and "Differs from:" begin
paragraphs. A page of docs/ is named by its path.
"""

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Examples?:\n((?:(?!\n\n)(?:.|\n))*)", re.M)
_PAGE = re.compile(r"`?\bdocs/([\w-]+\.md)\b`?")
_PARAGRAPH = re.compile(r"^(References|Differs from): ", re.M)


def to_google(text: str) -> str:
    """Returns the docstring in the form that griffe parses."""

    def example(match: re.Match[str]) -> str:
        if not match[1].startswith(">>>"):
            return match[0]
        lines = match[1].rstrip("\n").split("\n")
        return "Examples:\n" + "\n".join(f"    {line}" for line in lines)

    text = _PAGE.sub(r"[\1](../\1)", _EXAMPLE.sub(example, text))
    return _PARAGRAPH.sub(r"**\1:** ", text)


class Docstrings(griffe.Extension):
    """Rewrites each docstring when griffe finds it."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_google(obj.docstring.value)

"""Lets mkdocstrings read the docstrings as they are written here.

They are read in `help()` first: "Example:" stands alone, with its `>>>` lines
below it at the same indentation, and "References:" and "Differs from:" begin
paragraphs. A page of docs/ is named by its path.

A class or function ends with a link to its source, and what a class does when
it is called stands before its properties.
"""

import pathlib
import re
from typing import Any

import griffe
import tomllib

_PROJECT = pathlib.Path(__file__).parents[2] / "pyproject.toml"
_URLS = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]["urls"]

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
        if obj.docstring is None:
            return
        text = to_google(obj.docstring.value)
        if (obj.is_class or obj.is_function) and obj.parent.is_module:
            file = obj.relative_package_filepath
            url = f"{_URLS['Source']}/blob/main/{file}#L{obj.lineno}"
            text += f"\n\n**Source:** [{file}]({url})"
        obj.docstring.value = text

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Puts `call` first: members of a public name stand in this order."""
        if "call" in cls.members:
            cls.members = {"call": cls.members["call"], **cls.members}

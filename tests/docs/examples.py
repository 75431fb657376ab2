"""Imports the example scripts, which are no part of a package."""

import importlib
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "examples"


def load(name):
    """Returns the module of an example, which may import its neighbours."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))

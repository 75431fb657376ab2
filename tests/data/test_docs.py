"""The examples of docs/data.md run, and its table names what is tested."""

import importlib.metadata
import pathlib
import re

import pytest

from tests.docs import fences

pytestmark = pytest.mark.once

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_examples():
    assert fences.run(PAGE, {"__name__": "example"}) >= 10


def test_versions():
    text = PAGE.read_text(encoding="utf-8")
    table = re.findall(r"^\|[^|]*\| (\w+) ([\d.]+) \|", text, re.MULTILINE)
    assert {name.lower() for name, _ in table} == {
        "numpy",
        "pandas",
        "polars",
        "pyarrow",
        "datasets",
        "tensorflow",
        "torch",
        "grain",
        "keras",
    }
    for name, version in table:
        installed = importlib.metadata.version(name).split("+")[0]
        # What is tested is no older than what the table says.
        assert _numbers(installed) >= _numbers(version), name


def _numbers(version):
    return [int(number) for number in re.findall(r"\d+", version)][:3]

"""The examples of docs/data.md run, and its table names what is tested."""

import importlib.metadata
import pathlib
import re

import pytest

TEXT = (pathlib.Path(__file__).parents[2] / "docs/data.md").read_text("utf-8")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_examples():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) >= 10
    names = {"__name__": "example"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/data.md, block {number}", "exec"), names)


def test_versions():
    table = re.findall(r"^\|[^|]*\| (\w+) ([\d.]+) \|", TEXT, re.MULTILINE)
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

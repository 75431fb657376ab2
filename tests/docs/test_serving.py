"""Runs the code of docs/serving.md, in its order, in an empty folder."""

import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "serving.md"


# The oldest Keras has no keras-rs that fits it.
@pytest.mark.keras_at_least("3.6")
def test_code_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    names = {"__name__": "serving"}
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.S | re.M))
    assert len(blocks) >= 9
    for block in blocks:
        # So that an error names the line of the page.
        line = text[: block.start(1)].count("\n")
        code = compile("\n" * line + block.group(1), str(PAGE), "exec")
        exec(code, names)
    assert {"served", "graph", "retrieve"} <= names.keys()

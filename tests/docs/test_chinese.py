"""The Chinese pages are in step with the English ones."""

import pathlib
import re

import pytest

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[2]
FENCE = re.compile(r"^```.*?^```$", re.S | re.M)


@pytest.mark.parametrize("name", ["README", "docs/start"])
def test_headings_and_code_are_those_of_the_english_page(name):
    english, chinese = (
        (ROOT / f"{name}{end}").read_text(encoding="utf-8")
        for end in (".md", ".zh-CN.md")
    )
    assert FENCE.findall(english) == FENCE.findall(chinese) != []
    levels, rows, pictures = (
        [
            re.findall(pattern, FENCE.sub("", page), re.M)
            for page in (english, chinese)
        ]
        for pattern in (r"^#+(?= )", r"^\|(?=.)", r"^!\[.*?\](\(.*\))$")
    )
    # As many headings, of the same level, and as many rows in tables.
    for ours, theirs in (levels, rows, pictures):
        assert ours == theirs


@pytest.mark.parametrize("name", ["README", "docs/start"])
def test_numbers_of_the_tables_are_those_of_the_english_page(name):
    def numbers(end):
        text = (ROOT / f"{name}{end}").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.startswith("|")]
        return [sorted(re.findall(r"\d[\d,.]*\d|\d", x)) for x in lines]

    assert numbers(".md") == numbers(".zh-CN.md")

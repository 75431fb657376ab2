"""The count of code lines, by hand-made modules."""

import pytest

from tests.code_lines import code_lines

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('"""Docstring.\n\nMore.\n"""\n', 0),
        ("# comment\n\nx = 1  # comment\n", 1),
        ("x = (\n    1,\n    2,\n)\n", 4),
        ('def f():\n    """Docstring."""\n\n    return 1\n', 2),
        ('x = """a\n\nb"""\n', 3),
    ],
)
def test_code_lines(text, count):
    assert code_lines(text) == count

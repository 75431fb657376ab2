"""Runs the fenced Python of a page."""

import re

_FENCE = re.compile(r"^```python\n(.*?)^```$", re.S | re.M)


def run(path, names, start=0, end=None):
    """Runs the blocks of a page in order.

    Args:
        path: `pathlib.Path` of the page.
        names: Dict of the names that the blocks share, which they change.
        start: Place in the text where the first block may begin.
        end: Place where the last one must end, None for the end of the page.

    Returns:
        The number of blocks.
    """
    text = path.read_text(encoding="utf-8")
    end = len(text) if end is None else end
    blocks = list(_FENCE.finditer(text, start, end))
    for block in blocks:
        # So that an error names the line of the page.
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(path), "exec"), names)
    return len(blocks)

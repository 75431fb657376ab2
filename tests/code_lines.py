"""Counts the lines of code of the package, by folder.

    python -m tests.code_lines

A line of code has a token that is neither a comment nor part of a docstring.
"""

import ast
import collections
import io
import pathlib
import tokenize

PACKAGE = pathlib.Path(__file__).parents[1] / "inbatch_neg"

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(text):
    """Returns how many lines of a module hold code."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(
            node, (ast.Module, ast.ClassDef, ast.FunctionDef)
        ) and ast.get_docstring(node, clean=False):
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


def main():
    """Prints the counts."""
    folders = collections.Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        folder = path.parent.relative_to(PACKAGE.parent)
        folders[str(folder)] += code_lines(path.read_text("utf-8"))
    for folder, count in sorted(folders.items()):
        print(f"{count:6,}  {folder}")
    print(f"{sum(folders.values()):6,}  together")


if __name__ == "__main__":
    main()

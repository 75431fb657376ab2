"""Finds the error messages and warnings of the package in its source."""

import ast
import pathlib
import re

PACKAGE = pathlib.Path(__file__).parents[2] / "inbatch_neg"
HOLE = "…"
# How much of a message tells it from the others.
_ENOUGH = 30


def messages(package=PACKAGE):
    """Returns {beginning of a message: where it is raised}.

    A beginning is the first sentence, or more where that is short. What is
    filled in when the error is raised stands as "…".
    """
    trees = {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(package.rglob("*.py"))
    }
    functions = {
        node.name: node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    found = {}
    for path, tree in trees.items():
        for function in ast.walk(tree):
            if not isinstance(function, (ast.FunctionDef, ast.Module)):
                continue
            for line, message in _said(function):
                for text in _texts(message, function, functions):
                    where = f"{path.relative_to(package.parent)}:{line}"
                    found[beginning(text)] = where
    return found


def beginning(text):
    """Returns the first sentence of a message, or more if it is short."""
    text = " ".join(text.split())
    text = re.split(r" ?Received:", text)[0]
    for end in re.finditer(r"[.:](?= |$)", text):
        if end.end() >= _ENOUGH:
            return text[: end.end()]
    return text


def _said(function):
    """Yields (line, message) of what a function itself raises or warns of."""
    for node in _own_nodes(function):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            if node.exc.args:
                yield node.lineno, node.exc.args[0]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("warning", "warn")
        ):
            yield node.lineno, node.args[0]


def _own_nodes(function):
    """Yields the nodes of a function, without those of functions in it."""
    todo = list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.FunctionDef):
            yield node
            todo += ast.iter_child_nodes(node)


def _texts(node, function, functions):
    """Returns what an expression may say, with holes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [re.sub(r"%[srd]", HOLE, node.value)]
    if isinstance(node, ast.JoinedStr):
        # What is filled in at the start is the message itself.
        first, *rest = node.values
        ends = "".join(
            one.value if isinstance(one, ast.Constant) else HOLE for one in rest
        )
        if isinstance(first, ast.FormattedValue):
            first = first.value
        return [start + ends for start in _texts(first, function, functions)]
    if isinstance(node, ast.BinOp):
        ends = _texts(node.right, function, functions)
        starts = _texts(node.left, function, functions)
        return [start + end for start in starts for end in ends]
    if isinstance(node, ast.Name):
        values = [
            one.value
            for one in _own_nodes(function)
            if isinstance(one, ast.Assign)
            and any(ast.unparse(target) == node.id for target in one.targets)
        ]
        return [
            text
            for value in values
            for text in _texts(value, function, functions)
        ] or [HOLE]
    if isinstance(node, ast.Call):
        called = functions.get(ast.unparse(node.func).split(".")[-1])
        if called is not None:
            return [
                text
                for one in _own_nodes(called)
                if isinstance(one, ast.Return) and one.value is not None
                for text in _texts(one.value, called, functions)
            ]
    return [HOLE]


if __name__ == "__main__":
    for start, place in messages().items():
        print(f"{place}  {start}")

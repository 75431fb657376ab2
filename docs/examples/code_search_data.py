"""Python functions with their descriptions, from the source on this machine.

`ast` reads the source of the standard library and the installed packages.
Nothing is downloaded, and none of their code is run. Each package in turn gives
one file, so that no large package fills the list. What is left out:

- tests, and copies of other packages ("vendored" ones): by the names of their
  files and folders;
- functions without a description of some words, or without a body;
- near-duplicates: functions whose description, or whose code, shares most of
  its word pairs with that of an earlier function.

Each package, or module outside of a package, is in one part of the split only.
"""

import ast
import collections
import itertools
import pathlib
import re
import sysconfig
import warnings
import zlib
from typing import NamedTuple

import numpy as np

LINES = 8  # of the body, that are read
LEAST_WORDS = 4  # of a description, and of the code
MOST_BYTES = 400_000  # of a file; larger ones are tables or generated
SIMILAR = 0.7  # share of common word pairs that makes a near-duplicate
PAD = 0  # the number in place of a word that is not there
BUCKETS = 4096  # numbers of the rare words

LEFT_OUT = re.compile(r"(conf)?tests?|testing|idle_test|_?vendor(ed)?|extern")
TEST_FILE = re.compile(r"(test_.*|.*_test|conftest)\.py")
# Parts of an identifier: HTTPServer -> http server, max_2d -> max 2 d.
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class Function(NamedTuple):
    """A function, by what it should do and by what it does."""

    description: str  # first paragraph of the docstring
    code: str  # name, signature and first lines of the body
    place: str  # module:line
    package: str  # the top-level package or module


class Split(NamedTuple):
    """Functions to train on, to tune by, and to judge by."""

    train: list
    validation: list
    test: list


# Reading.


def default_folders():
    """Returns the folders of the standard library and of the packages."""
    names = ("stdlib", "purelib", "platlib")
    return list(dict.fromkeys(map(sysconfig.get_path, names)))


def read_functions(folders, limit, seed=0, advance=lambda: None):
    """Returns functions without near-duplicates.

    Args:
        folders: Their packages and modules are read.
        limit: The most functions that are returned.
        seed: Of the order of the packages' files.
        advance: Called for each function that is found.
    """
    descriptions, codes = NearDuplicates(), NearDuplicates()
    found = []
    for file in _taking_turns(_packages(folders), seed):
        for function in _functions(*file):
            description = words(function.description)
            code = words(function.code)
            if min(len(description), len(code)) < LEAST_WORDS:
                continue
            # Both are remembered, whichever of them is known already.
            if not (descriptions.add(description) & codes.add(code)):
                continue
            found.append(function)
            advance()
            if len(found) == limit:
                return found
    return found


def _packages(folders):
    """Returns {package: list of (path, module)} without the tests."""
    packages = collections.defaultdict(list)
    for folder in map(pathlib.Path, folders):
        for path in sorted(folder.rglob("*.py")):
            *parents, name = path.relative_to(folder).parts
            # The folder of the packages may be one in the standard library's.
            if "site-packages" in parents or TEST_FILE.fullmatch(name):
                continue
            parts = [*parents, name.removesuffix(".py")]
            if any(map(LEFT_OUT.fullmatch, parts)):
                continue
            if len(parts) > 1 and parts[-1] == "__init__":
                parts.pop()
            packages[parts[0]].append((path, ".".join(parts)))
    return packages


def _taking_turns(packages, seed):
    """Yields (path, module) of one package after the other."""
    random = np.random.default_rng(seed)
    shuffled = [
        [files[k] for k in random.permutation(len(files))]
        for _, files in sorted(packages.items())
    ]
    for turn in itertools.zip_longest(*shuffled):
        yield from filter(None, turn)


def _functions(path, module):
    """Yields the `Function`s of a file; none if it cannot be read."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in its strings
            tree = ast.parse(source)
    # Installed files may be in other versions of Python, or not be Python.
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    lines = source.split("\n")
    for name, node in _definitions(tree):
        docstring = ast.get_docstring(node)
        body = node.body[1:]
        if not docstring or not any(map(_does_something, body)):
            continue
        first, last = body[0].lineno - 1, body[-1].end_lineno
        code = [
            f"{name}({ast.unparse(node.args)})",
            *lines[first : min(last, first + LINES)],
        ]
        yield Function(
            description=" ".join(docstring.split("\n\n")[0].split()),
            code="\n".join(code),
            place=f"{module}:{node.lineno}",
            package=module.split(".")[0],
        )


def _definitions(tree, prefix=""):
    """Yields (name, node) of the functions, as `Class.method`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _definitions(node, f"{prefix}{node.name}.")
        elif not isinstance(node, ast.expr):
            yield from _definitions(node, prefix)  # such as `if` and `try`


def _does_something(statement):
    """Returns whether a statement is more than `pass`, `...` or a string."""
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)
    return not isinstance(statement, ast.Pass)


# Words.


def words(text):
    """Returns the words of a text, identifiers split, in lower case."""
    return [word.lower() for word in WORD.findall(text)]


class Vocabulary:
    """Numbers of the words that occur in several of the texts.

    The others, such as the names that only a held-out package has, share the
    first numbers by their hash: a rare word is still the same as itself.
    """

    def __init__(self, known):
        self.known = list(known)
        self.number = {w: i for i, w in enumerate(self.known, 1 + BUCKETS)}

    @classmethod
    def of(cls, functions, size):
        """Returns that of at most `size` words, the most frequent."""
        counts = collections.Counter()
        for function in functions:
            counts.update({*words(function.description)})
            counts.update({*words(function.code)})
        return cls(w for w, n in counts.most_common(size) if n > 2)

    def __len__(self):
        return 1 + BUCKETS + len(self.known)

    def encode(self, texts, length):
        """Returns numbers (texts, length), cut or padded with `PAD`."""
        numbers = np.full((len(texts), length), PAD, "int32")
        for row, text in zip(numbers, texts):
            found = [self._number(word) for word in words(text)[:length]]
            row[: len(found)] = found
        return numbers

    def _number(self, word):
        bucket = 1 + zlib.crc32(word.encode()) % BUCKETS
        return self.number.get(word, bucket)


class NearDuplicates:
    """Finds texts that share most of their word pairs with an earlier one.

    "On the resemblance and containment of documents", Broder 1997: of each
    text the smallest values of some hash functions are kept. Texts that agree
    in a band of them are compared.
    """

    BANDS, ROWS, PRIME = 8, 4, 2**31 - 1

    def __init__(self, seed=0):
        random = np.random.default_rng(seed)
        shape = (2, 1, self.BANDS * self.ROWS)
        self.factor, self.summand = random.integers(1, self.PRIME, shape)
        self.texts = []
        self.bands = collections.defaultdict(list)

    def add(self, text):
        """Returns whether a list of words is new; remembers it then."""
        pairs = {zlib.crc32(" ".join(p).encode()) for p in _pairs(text)}
        hashed = np.fromiter(pairs, "int64")[:, None] % self.PRIME
        smallest = (hashed * self.factor + self.summand) % self.PRIME
        keys = [
            (band, row.tobytes())
            for band, row in enumerate(
                smallest.min(axis=0).reshape(self.BANDS, self.ROWS)
            )
        ]
        for number in {n for key in keys for n in self.bands.get(key, ())}:
            other = self.texts[number]
            if len(pairs & other) >= SIMILAR * len(pairs | other):
                return False
        for key in keys:
            self.bands[key].append(len(self.texts))
        self.texts.append(pairs)
        return True


def _pairs(text):
    return itertools.pairwise(text) if len(text) > 1 else [text]


# The split.


def split_by_package(functions, share=0.1, seed=0):
    """Holds out whole packages for test and for validation.

    Each of the two gets packages in random order until it has about `share`
    of the functions. A package of more than a third of that stays in the
    training part, or it would decide the figures alone.

    Args:
        functions: List of `Function`.
        share: Of the functions, for test and for validation each.
        seed: Of the order of the packages.
    """
    counts = collections.Counter(f.package for f in functions)
    wanted = share * len(functions)
    small = sorted(p for p, n in counts.items() if 3 * n <= wanted)
    order = iter(np.random.default_rng(seed).permutation(small).tolist())
    parts = {}
    for part in ("test", "validation"):
        held = 0
        while held < wanted and (package := next(order, None)) is not None:
            parts[package] = part
            held += counts[package]
    split = Split([], [], [])
    for function in functions:
        part = parts.get(function.package, "train")
        getattr(split, part).append(function)
    if not all(split):
        raise ValueError(
            "Functions of more packages are needed to hold some out: found "
            f"{len(functions)} of {len(counts)}."
        )
    return split

"""The code search example, on small packages that the tests write."""

import argparse
import itertools
import re

import keras
import numpy as np
import pytest

from tests.docs import examples

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def data():
    return examples.load("code_search_data")


@pytest.fixture(scope="module")
def code_search():
    return examples.load("code_search")


def write(folder, files):
    """Writes {path: source} below a folder."""
    for path, source in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(source, encoding="utf-8")


def read(data, folder, limit=100, **options):
    return data.read_functions([folder], limit, **options)


STACK = '''
"""A module."""

LIMIT = 3


class Stack:
    """A class."""

    def push(self, item: int, *, twice=False) -> None:
        """Put an item
        on top of the others.

        Raises a ValueError for another item.
        """
        # Keep the order.
        self.items.append(item)

    async def pop(self):
        "Take the topmost item away."
        return self.items.pop()


if LIMIT:
    try:
        def largest(stack):
            """Return the largest of all items."""
            first = 1
            second = 2
            third = 3
            fourth = 4
            fifth = 5
            sixth = 6
            seventh = 7
            eighth = 8
            ninth = 9
    except NameError:
        pass
'''


def test_a_function_is_its_description_and_its_code_without_it(data, tmp_path):
    write(tmp_path, {"stack.py": STACK, "deep/__init__.py": STACK[:-1]})
    push, pop, largest = read(data, tmp_path)
    assert push == data.Function(
        description="Put an item on top of the others.",
        code="Stack.push(self, item: int, *, twice=False)\n"
        "        self.items.append(item)",
        place="deep:10",
        package="deep",
    )
    assert pop.description == "Take the topmost item away."
    assert pop.code.startswith("Stack.pop(self)\n")
    assert "eighth" in largest.code and "ninth" not in largest.code
    for function in (push, pop, largest):
        line = int(function.place.split(":")[1])
        name = function.code.split("(")[0].split(".")[-1]
        assert f"def {name}(" in STACK.splitlines()[line - 1]


@pytest.mark.parametrize(
    "function",
    [
        "def f(a, b):\n    return a + b  # no docstring",
        'def f(a, b):\n    """Too short."""\n    return sorted(a + b)',
        'def f(a, b):\n    """Add two numbers to each other."""',
        'def f(a, b):\n    """Add two numbers to each other."""\n    pass',
        'def f(a, b):\n    """Add two numbers to each other."""\n    ...',
        'def f(a, b):\n    """Not Python any more at all."""\n    print a',
        'x = "def f(): pass"',
    ],
)
def test_functions_without_description_or_body_are_left_out(
    data, tmp_path, function
):
    write(tmp_path, {"one.py": function + "\n"})
    assert read(data, tmp_path) == []
    fitting = 'def f(a, b):\n    """Add two numbers to each other."""\n'
    write(tmp_path, {"two.py": fitting + "    return sum(a, b)\n"})
    assert [f.place for f in read(data, tmp_path)] == ["two:1"]


def distinct(number):
    """Returns a function that shares few words with another one."""
    # Digits are words of their own.
    first, second, third = (f"{x}{number}" for x in ("alpha", "beta", "gamma"))
    return (
        f"def {first}({second}):\n"
        f'    """Turns {first} into {second} and {third}."""\n'
        f"    {third} = {second} + {number}\n"
        f"    return {third}\n\n\n"
    )


@pytest.mark.parametrize(
    "path",
    [
        "package/tests/helpers.py",
        "package/test/deep/helpers.py",
        "package/testing/helpers.py",
        "package/tests.py",
        "package/test_helpers.py",
        "package/helpers_test.py",
        "package/conftest.py",
        "package/_vendor/other.py",
        "package/vendored/other.py",
        "test/helpers.py",
        "site-packages/package/helpers.py",
    ],
)
def test_tests_and_copies_of_packages_are_left_out(data, tmp_path, path):
    kept = ["package/contest.py", "package/attest/latest.py", "unittest.py"]
    files = {path: distinct(n) for n, path in enumerate(kept, 11)}
    write(tmp_path, {path: distinct(1), **files})
    places = {f.place for f in read(data, tmp_path)}
    assert places == {
        "package.contest:1",
        "package.attest.latest:1",
        "unittest:1",
    }


def test_large_and_unreadable_files_are_left_out(data, tmp_path):
    write(tmp_path, {"fine.py": distinct(1)})
    write(tmp_path, {"large.py": distinct(2) + "#" * data.MOST_BYTES})
    (tmp_path / "latin.py").write_bytes(b"# \xe4\n" + distinct(3).encode())
    (tmp_path / "null.py").write_bytes(distinct(4).encode() + b"\0")
    assert [f.place for f in read(data, tmp_path)] == ["fine:1"]


SENTENCE = "Read all of the rows that {} of the table holds into one long list"
CODE = """
    found = []
    for {0} in range(10):
        found.append({0})
    return found
"""


def pair(name, description, body):
    return f'def {name}():\n    """{description}."""\n    {body}\n'


def test_near_duplicates_are_left_out(data, tmp_path):
    body = "; ".join(f"call_{x}({x})" for x in ("one", "two", "three", "four"))
    other = "; ".join(f"make_{x}[{x}]" for x in ("red", "blue", "green"))
    files = {
        "a.py": pair("first", SENTENCE.format("part"), body),
        # The same code, but for one word; another description.
        "b.py": pair("second", "Paint the wall in several colours", body),
        # Nearly the same description; another code.
        "c.py": pair("third", SENTENCE.format("half"), other),
        "d.py": pair("fourth", "Sort names by their last letter", "x = y[z]"),
    }
    write(tmp_path, files)
    assert [f.place for f in read(data, tmp_path)] == ["a:1", "d:1"]
    (tmp_path / "a.py").unlink()
    found = [f.place for f in read(data, tmp_path)]
    assert found == ["b:1", "c:1", "d:1"]


def test_near_duplicates_by_their_share_of_word_pairs(data):
    random = np.random.default_rng(0)
    seen = data.NearDuplicates()
    for _ in range(50):
        text = [str(x) for x in random.integers(0, 10**9, 40)]
        assert seen.add(text)
        # One word of 40 touches 2 of 39 pairs: 37 / 41 are shared.
        changed = [*text[:20], "other", *text[21:]]
        assert not seen.add(changed)
        # The second half new: 19 of 59.
        assert seen.add([*text[:20], *reversed(text[20:])])


def test_packages_take_turns(data, tmp_path):
    large = {f"large/m{n}.py": distinct(n) for n in range(20)}
    small = {f"small{n}.py": distinct(n) for n in range(100, 103)}
    write(tmp_path, {**large, **small})
    found = read(data, tmp_path, limit=6)
    packages = [f.package for f in found]
    assert packages == ["large", "small100", "small101", "small102"] + 2 * [
        "large"
    ]
    assert found == read(data, tmp_path, limit=6)
    others = read(data, tmp_path, limit=6, seed=1)
    assert {f.place for f in others} != {f.place for f in found}


def test_words_are_the_parts_of_identifiers(data):
    text = "parseHTTPResponse(max_2d, __init__, XMLParser2) # Don't"
    assert data.words(text) == (
        "parse http response max 2 d init xml parser 2 don t".split()
    )


def test_a_vocabulary_of_the_words_that_occur_in_several_texts(data):
    def function(description, code):
        return data.Function(description, code, "m:1", "m")

    vocabulary = data.Vocabulary.of(
        [
            function("sort the list", "sortList(rows, rows, rows)"),
            function("sort once once once", "sorted(rows)"),
        ],
        size=3,
    )
    # `once` is in one text alone and `list` in two.
    assert vocabulary.known == ["sort"]
    assert len(vocabulary) == 1 + data.BUCKETS + 1
    numbers = vocabulary.encode(["Sort rows", "rows of columns sort", ""], 3)
    assert numbers.dtype == "int32"
    sort, rows = numbers[0, :2]
    assert sort == data.BUCKETS + 1
    # A word that is not in it has one number, too, as long as none collides.
    assert 1 <= rows <= data.BUCKETS and numbers[1, 0] == rows
    assert len({*numbers[1].tolist()}) == 3  # cut before `sort`
    assert sort not in numbers[1]
    assert numbers[0, 2] == 0 and not numbers[2].any()


def test_no_package_is_in_two_parts(data):
    sizes = [200, *range(1, 41)]
    functions = [
        data.Function(f"does {p} {n}", "f()", f"p{p}.m{n}:1", f"p{p}")
        for p, size in enumerate(sizes)
        for n in range(size)
    ]
    split = data.split_by_package(functions, share=0.1)
    parts = [{f.package for f in part} for part in split]
    for one, other in itertools.combinations(parts, 2):
        assert not one & other
    assert sorted(map(tuple, sum(split, []))) == sorted(map(tuple, functions))
    for part in (split.validation, split.test):
        # About a tenth of 1,020, of packages of 34 at most.
        assert 102 <= len(part) < 102 + 34
    assert "p0" in parts[0]
    assert split == data.split_by_package(functions, share=0.1)
    assert split != data.split_by_package(functions, share=0.1, seed=1)


def test_too_few_packages_are_named(data):
    functions = [data.Function("does it", "f()", "p.m:1", "p")] * 9
    with pytest.raises(ValueError, match="more packages.*found 9 of 1"):
        data.split_by_package(functions)


# Words of the descriptions, and what they are in the code.
NOUNS = {"row": "zeile", "column": "spalte", "table": "tafel", "page": "seite"}
VERBS = (
    "read sort count merge split print copy drop move hide show open close "
    "paint lock name pack send fold turn cut join taste wash find hold keep "
    "lift mark push"
).split()


@pytest.fixture
def packages(tmp_path):
    """120 functions in 30 packages, whose nouns tell what belongs together.

    Descriptions and code share no word, so that the nouns must be learned.
    """
    folder = tmp_path / "source"
    for verb in VERBS:
        work = verb[::-1]
        functions = [
            f"def {work}_{noun}({noun}):\n"
            f'    """Will {verb} every {word} here, as the {word} says."""\n'
            f"    return {noun}_{work}er({noun})\n\n\n"
            for word, noun in NOUNS.items()
        ]
        write(folder, {f"{verb}s.py": "".join(functions)})
    return folder


def command(packages, tmp_path, *options):
    return [
        *("--source", str(packages), "--folder", str(tmp_path / "search")),
        *("--plot", str(tmp_path / "mrr.png"), *options),
    ]


def test_the_command_line_trains_compares_and_searches(
    code_search, packages, tmp_path, capsys, monkeypatch
):
    small = ["--epochs", "12", "--batch-sizes", "16", "48"]
    small += ["--learning-rates", "0.01", "--chunk-size", "20"]
    results = code_search.main(command(packages, tmp_path, *small))
    assert list(results) == ["BM25", "B = 16", "B = 48"]
    out = capsys.readouterr().out
    assert "train: 96 functions of 24 packages" in out
    assert "test: 12 functions of 3 packages" in out
    for title, result in results.items():
        assert 0 < result.mrr <= 1
        assert 0 <= result.recall_1 <= result.recall_10 <= 1
        (line,) = (x for x in out.splitlines() if x.startswith(title))
        assert f"{result.mrr:.3f}" in line and f"{result.recall_10:.3f}" in line
        assert len(result.validation) == (0 if title == "BM25" else 12)
    assert [r.steps for r in results.values()] == [0, 72, 24]
    # No word is shared: all of the 12 functions tie.
    assert results["BM25"].mrr == pytest.approx(1 / 12)
    assert results["BM25"].recall_10 == 0
    # By chance it would be 0.26; 3 of the 12 functions have the same noun.
    assert results["B = 16"].mrr > 0.45
    assert results["B = 16"].validation[-1] > 0.45
    picture = tmp_path / "mrr.png"
    assert picture.read_bytes().startswith(b"\x89PNG")

    # The folder answers without another training, and for all functions.
    monkeypatch.setattr(code_search, "train", None)
    question = ["--ask", "Will sort every column here, as column says"]
    assert code_search.main(command(packages, tmp_path, *question)) is None
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 20
    for place, description in zip(answers[::2], answers[1::2]):
        assert re.match(r"-?\d\.\d\d  \w+s:\d+  \w+\(\w+\)$", place)
        assert description.startswith("      Will ")
    # Without a question it asks, until an empty one.
    typed = iter(["sort the column", "fold a page", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    code_search.main(command(packages, tmp_path, "--ask"))
    assert len(capsys.readouterr().out.splitlines()) == 40


def test_the_best_on_the_validation_part_is_kept(
    code_search, data, packages, monkeypatch
):
    validation = {
        (16, 0.1): 0.3,
        (16, 0.2): 0.5,
        (48, 0.1): 0.4,
        (48, 0.2): 0.2,
    }
    tried = []

    def train(parts, num_words, batch_size, learning_rate, options):
        tried.append((batch_size, learning_rate))
        last = validation[tried[-1]]
        test = 1 - last  # in another order than on the validation part
        return tried[-1], code_search.Result(
            *(test, test, test, learning_rate, 1, 1.0, (0.9, last))
        )

    monkeypatch.setattr(code_search, "train", train)
    split = data.split_by_package(data.read_functions([packages], 200))
    options = argparse.Namespace(
        batch_sizes=[16, 48], learning_rates=[0.1, 0.2]
    )
    results, _, towers = code_search.compare(split, options)
    assert tried == list(validation)
    assert towers == (16, 0.2)
    assert results["B = 16"].learning_rate == 0.2
    assert results["B = 48"].learning_rate == 0.1


def test_chunks_change_nothing(code_search):
    """Two towers with one embedding, each in chunks of its own."""
    random = np.random.default_rng(0)
    pairs = {
        "description": random.integers(0, 50, (23, code_search.DESCRIPTION)),
        "code": random.integers(0, 50, (23, code_search.CODE)),
    }
    pairs = {name: ids.astype("int32") for name, ids in pairs.items()}
    losses = []
    for chunk_size in (10, 100):
        keras.utils.set_random_seed(0)
        model, *_ = code_search.build(50, chunk_size)
        # 1 embedding and 17 weights of each tower: no weight is there twice.
        assert len(model.trainable_variables) == 1 + 2 * 17
        losses.append(keras.ops.convert_to_numpy(model(pairs)))
    assert losses[0].shape == (23,) and np.ptp(losses[0]) > 0
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_bm25_counts_ties_against_the_function(code_search, data):
    def function(description, code):
        return data.Function(description, code, "m:1", "m")

    found = code_search.bm25(
        [
            function("open the red door", "red_door"),
            function("shut the blue door", "blue_door"),
            function("nothing of this sort", "red"),  # all scores are 0
            function("say blue", "blue_blue blue"),
        ]
    )
    ranks = np.array([1, 1, 4, 1])
    assert found.mrr == pytest.approx(np.mean(1 / ranks))
    assert (found.recall_1, found.recall_10) == (0.75, 1.0)


def test_a_search_is_the_same_after_loading(
    code_search, data, packages, tmp_path
):
    functions = data.read_functions([packages], 100)
    vocabulary = data.Vocabulary.of(functions, 50)
    keras.utils.set_random_seed(0)
    _, *towers = code_search.build(len(vocabulary), 10)
    search = code_search.Search.over(vocabulary, towers, functions)
    search.save(tmp_path / "deep" / "search")
    loaded = code_search.Search.load(tmp_path / "deep" / "search")
    for question in ("sort every column", "an unknown question"):
        found, expected = loaded(question), search(question)
        assert [list(row[1:]) for row in found] == [
            list(row[1:]) for row in expected
        ]
        scores = [row[0] for row in found]
        assert scores == pytest.approx([row[0] for row in expected])
        assert scores == sorted(scores, reverse=True) and len(scores) == 10

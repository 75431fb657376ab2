"""A measured figure that stands on several pages is the same on each."""

import pathlib
import re

import pytest

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[2]
README, PERFORMANCE = "README.md", "docs/performance.md"
QUALITY, MEMORY = "docs/quality.md", "docs/beyond-memory.md"
TFRS, KERAS_RS = r"^\| TensorFlow, `tfrs", r"^\| TensorFlow, keras-rs"
JAX, TORCH = r"^\| JAX", r"^\| PyTorch, `cross"
SIZE = r"^\| 8,192 \| \d"  # a row of the table by batch size
TIME, RECALL = r"^\| Time on", r"^\| Recall@10"

# Where it stands: (page, the beginning of the line, what is around it). The
# first place is the source, and may have more digits.
FIGURES = {
    "ours, TensorFlow, ms": [
        (PERFORMANCE, TFRS, r"\| (\S+) ms \| \S+ ms"),
        (PERFORMANCE, KERAS_RS, r"\| (\S+) ms \| \S+ ms"),
        (PERFORMANCE, SIZE, r"\| (\S+) ms \|.* ms \|.* ms"),
        (README, f"{TIME} TensorFlow", r"\| (\S+) ms \|"),
    ],
    "TFRS, ms": [
        (PERFORMANCE, TFRS, r"ms \| (\S+) ms"),
        (PERFORMANCE, SIZE, r"ms \| (\S+) ms \|.* ms"),
        (README, f"{TIME} TensorFlow", "(\\S+) ms TensorFlow Recommenders"),
    ],
    "keras-rs, ms": [
        (PERFORMANCE, KERAS_RS, r"ms \| (\S+) ms"),
        (PERFORMANCE, SIZE, r"ms \| \S+ ms \| (\S+) ms"),
        (README, f"{TIME} TensorFlow", "(\\S+) ms keras-rs"),
    ],
    "ours, JAX, ms": [
        (PERFORMANCE, JAX, r"\| (\S+) ms \| \S+ ms"),
        (README, f"{TIME} JAX", r"\| (\S+) ms \|"),
    ],
    "jitted product, ms": [
        (PERFORMANCE, JAX, r"ms \| (\S+) ms"),
        (README, f"{TIME} JAX", "(\\S+) ms jitted"),
    ],
    "ours, PyTorch, ms": [
        (PERFORMANCE, TORCH, r"\| (\S+) ms \| \S+ ms"),
        (README, f"{TIME} PyTorch", r"\| (\S+) ms \|"),
    ],
    "cross_entropy, ms": [
        (PERFORMANCE, TORCH, r"ms \| (\S+) ms"),
        (README, f"{TIME} PyTorch", "(\\S+) ms `cross_entropy`"),
    ],
    "sentence-transformers, ms": [
        (PERFORMANCE, r"^\| PyTorch, sentence-", r"ms \| (\S+) ms"),
        (README, f"{TIME} PyTorch", "(\\S+) ms sentence-transformers"),
    ],
    "ours, TensorFlow, MB": [
        (PERFORMANCE, TFRS, r"(\S+) MB, not"),
        (PERFORMANCE, KERAS_RS, r"(\S+) MB, not"),
        (PERFORMANCE, SIZE, r"ms \| (\S+) MB"),
        (README, r"^\| Memory on", r"\| (\S+) MB \|"),
    ],
    "TFRS, MB": [
        (PERFORMANCE, TFRS, r"not (\S+)"),
        (PERFORMANCE, SIZE, r"MB \| (\S+) MB \| \S+ MB"),
        (README, r"^\| Memory on", "(\\S+) MB TensorFlow Recommenders"),
    ],
    "keras-rs, MB": [
        (PERFORMANCE, KERAS_RS, r"not (\S+)"),
        (PERFORMANCE, SIZE, r"MB \| \S+ MB \| (\S+) MB"),
        (README, r"^\| Memory on", "(\\S+) MB keras-rs"),
    ],
    "131,072 rows, s": [
        (PERFORMANCE, r"^\| 131,072", r"\| (\S+) s"),
        (README, r"^\| Time and memory", r"\| (\S+) s"),
        (MEMORY, "", r"(\d+) s at B = 131,072"),
    ],
    "131,072 rows, MB": [
        (PERFORMANCE, r"^\| 131,072", r"(\S+) MB"),
        (PERFORMANCE, "^Memory grows", r"(\S+) MB"),
        (README, r"^\| Time and memory", r"(\S+) MB"),
        ("docs/several-devices.md", "", r"131,072\s+rows takes (\S+)\s+MB"),
    ],
    "least of ours, MB": [
        (README, "", r"(\d+) to \d+ MB"),
        (MEMORY, "", r"(\d+) to \d+ MB"),
    ],
    "most of ours, MB": [
        (README, "", r"\d+ to (\d+) MB"),
        (MEMORY, "", r"\d+ to (\d+) MB"),
    ],
    "most of the others, GB": [
        (README, "", r"to (\S+) GB at B = 8,192"),
        (MEMORY, "", r"B = 8,192: 0.6 to (\S+) GB"),
    ],
    "recall of the recipe": [
        (QUALITY, r"^\| the recipe", r"\| (\S+) \+-"),
        (README, RECALL, r"(\S+) by id"),
        (README, "^Recall@10", r"Recall@10 (\S+) and"),
        ("docs/more-negatives.md", r"^\| `recipe`", r"\| (\S+) \+-"),
        ("docs/sequences.md", "", r"user ids has (\S+) there"),
        (QUALITY, "", r"user ids \((\S+) above"),
    ],
    "NDCG of the recipe": [
        (QUALITY, r"^\| the recipe", r"\| \S+ \+- \S+ \| (\S+) \+-"),
        (README, "^Recall@10", r"NDCG@10 (\S+) \("),
    ],
    "recall of the history": [
        (QUALITY, r"^\| history of", r"\| (\S+) \+-"),
        (README, RECALL, r"(\S+) with the history"),
        (README, r"^0\.", r"^(\S+) and"),
    ],
    "NDCG of the history": [
        (QUALITY, r"^\| history of", r"\| \S+ \+- \S+ \| (\S+)"),
        (README, r"^0\.", r"^\S+ and (\S+)"),
    ],
    "recall of EASE": [
        (QUALITY, r"^\| EASE \(", r"\| ([\d.]+) \|"),
        (README, RECALL, r"(\S+) EASE"),
    ],
    "recall of the plain softmax": [
        (QUALITY, r"^\| plain", r"\| (\S+) \+-"),
        (README, RECALL, r"(\S+) plain"),
    ],
    "recall of popularity": [
        ("docs/more-negatives.md", r"^\| \(always", r"popularity \| (\S+)"),
        (README, RECALL, r"(\S+) popularity"),
    ],
}


def find(page, beginning, around):
    """Returns the figure at a place, as it is written."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for line in text.splitlines() if beginning else [text]:
        found = re.search(around, line)
        if re.match(beginning, line) and found:
            return found[1].replace(",", "").rstrip(".")
    raise AssertionError(f"{page}: no line {beginning!r} with {around!r}")


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_the_same_on_all_pages(name):
    source, *others = (find(*place) for place in FIGURES[name])
    # What is rounded, is rounded in one way.
    assert len({one for one in others if len(one) == len(others[0])}) <= 1
    for place, shown in zip(FIGURES[name][1:], others, strict=True):
        digits = len(shown.partition(".")[2])
        # Half of the last digit, and what the binary form adds.
        half = 0.5001 * 10**-digits
        assert float(shown) == pytest.approx(float(source), abs=half), place

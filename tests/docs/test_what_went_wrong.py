"""docs/what-went-wrong.md has every message of the package, and no other."""

import pathlib
import re
import textwrap

import numpy as np
import pytest

import inbatch_neg
from tests.docs import messages

pytestmark = pytest.mark.once

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "what-went-wrong.md"


@pytest.fixture(scope="module")
def listed():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```text\n(.*?)^```$", text, re.S | re.M)
    return [line for block in blocks for line in block.splitlines()]


def test_every_message_of_the_source_is_on_the_page(listed):
    found = messages.messages()
    assert len(found) > 100
    missing = {k: v for k, v in found.items() if k not in listed}
    assert not missing


def test_every_message_of_the_page_is_in_the_source(listed):
    assert len(listed) == len(set(listed))
    assert not set(listed) - set(messages.messages())


def test_messages_are_found_in_all_their_forms(tmp_path):
    (tmp_path / "inbatch_neg").mkdir()
    (tmp_path / "inbatch_neg" / "module.py").write_text(
        textwrap.dedent("""
            def plain(x):
                raise ValueError("It is a plain message of one sentence. More.")

            def filled(x):
                raise TypeError(f"`{x}` must be something or other: {x}. More.")

            def named(x):
                rule = f"`{x}` follows a rule that has a name. More."
                if x:
                    raise ValueError(rule + f" Received: {x}")
                raise ValueError(f"{rule} Received: {x}")

            def called(x):
                raise ValueError(_words(x))

            def _words(x):
                if x:
                    return "A function chose the first of its messages. More."
                return "Or it chose the second of its messages. More."

            def short(x):
                raise ValueError("Short. This sentence belongs to it. More.")

            def warned(x):
                logger.warning("Warned of %d things, which are many. More.", x)

            def passed_on(x):
                raise
        """)
    )
    assert sorted(messages.messages(tmp_path / "inbatch_neg")) == sorted(
        [
            "It is a plain message of one sentence.",
            "`…` must be something or other:",
            "`…` follows a rule that has a name.",
            "A function chose the first of its messages.",
            "Or it chose the second of its messages.",
            "Short. This sentence belongs to it.",
            "Warned of … things, which are many.",
        ]
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: inbatch_neg.InBatchNegativeSoftmax(num_negatives=0),
        lambda: inbatch_neg.InBatchNegativeSoftmax(temperature=-1.0),
        lambda: inbatch_neg.InBatchNegativeSoftmax(sampling="softest"),
        lambda: inbatch_neg.InBatchNegativeSoftmax()(
            np.eye(1, 3), np.eye(1, 3)
        ),
        lambda: inbatch_neg.InBatchNegativeSoftmax()(np.eye(3), np.eye(3, 2)),
        lambda: inbatch_neg.full_batches({"x": np.zeros(3)}, 4),
    ],
)
def test_a_message_as_it_is_raised_is_found_on_the_page(call, listed):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    message = str(caught.value)
    patterns = [
        ".*".join(map(re.escape, line.split(messages.HOLE))) for line in listed
    ]
    # Keras puts words of its own before the message of a layer.
    assert any(re.search(pattern, message, re.S) for pattern in patterns)

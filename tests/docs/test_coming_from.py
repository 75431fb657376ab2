"""The pages of docs/coming-from, without the other libraries.

`python -m tests.docs.coming_from` compares with these. Here our side trains
alone, to the losses that the page gives for both.
"""

import pytest

from tests.docs.coming_from import pages

pytestmark = pytest.mark.once

TORCH = ("pytorch-metric-learning", "sentence-transformers")
KERAS = ("deepmatch", "keras-rs", "pasted-code", "tfrs")


def assert_as_stated(page, heading):
    stated = pages.stated_losses(page)
    assert len(stated) == 3 and stated[0] > stated[1] > stated[2]
    assert pages.losses(page, heading) == pytest.approx(stated, abs=1e-4)


@pytest.mark.parametrize("page", KERAS)
def test_after(page):
    assert_as_stated(page, pages.AFTER)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("page", TORCH)
def test_after_in_a_loop_of_pytorch(page):
    assert_as_stated(page, pages.AFTER)


@pytest.mark.backends("tensorflow")
def test_before_of_the_pattern():
    assert_as_stated("pasted-code", pages.BEFORE)


def test_no_page_is_forgotten():
    found = {path.stem for path in pages.FOLDER.glob("*.md")}
    assert found == {"index", *KERAS, *TORCH}
    index = (pages.FOLDER / "index.md").read_text(encoding="utf-8")
    assert all(f"]({page}.md)" in index for page in (*KERAS, *TORCH))

"""The pages of the site: none is missing, and none is left behind."""

import importlib
import inspect
import pathlib
import re

import pytest

import inbatch_neg
from inbatch_neg import ops

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[2]
API = ROOT / "docs" / "api"


def public_names():
    """Returns the public names of the package, as they are written."""
    functions = [
        f"ops.{name}"
        for name, thing in vars(ops).items()
        if inspect.isfunction(thing)
        and thing.__module__ == ops.__name__
        and not name.startswith("_")
    ]
    return sorted({*inbatch_neg.__all__, *functions} - {"ops"})


def test_the_functions_of_ops_are_found():
    assert "ops.in_batch_softmax_loss" in public_names()


def test_every_public_name_has_a_page_of_its_own():
    pages = {path.stem: path.read_text() for path in API.glob("*.md")}
    pages.pop("index")
    assert sorted(pages) == public_names()
    for name, text in pages.items():
        assert text.startswith(f"::: inbatch_neg.{name}\n")


@pytest.mark.parametrize("place", ["mkdocs.yml", "docs/api/index.md"])
def test_every_page_of_the_api_is_linked(place):
    text = (ROOT / place).read_text(encoding="utf-8")
    linked = re.findall(r"(?:api/|\()([\w.]+)\.md\b", text)
    assert sorted(set(linked) - {"index"}) == public_names()
    assert len(linked) == len(set(linked))


@pytest.mark.parametrize("name", public_names())
def test_every_public_member_is_documented(name):
    thing = inbatch_neg
    for part in name.split("."):
        thing = getattr(thing, part)
    assert inspect.getdoc(thing), name
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            documented = inspect.isfunction(value) or isinstance(
                value, (property, classmethod)
            )
            if documented and not member.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{member}"


def test_menu_title_and_file_name_of_a_page_agree():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    entries = re.findall(r"^ +- '?(.*?)'?: ([\w/-]+)\.md$", menu, re.M)
    assert len(entries) > 20
    for name, page in entries:
        path = ROOT / "docs" / f"{page}.md"
        # The others are made from files at the root, or from docstrings.
        if path.is_file() and not page.startswith("api/"):
            title = re.search("^# (.*)$", path.read_text(), re.M)[1].lower()
            # The menu of these has the first words above them.
            assert title in (name.lower(), f"coming from {name}".lower()), page
            words = re.sub(r"\W+", "-", title)
            assert path.stem in words or "coming-from" in page, page


def test_charts_find_their_tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "pictures")
    charts = importlib.import_module("charts")
    for panels in (charts.scale(), charts.towers()):
        assert len(panels) > 1
        for lines in panels.values():
            assert all(len(values) >= 3 for values in lines.values())


def test_citation_and_changelog_have_the_version_of_the_package():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (version,) = re.findall(r"^version: (.*)$", text, re.M)
    (date,) = re.findall(r'^date-released: "(.*)"$', text, re.M)
    assert version == inbatch_neg.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d.*)\] - (.*)$", changes, re.M)
    assert newest.groups() == (version, date)

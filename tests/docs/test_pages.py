"""The code of the documentation runs, page by page, in an empty folder."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tomllib

import inbatch_neg
from tests.docs import fences, tiny_backbone
from tests.helpers import BACKEND, to_numpy, value_and_gradients

pytestmark = pytest.mark.once

DOCS = pathlib.Path(__file__).parents[2] / "docs"
# docs/training.md and docs/serving.md have tests of their own;
# docs/several-devices.md needs several workers: tests/replicas runs its code.
PAGES = (
    "beyond-memory.md",
    "evaluation.md",
    "false-negatives.md",
    "how-do-i.md",
    pytest.param("large-tables.md", marks=pytest.mark.keras_at_least("3.6")),
    "popular-items.md",
    # Its index is not installed beside the oldest Keras.
    pytest.param("several-vectors.md", marks=pytest.mark.keras_at_least("3.6")),
)


def run(page, folder, monkeypatch):
    """Runs the fenced Python of a page in `folder`; returns its names."""
    monkeypatch.chdir(folder)
    names = {"__name__": page}
    assert fences.run(DOCS / page, names)
    return names


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    run(page, tmp_path, monkeypatch)


def weights_of(*layers):
    return [weight for layer in layers for weight in layer.get_weights()]


def test_training_page_is_right(tmp_path, monkeypatch):
    """What docs/training.md promises of its code, by hand."""
    page = run("training.md", tmp_path, monkeypatch)
    rows, stars, weight = (page[name] for name in ("rows", "stars", "weight"))

    # A second task: each loss is the mean of weight x loss.
    model, labels = page["multi_task"], page["labels"]
    everything = inbatch_neg.full_batches(rows, len(stars))
    batch = (rows, labels, page["weights"])
    model = page["RetrievalAndRating"](model.user_tower, model.item_tower)
    model.compile(
        "sgd",
        loss={"retrieval": inbatch_neg.InBatchNegativeLoss(), "rating": "mse"},
        loss_weights={"retrieval": 1.0, "rating": 0.1},
    )
    outputs = model.predict(everything, verbose=0)
    squared = (outputs["rating"][:, 0] - stars) ** 2
    expected = np.mean(weight * outputs["retrieval"])
    expected += 0.1 * np.mean(weight * squared)
    labelled = inbatch_neg.full_batches(batch, len(stars))
    found = model.evaluate(labelled, verbose=0, return_dict=True)["loss"]
    assert found == pytest.approx(expected, rel=1e-5)

    # Earlier weights: bit by bit in the towers of the new model.
    earlier = page["earlier"]
    towers = [page["tower"](page[name]) for name in ("USERS", "ITEMS")]
    page["plain_model"](*towers).load_weights("plain.weights.h5")
    loaded = weights_of(*towers)
    assert len(loaded) == 2
    for old, new in zip(weights_of(earlier), loaded, strict=True):
        np.testing.assert_array_equal(old, new)

    # Rows of zeros: a finite gradient, and unit length elsewhere.
    vectors = np.array([[0.0, 0.0], [3.0, 4.0]], "float32")
    value, gradients = value_and_gradients(
        page["SafeUnitNormalization"](), {"x": vectors}
    )
    np.testing.assert_allclose(value, [[0, 0], [0.6, 0.8]], atol=1e-6)
    assert np.all(np.isfinite(gradients["x"]))


def test_hard_negatives_that_a_page_finds(tmp_path, monkeypatch):
    """They are no positives, and score below the share of the positive."""
    page = run("more-negatives.md", tmp_path, monkeypatch)
    names = ("user_id", "item_id", "hard_id", "hard_mask", "user_tower")
    user, item, hard, mask, user_tower = (page[name] for name in names)
    assert hard.shape == mask.shape == (len(user), page["K"])
    assert mask.any() and not mask.all()
    unit = [
        tower.get_weights()[0]
        / np.linalg.norm(tower.get_weights()[0], axis=1, keepdims=True)
        for tower in (user_tower, page["item_tower"])
    ]
    table = unit[0] @ unit[1].T
    for row, (one, positive) in enumerate(zip(user, item)):
        scores = table[one].copy()
        scores[page["liked"][one]] = -np.inf
        listed = np.argsort(-scores)[page["FIRST"] : page["LAST"]]
        listed = listed[scores[listed] < 0.95 * table[one, positive]]
        found = hard[row][mask[row]]
        np.testing.assert_array_equal(found, listed[: page["K"]])


def test_losses_at_several_widths(tmp_path, monkeypatch):
    """The sum of docs/text-towers.md is that of separate losses."""
    pytest.importorskip("tokenizers")
    # In the place of the pretrained encoder, which the page loads.
    tiny_backbone.install(monkeypatch)
    weights = tmp_path / "all-MiniLM-L6-v2"
    weights.mkdir()
    words = "cat dog owl fox hen bee ant elk where is the a sits here".split()
    tiny_backbone.write_tokenizer(weights / "tokenizer.json", words)
    page = run("text-towers.md", tmp_path, monkeypatch)
    pairs = {name: page["pairs"][name][:300] for name in ("query", "document")}
    found = to_numpy(page["short"](pairs))
    assert page["recall"].keys() == set(page["WIDTHS"])
    towers = (page["query_tower"], page["document_tower"])
    vectors = [
        to_numpy(tower(pairs[name])).astype("float64")
        for tower, name in zip(towers, pairs)
    ]
    softmax = inbatch_neg.InBatchNegativeSoftmax(
        temperature=0.05, symmetric=True, dtype="float64"
    )
    exact, expected = 0.0, 0.0
    for width in page["WIDTHS"]:
        one, other = (
            prefix / np.linalg.norm(prefix, axis=1, keepdims=True)
            for prefix in (whole[:, :width] for whole in vectors)
        )
        exact = exact + to_numpy(softmax(one, other))
        scores = one @ other.T / 0.05
        for table in (scores, scores.T):
            positive = np.diagonal(table)[:, None]
            expected = expected + 0.5 * np.log(np.exp(table - positive).sum(1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    if BACKEND != "jax":  # which has no 64 bits unless it is told otherwise
        np.testing.assert_allclose(exact, expected, rtol=1e-7)


def test_sequences_page_is_right(tmp_path, monkeypatch):
    """The losses over the catalogue are those of the full softmax."""
    page = run("sequences.md", tmp_path, monkeypatch)
    item = page["rows"]["item"][:32].reshape(-1)
    query, candidate = (
        keras.ops.convert_to_numpy(page["batch"][name])
        for name in ("query", "candidate")
    )
    scores = query @ candidate[-page["ITEMS"] :].T / 0.2
    total = np.log(np.exp(scores).sum(axis=1))
    expected = (total - scores[np.arange(len(item)), item - 1]) * (item > 0)
    expected *= len(item) / np.sum(item > 0)
    losses = keras.ops.convert_to_numpy(page["losses"])
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-5)
    assert 0 <= page["figures"]["recall@10"] <= 1
    # Each training item but the first of a user is a positive once.
    assert (page["rows"]["item"] > 0).sum() == sum(
        len(items) - 1 for items in page["train"]
    )


def test_start_page_gives_its_numbers(tmp_path, monkeypatch, capsys):
    page = run("start.md", tmp_path, monkeypatch)
    loss, recall = (page["history"][name] for name in ("loss", "val_recall@10"))
    assert len(loss) == 10 and len(capsys.readouterr().out.splitlines()) == 3
    # About log 1,024 at first. In the end, the row's item cannot be told from
    # the 1 in 20 of its kind.
    assert loss[0] == pytest.approx(np.log(1024), abs=0.2)
    assert loss[-1] == pytest.approx(np.log(1024 / 20), abs=0.1)
    # Ten are shown, of the 14 that remain.
    assert recall[-1] == pytest.approx(10 / 14, abs=0.03)
    assert page["kind"][0] == page["ids"][0][0] % page["KINDS"]


PROJECT = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())
OURS = PROJECT["project"]["urls"]["Source"] + "/blob/"


def headings(path):
    """Returns the anchors of a page, as the usual hosts make them."""
    found = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in found
    }


@pytest.mark.parametrize(
    "path",
    [
        *sorted(DOCS.parent.glob("README*.md")),
        DOCS.parent / "CHANGELOG.md",
        DOCS.parent / "CONTRIBUTING.md",
        *sorted(DOCS.rglob("*.md")),
    ],
    ids=lambda path: path.relative_to(DOCS.parent).as_posix(),
)
def test_links_lead_somewhere(path):
    for link in re.findall(
        r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")
    ):
        place, _, anchor = link.partition("#")
        # So that the links lead to the same version, in a checkout, too.
        assert OURS not in place, link
        if place.startswith("https://"):
            continue
        target = path.parent / place if place else path
        assert target.exists(), link
        if target.suffix == ".svg":
            # For light or for dark pages, as the site and GitHub read it.
            assert re.fullmatch("gh-(light|dark)-mode-only", anchor), link
            continue
        assert not anchor or anchor in headings(target), link


@pytest.mark.parametrize("folder", ["inbatch_neg", "tests", "docs/examples"])
def test_pages_that_code_and_messages_name_are_there(folder):
    for path in sorted((DOCS.parent / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for page in re.findall(r"(?<![\w/])docs/[\w/.-]*\w\.(?:md|py)\b", text):
            assert (DOCS.parent / page).is_file(), f"{path}: {page}"


def test_readme_of_the_package_index():
    """An index shows the README alone, without what is beside it."""
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    for one in hook["substitutions"]:
        text = re.sub(one["pattern"], one["replacement"], text)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len([link for link in links if link.startswith(OURS)]) > 20
    for link in links:
        assert link.startswith(("https://", "#")), link
        if link.startswith(OURS):
            place = re.sub(r"[#?].*", "", link.removeprefix(f"{OURS}main/"))
            assert (DOCS.parent / place).exists(), link

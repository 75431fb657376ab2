"""The README's example: what it prints, and the columns that it reads."""

import contextlib
import io
import pathlib
import re

import keras
import numpy as np
import pytest

import inbatch_neg
from tests import oracle

README = pathlib.Path(__file__).parents[2] / "README.md"
ROWS = 64


TEXT = README.read_text(encoding="utf-8")
CODE = re.search(r"^```python\n(.*?)^```$", TEXT, re.S | re.M)[1]


@pytest.fixture(scope="module")
def readme():
    """Returns the names that the README's example defines, and its output."""
    names, output = {}, io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(CODE, names)
    return {**names, "output": output.getvalue()}


def test_prints_the_recall_that_the_readme_shows(readme):
    (shown,) = re.findall(r"^```text\n(.*?)^```$", TEXT, re.S | re.M)
    number = re.compile(r"0\.\d+")
    assert number.split(readme["output"]) == number.split(shown)
    (recall, chance), (ours, theirs) = (
        map(float, number.findall(text)) for text in (readme["output"], shown)
    )
    assert recall == pytest.approx(ours, abs=0.04) and chance == theirs
    # On the first screen, and short.
    assert TEXT.index(CODE) < TEXT.index("\n## ")
    assert len([line for line in CODE.splitlines() if line]) <= 30


def loss_by_hand(model, rows):
    """Returns the mean loss of these rows, from the weights of the towers."""
    user, item = (
        np.asarray(keras.ops.convert_to_numpy(tower(rows[name])), "float64")
        for name, tower in (
            ("user", model.user_tower),
            ("item", model.item_tower),
        )
    )
    losses, _ = oracle.softmax_loss(
        user,
        item,
        temperature=0.2,
        candidate_ids=rows["item"],
        query_ids=rows["user"],
        candidate_sampling_probability=rows["probability"],
    )
    return losses.mean()


@pytest.mark.parametrize("further", [(), ("age", "month", "zip")])
def test_further_columns_change_nothing(readme, further):
    # Keras fills a functional model's inputs in the order of the sorted names
    # of the data: "age" sorts before "item", "month" in between, "zip" last.
    rows = {name: column[:ROWS] for name, column in readme["pairs"].items()}
    data = {**rows, **{name: np.full(ROWS, 7) for name in further}}
    batches = inbatch_neg.full_batches(data, ROWS)
    model = readme["TwoTower"]()
    model.compile("sgd", loss=inbatch_neg.InBatchNegativeLoss())
    expected = loss_by_hand(model, rows)
    evaluated = model.evaluate(batches, verbose=0)
    # The loss of the first and only step is that of the weights before it.
    first = model.fit(batches, verbose=0, shuffle=False).history["loss"][0]
    assert evaluated == pytest.approx(expected, rel=1e-5)
    assert first == pytest.approx(expected, rel=1e-5)
    assert model.evaluate(batches, verbose=0) < evaluated

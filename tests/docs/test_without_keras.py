"""docs/without-keras.md: each section runs on its backend, and trains."""

import pathlib

import pytest

from tests.docs import fences
from tests.helpers import BACKEND

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "without-keras.md"


@pytest.mark.backends("torch", "jax")
def test_a_plain_loop_trains():
    text = PAGE.read_text(encoding="utf-8")
    places = [text.index(f"\n## {name}\n") for name in ("PyTorch", "JAX")]
    start, end = {"torch": places, "jax": [places[1], len(text)]}[BACKEND]
    names = {}
    assert fences.run(PAGE, names, start, end) == 1
    assert names["losses"][-1] < names["losses"][0] - 0.5


@pytest.mark.backends("jax")
def test_vmap_on_jax():
    import jax
    import numpy as np

    import inbatch_neg

    rows = np.random.default_rng(0).normal(size=(2, 6, 3)).astype("float32")
    found = jax.vmap(inbatch_neg.ops.in_batch_softmax_loss)(rows, rows)
    expected = [inbatch_neg.ops.in_batch_softmax_loss(x, x) for x in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-5)

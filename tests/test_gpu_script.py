"""The script that measures on a GPU, dry: tiny, on the CPU."""

import json

import numpy as np
import pytest

from tests import oracle
from tests.benchmarks import gpu


@pytest.mark.backends("torch")
def test_the_script_runs_dry(tmp_path):
    assert gpu.main(["--dry", "--folder", str(tmp_path)]) == 0
    (saved,) = tmp_path.glob("*.json")
    results = json.loads(saved.read_text())["results"]
    assert list(results) == ["exact", "chunks", "table", "encoder"]
    assert not any(
        "error" in one for found in results.values() for one in found
    )
    assert all(one["seconds"] > 0 for one in results["table"])
    (table,) = tmp_path.glob("*.md")
    assert "| linear_cross_entropy |" in table.read_text()


@pytest.mark.once
@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3)])
def test_its_truth_is_that_of_the_oracle(shape):
    random = np.random.default_rng(0)
    query = random.normal(size=shape)
    candidate = random.normal(size=(8, 3))
    ids = np.array([0, 1, 0, 2, 3, 4, 1, 5])
    probability = random.uniform(0.1, 1.0, 8)
    loss, d_query, d_candidate = gpu.reference(
        query, candidate, ids, probability
    )
    losses, gradients = oracle.softmax_loss(
        query,
        candidate,
        candidate_ids=ids,
        candidate_sampling_probability=probability,
        upstream=np.full(6, 1 / 6),
    )
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-12)
    np.testing.assert_allclose(d_query, gradients["query"], atol=1e-12)
    np.testing.assert_allclose(d_candidate, gradients["candidate"], atol=1e-12)


@pytest.mark.once
def test_an_error_or_a_case_that_fails_is_not_exact():
    right = {"limit": 1e-5, "loss": 1e-6, "query": 1e-6, "candidate": 1e-6}
    assert gpu.is_exact([right])
    assert not gpu.is_exact([right, dict(right, candidate=1e-4)])
    assert not gpu.is_exact([right, {"limit": 1e-5, "error": "failed"}])
    assert not gpu.is_exact([dict(right, loss=float("nan"))])

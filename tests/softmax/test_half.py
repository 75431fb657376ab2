"""Products in half precision, as on a GPU, forced on the CPU."""

import keras
import numpy as np
import pytest

from inbatch_neg import InBatchNegativeSoftmax, ops
from inbatch_neg.backends import backend
from tests import internals, oracle
from tests.helpers import (
    HALVES,
    RULES,
    assert_close,
    batch_of,
    losses_and_gradients,
    to_numpy,
    value_and_gradients,
)

DTYPES = ("float16", "bfloat16")
VECTORS = ("query", "candidate")


@pytest.fixture
def products(monkeypatch):
    """Forces the path; lists the dtypes of the products in it."""
    internals.small_chunks(monkeypatch)
    monkeypatch.setattr(backend, "has_half_products", lambda tensor: True)
    found = []
    half_matmul = backend.half_matmul

    def spy(left, right):
        found.append(keras.backend.standardize_dtype(left.dtype))
        product = half_matmul(left, right)
        assert keras.backend.standardize_dtype(product.dtype) == "float32"
        return product

    monkeypatch.setattr(backend, "half_matmul", spy)
    return found


def rounded(array, dtype):
    """Returns the float32 array of the values that half precision has."""
    half = keras.ops.cast(array, dtype)
    return to_numpy(keras.ops.cast(half, "float32"))


def naive_loss(query, candidate, temperature, sample_weight, **rules):
    """The formula as one would write it, all in the dtype of the vectors."""
    kind = query.dtype
    scores = keras.ops.matmul(query, keras.ops.transpose(candidate))
    scores = scores / keras.ops.cast(temperature, kind)
    rows, candidates = scores.shape
    q = rules.get("candidate_sampling_probability")
    if q is not None:
        scores = scores - keras.ops.cast(np.log(q), kind)
    hit = np.zeros((rows, candidates), bool)
    if "candidate_ids" in rules:
        ids = rules["candidate_ids"]
        hit |= ids[:rows, None] == ids
    if "query_ids" in rules:
        ids = rules["query_ids"]
        hit[:, :rows] |= ids[:, None] == ids
    if "candidate_mask" in rules:
        hit |= ~rules["candidate_mask"]
    hit[np.arange(rows), np.arange(rows)] = False
    scores = keras.ops.where(hit, keras.ops.cast(-6e4, kind), scores)
    own = keras.ops.diagonal(scores)
    loss = keras.ops.logsumexp(scores, axis=1) - own
    return loss * keras.ops.cast(sample_weight, kind)


def errors(function, batch, dtype, upstream):
    """Returns the root of the summed squares of each error."""
    by = {name: batch[name] for name in (*VECTORS, "temperature")}
    rest = {name: value for name, value in batch.items() if name not in by}

    def in_half(query, candidate, temperature):
        loss = function(
            query=keras.ops.cast(query, dtype),
            candidate=keras.ops.cast(candidate, dtype),
            temperature=temperature,
            **rest,
        )
        return keras.ops.cast(loss, "float32")

    value, gradients = value_and_gradients(in_half, by, upstream)
    expected, d_expected = oracle.softmax_loss(**batch, upstream=upstream)
    return {
        "loss": np.linalg.norm(value - expected),
        **{n: np.linalg.norm(gradients[n] - d_expected[n]) for n in by},
    }


@pytest.mark.parametrize(
    "dtype, temperature, even, names",
    [
        ("float16", 1.0, True, RULES),
        ("float16", 0.05, False, RULES),
        ("bfloat16", 1.0, True, RULES),
        ("float16", 1.0, True, ()),
        *[("bfloat16", 0.05, False, names) for names in HALVES],
    ],
)
def test_no_worse_than_naive(products, dtype, temperature, even, names):
    batch = batch_of(50, 60)
    for name in VECTORS:
        vectors = batch[name]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        batch[name] = rounded(vectors, dtype)
    batch = {name: batch[name] for name in (*VECTORS, *names)}
    batch.setdefault("sample_weight", np.ones(50, "float32"))
    batch["temperature"] = np.float32(temperature)
    upstream = np.full(50, 1 / 50) if even else np.linspace(-1, 1, 50)
    ours = errors(ops.in_batch_softmax_loss, batch, dtype, upstream)
    assert set(products) == {dtype}
    naive = errors(naive_loss, batch, dtype, upstream)
    # One number, in which the naive errors may cancel by chance. A dot product
    # of the vectors is at most 1.
    share = np.abs(upstream * batch["sample_weight"]).sum() / temperature**2
    assert ours.pop("temperature") <= 2.0**-9 * share
    for name, error in ours.items():
        assert error <= naive[name] + 1e-6, (name, error, naive[name])


def half_loss(dtype, **rules):
    """Returns a function of vectors, which it casts to half precision."""

    def loss(query, candidate):
        query = keras.ops.cast(query, dtype)
        candidate = keras.ops.cast(candidate, dtype)
        return ops.in_batch_softmax_loss(query, candidate, **rules)

    return loss


@pytest.mark.parametrize(
    "dtype, weighted", [("float16", True), ("bfloat16", False)]
)
def test_positives_that_are_nearly_certain(products, dtype, weighted):
    """p - 1 keeps its digits, where 1 - p is down to 1e-4."""
    rng = np.random.default_rng(0)
    batch = {
        "query": 3.0 * np.eye(16, dtype="float32"),
        "candidate": 3.0 * np.eye(16, dtype="float32"),
    }
    batch["candidate"] += rng.uniform(0, 0.5, (16, 16)).astype("float32")
    batch = {name: rounded(value, dtype) for name, value in batch.items()}
    rules = {}
    if weighted:
        rules["sample_weight"] = np.linspace(0.3, 1, 16).astype("float32")
    value, gradients = value_and_gradients(half_loss(dtype, **rules), batch)
    expected, d_expected = oracle.softmax_loss(**batch, **rules)
    assert 1e-4 < expected.min() and expected.max() < 1e-2
    assert_close(value, expected, 1e-4)
    # The gradients leave in half precision, and p is rounded to it.
    tolerance = 2.0**-10 if dtype == "float16" else 2.0**-7
    for name in VECTORS:
        assert_close(gradients[name], d_expected[name], tolerance, name)
    assert products


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_negatives(products, dtype):
    batch = batch_of(10)
    batch = {name: batch[name] for name in (*VECTORS, "sample_weight")}
    by = {name: batch[name] for name in VECTORS}
    value, gradients = value_and_gradients(
        half_loss(
            dtype,
            candidate_mask=np.zeros(10, bool),
            sample_weight=batch["sample_weight"],
        ),
        by,
    )
    assert not value.any()
    for name in VECTORS:
        assert not gradients[name].any(), name
    assert products


@pytest.mark.backends("jax")
def test_gradient_of_a_function_that_jax_traces_late(products):
    import jax

    batch = batch_of(10)
    by = [batch[name] for name in VECTORS]

    def loss(*vectors):
        return half_loss("bfloat16")(*vectors).sum()

    expected = jax.grad(loss, (0, 1))(*by)
    for around in (jax.jit, jax.checkpoint):
        gradients = jax.grad(around(loss), (0, 1))(*by)
        for one, other in zip(gradients, expected):
            assert_close(one, other, 2.0**-7)
    assert products


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_probabilities_and_large_weights(products, dtype):
    """Neither leaves the range of float16, nor are its denormals used."""
    rng = np.random.default_rng(0)
    # All p are nearly 1 / C, which is 150.5 times the least float16.
    batch = {
        "query": rounded(rng.normal(size=(4, 4)) / 1000, dtype),
        "candidate": rounded(1 + rng.random((111_476, 4)), dtype),
        "sample_weight": np.array([1e9, 2e9, 0, 1.0], "float32"),
    }

    upstream = np.full(4, 1e-9)
    by = {name: batch[name] for name in VECTORS}
    function = half_loss(dtype, sample_weight=batch["sample_weight"])
    value, gradients = value_and_gradients(function, by, upstream)
    scores = np.float64(batch["query"]) @ np.float64(batch["candidate"]).T
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    weight = batch["sample_weight"] * upstream
    loss = -np.log(np.diagonal(p)) * batch["sample_weight"]
    assert_close(value, loss, 1e-4)
    p[np.arange(4), np.arange(4)] -= 1
    p *= weight[:, None]
    # The gradients leave in half precision.
    tolerance = 2.0**-10 if dtype == "float16" else 2.0**-8
    assert_close(gradients["query"], p @ batch["candidate"], tolerance)
    d_candidate = p.T @ batch["query"]
    # Those of the candidates that are no positives are near its least number.
    assert_close(gradients["candidate"][:4], d_candidate[:4], tolerance)
    assert products


@pytest.mark.parametrize(
    "dtype, options", [("float16", {}), ("bfloat16", {"symmetric": True})]
)
def test_layer(products, dtype, options):
    batch = batch_of(30)
    batch = {name: batch[name] for name in (*VECTORS, "candidate_ids")}
    for name in VECTORS:
        batch[name] = rounded(batch[name], dtype)
    keras.config.set_dtype_policy(f"mixed_{dtype}")
    layer = InBatchNegativeSoftmax(temperature=0.5, **options)
    whole = losses_and_gradients(layer, batch)
    assert not products  # float32 towers
    for name in VECTORS:
        batch[name] = to_numpy(keras.ops.cast(batch[name], dtype))
    half = losses_and_gradients(layer, batch)
    assert set(products) == {dtype}
    assert_close(half[0], whole[0], 1e-5)
    for name in VECTORS:
        # p and the gradient are rounded.
        actual = np.asarray(half[1][name], "float32")
        assert_close(actual, whole[1][name], 2.0**-7, name)


def test_what_multiplies_in_float32(products):
    """Towers of different dtypes, a float64 layer, several vectors."""
    half = keras.ops.ones((8, 4), "bfloat16")
    whole = keras.ops.ones((8, 4), "float32")
    several = keras.ops.ones((8, 2, 4), "bfloat16")
    ops.in_batch_softmax_loss(half, whole)
    ops.in_batch_softmax_loss(half, keras.ops.cast(whole, "float16"))
    ops.in_batch_softmax_loss(several, half)
    InBatchNegativeSoftmax(dtype="float64")(half, half)
    assert not products
    ops.in_batch_softmax_loss(several[:, :1], half)
    assert products


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cpu_multiplies_in_float32(dtype):
    assert not backend.has_half_products(keras.ops.ones((2, 2), dtype))

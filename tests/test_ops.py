"""`ops.in_batch_softmax_loss`: values and every gradient, by the oracle."""

import keras
import numpy as np
import pytest

from inbatch_neg import ops
from tests import helpers, internals, oracle
from tests.helpers import (
    ALONE,
    BACKEND,
    RULES,
    assert_close,
    batch_of,
    check_loss,
)

VECTORS = ("query", "candidate")


def pick(batch, names):
    return {name: batch[name] for name in (*VECTORS, *names)}


@pytest.mark.parametrize(
    "candidates, names",
    [
        *[(11, names) for names in ALONE],
        # Further candidates belong to no query.
        (14, ("query_ids",)),
        (14, RULES),
    ],
    ids=lambda value: value if isinstance(value, int) else "+".join(value),
)
def test_each_rule(monkeypatch, each_path, candidates, names):
    if each_path == "chunked":
        internals.small_chunks(monkeypatch)
    batch = pick(batch_of(11, candidates), names)
    batch["temperature"] = np.float32(0.5)
    upstream = np.random.default_rng(1).normal(size=11)
    check_loss(batch, upstream, compiled=names == RULES or BACKEND == "jax")


@pytest.mark.parametrize("rows, candidates", [(2, 2), (5, 9)])
def test_small_sizes(each_path, rows, candidates):
    # Of two rows one has p = 1 - 5e-4: a gradient in which p - 1 has lost
    # four of its seven digits, in any float32 formula.
    tolerance = 3e-4 if rows == 2 else 2e-5
    batch = {**batch_of(rows, candidates), "temperature": np.float32(0.5)}
    check_loss(batch, tolerance=tolerance)


def test_a_size_of_several_chunks():
    batch = {**batch_of(703, 760), "temperature": np.float32(0.5)}
    upstream = np.random.default_rng(1).normal(size=703)
    check_loss(batch, upstream, compiled=True)


@pytest.mark.parametrize("upstream", [None, np.full(5, 3.0), np.eye(5)[2]])
def test_upstream_gradients(each_path, upstream):
    check_loss({**batch_of(5, 9), "temperature": np.float32(0.2)}, upstream)


def test_mean_of_the_losses(each_path):
    batch = batch_of(5, 9)
    rest = {k: v for k, v in batch.items() if k not in VECTORS}
    _, gradients = helpers.value_and_gradients(
        lambda **vectors: keras.ops.mean(
            ops.in_batch_softmax_loss(**vectors, **rest)
        ),
        pick(batch, ()),
    )
    _, expected = oracle.softmax_loss(**batch, upstream=np.full(5, 0.2))
    for name in VECTORS:
        assert_close(gradients[name], expected[name], name=name)


def test_no_gradient_by_the_probability(each_path):
    batch = batch_of(5)
    name = "candidate_sampling_probability"
    by = {n: batch.pop(n) for n in (name, "query")}
    _, gradients = helpers.value_and_gradients(
        lambda **t: ops.in_batch_softmax_loss(**t, **batch), by
    )
    assert gradients["query"].any()
    # Some engines give none, others zeros.
    assert gradients[name] is None or not gradients[name].any()


@pytest.mark.parametrize("temperature", [0.05, 2, np.float64(0.5)])
def test_temperature_as_a_number(each_path, temperature):
    batch = pick(batch_of(5, 9), ())
    loss = ops.in_batch_softmax_loss(**batch, temperature=temperature)
    expected, _ = oracle.softmax_loss(**batch, temperature=temperature)
    assert_close(helpers.to_numpy(loss), expected)


def test_float64(each_path):
    batch = batch_of(5, 9)
    for name in ("query", "candidate", "sample_weight"):
        batch[name] = batch[name].astype("float64")
    loss = helpers.to_numpy(ops.in_batch_softmax_loss(**batch))
    expected, _ = oracle.softmax_loss(**batch)
    # JAX turns float64 into float32 unless it is told otherwise.
    exact = BACKEND != "jax"
    assert loss.dtype == ("float64" if exact else "float32")
    assert_close(loss, expected, 1e-12 if exact else 2e-5)


def test_integer_weights_and_narrow_ids(each_path):
    batch = batch_of(5, 9)
    batch["sample_weight"] = np.array([0, 1, 2, 3, 4], "int32")
    batch["candidate_ids"] = batch["candidate_ids"].astype("uint8")
    batch["query_ids"] = batch["query_ids"].astype("int16")
    loss = helpers.to_numpy(ops.in_batch_softmax_loss(**batch))
    assert_close(loss, oracle.softmax_loss(**batch)[0])


def naive_loss(query, candidate, q):
    """The formula as one would write it, all in the dtype of the vectors."""
    scores = keras.ops.matmul(query, keras.ops.transpose(candidate))
    q = keras.ops.convert_to_tensor(q)
    scores = scores - keras.ops.cast(keras.ops.log(q), scores.dtype)
    own = keras.ops.diagonal(scores)
    return keras.ops.logsumexp(scores, axis=1) - own


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_no_worse_than_naive_in_half_precision(each_path, dtype):
    batch = batch_of(48)
    q = batch["candidate_sampling_probability"]
    # The oracle sees what the functions see: the rounded vectors.
    vectors = {}
    for name in VECTORS:
        half = keras.ops.cast(batch[name], dtype)
        vectors[name] = helpers.to_numpy(keras.ops.cast(half, "float32"))
    upstream = np.random.default_rng(1).normal(size=48)
    expected, d_expected = oracle.softmax_loss(
        **vectors, candidate_sampling_probability=q, upstream=upstream
    )

    def errors(function):
        def in_half(query, candidate):
            query = keras.ops.cast(query, dtype)
            candidate = keras.ops.cast(candidate, dtype)
            loss = function(query, candidate, q)
            return keras.ops.cast(loss, "float32")

        value, gradients = helpers.value_and_gradients(
            in_half, vectors, upstream
        )
        differences = [value - expected]
        differences += [gradients[n] - d_expected[n] for n in VECTORS]
        return [np.abs(d).max() for d in differences]

    ours = errors(
        lambda query, candidate, q: ops.in_batch_softmax_loss(
            query, candidate, candidate_sampling_probability=q
        )
    )
    assert np.all(np.isfinite(ours))
    for name, error, naive in zip(("loss", *VECTORS), ours, errors(naive_loss)):
        assert error <= naive + 1e-6, (name, error, naive)


def one_dimension(*scores):
    """Returns two rows whose scores are 0 and these, of both rows."""
    query = np.ones((2, 1), "float32")
    candidate = np.array(scores, "float32")[:, None]
    return {"query": query, "candidate": candidate}


@pytest.mark.parametrize("large", [200.0, 1e4, -1e4])
def test_large_scores(each_path, large):
    check_loss(one_dimension(0.0, 1.0, large))
    # The gradient of a query is a difference of candidates as large as
    # `large`, so any float32 formula loses as many digits as that has.
    rounding = 2 * np.finfo("float32").eps * abs(large)
    check_loss(one_dimension(large, large + 1), tolerance=max(rounding, 2e-5))


@pytest.mark.parametrize("large", [200.0, 1e4])
def test_a_large_score_that_is_masked(each_path, large):
    batch = one_dimension(0.0, 1.0, large)
    mask = {"candidate_mask": np.array([True, True, False])}
    check_loss({**batch, **mask})
    ids = {"candidate_ids": np.array([7, 8, 7])}  # masked for row 0 alone
    check_loss({**batch, **ids})
    own = {"candidate_mask": np.array([False, True, True])}
    check_loss({**one_dimension(large, 0.0, 1.0), **own})


@pytest.mark.parametrize(
    "rules",
    [
        {"candidate_ids": np.array([3] * 7)},
        {"query_ids": np.array([3] * 5), "candidate_mask": np.arange(7) < 5},
        {"candidate_mask": np.zeros(7, bool)},
        {
            "candidate_ids": np.array([3] * 7),
            "candidate_mask": np.zeros(7, bool),
            "query_ids": np.array([3] * 5),
        },
    ],
    ids=["ids", "query_ids", "mask", "all"],
)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_every_negative_masked(each_path, rules, scale):
    batch = batch_of(5, 7)
    vectors = {name: scale * batch[name] for name in VECTORS}
    weight = {"sample_weight": batch["sample_weight"]}
    value, gradients = helpers.value_and_gradients(
        lambda **t: ops.in_batch_softmax_loss(**t, **rules),
        {**vectors, **weight},
    )
    np.testing.assert_array_equal(value, 0.0)
    assert not np.signbit(value).any()
    # XLA fuses w q - w q in one rounding: what is left is that of w q.
    ulp = np.finfo("float32").eps * np.abs(vectors["query"]).max()
    weights = batch["sample_weight"].max()
    for gradient in gradients.values():
        rounded = BACKEND == "jax" and each_path == "chunked"
        limit = ulp * weights if rounded else 0.0
        assert np.abs(gradient).max() <= limit


def loss_of_probability(*q):
    batch = one_dimension(0.0, 0.0)
    return helpers.to_numpy(
        ops.in_batch_softmax_loss(
            **batch, candidate_sampling_probability=np.array(q, "float32")
        )
    )


def test_small_probabilities_differ(each_path):
    np.testing.assert_allclose(
        loss_of_probability(1e-6, 1e-8), np.log([101, 1.01]), rtol=1e-5
    )
    np.testing.assert_allclose(
        loss_of_probability(1e-20, 1e-30),
        [np.log1p(1e10), np.log1p(1e-10)],
        rtol=1e-5,
        atol=1e-9,
    )


@pytest.mark.parametrize("nothing", [0.0, -0.0, 1e-45])
def test_probabilities_of_zero_are_the_smallest(each_path, nothing):
    loss = loss_of_probability(1.0, nothing)
    np.testing.assert_allclose(loss[0], 126 * np.log(2), rtol=1e-5)
    assert loss[1] == 0.0
    batch = batch_of(5)
    batch["candidate_sampling_probability"] = np.full(5, nothing, "float32")
    check_loss(batch)


def masked(ids):
    """Returns which rows see the two candidates as the same item."""
    loss = ops.in_batch_softmax_loss(
        **one_dimension(0.0, 0.0), candidate_ids=ids
    )
    return helpers.to_numpy(loss) == 0


@pytest.mark.parametrize(
    "one, other",
    [(2**24, 2**24 + 1), (2**31 - 1, 2**31 - 2), (-1, 0), (-1, -2)],
)
def test_large_ids_do_not_merge(one, other):
    dtype = "int32" if BACKEND == "jax" else "int64"
    assert not masked(np.array([one, other], dtype)).any()
    assert masked(np.array([one, one], dtype)).all()


def test_ids_that_differ_beyond_32_bits():
    ids = np.array([7, 7 + 2**32], "int64")
    # JAX reads them as int32 before the layer sees them, as is documented.
    expected = BACKEND == "jax"
    assert masked(ids).all() == masked(ids).any() == expected
    loss = ops.in_batch_softmax_loss(**one_dimension(0.0, 0.0), query_ids=ids)
    assert (helpers.to_numpy(loss) == 0).all() == expected


def test_extra_candidates_belong_to_no_query(each_path):
    # No id of a query may equal what the extra rows have.
    for query_ids in ([-1, 0], [0, -1], [1, 2]):
        loss = ops.in_batch_softmax_loss(
            **one_dimension(0.0, 0.0, 0.0), query_ids=np.array(query_ids)
        )
        np.testing.assert_allclose(
            helpers.to_numpy(loss), [np.log(3)] * 2, rtol=1e-6
        )


def test_string_ids():
    ids = np.array(["a", "b", "a", "é", "b"])
    batch = pick(batch_of(5), ())
    if BACKEND == "tensorflow":
        for name in ("candidate_ids", "query_ids"):
            check_loss({**batch, name: ids})
    else:
        # NumPy's strings are no tensors of these engines.
        with pytest.raises((TypeError, ValueError), match="candidate_ids"):
            ops.in_batch_softmax_loss(**batch, candidate_ids=ids)


@pytest.mark.parametrize("form", [list, keras.Variable])
def test_inputs_may_be(form):
    vectors = form([[1.0, 0.0], [0.0, 1.0]])
    loss = ops.in_batch_softmax_loss(vectors, vectors)
    np.testing.assert_allclose(
        helpers.to_numpy(loss), [np.log1p(np.exp(-1))] * 2, rtol=1e-6
    )

"""Queries of several vectors, of which the best one scores."""

import keras
import numpy as np
import pytest

from inbatch_neg import (
    CrossBatchMemory,
    InBatchNegativeLoss,
    InBatchNegativeSoftmax,
    ops,
)
from inbatch_neg.softmax.log_q_and_masks import cross_entropy_with_first
from tests import helpers, internals, oracle
from tests.helpers import (
    BACKEND,
    HALVES,
    RULES,
    assert_close,
    check_loss,
    losses_and_gradients,
    to_numpy,
    value_and_gradients,
)
from tests.test_oracle import MULTIPOINT, MULTIPOINT_LOSSES


def batch_of(rows, candidates=None, count=3, mask=False):
    """Returns `helpers.batch_of` with `count` vectors a query."""
    batch = helpers.batch_of(rows, candidates)
    rng = np.random.default_rng(7)
    shape = (rows, count, batch["query"].shape[1])
    batch["query"] = rng.normal(size=shape).astype("float32")
    if mask:
        batch["query_mask"] = rng.random((rows, count)) < 0.6
        batch["query_mask"][np.arange(rows), rng.integers(0, count, rows)] = 1
        # What is left out may be anything.
        batch["query"][~batch["query_mask"]] *= 1e6
    return batch


def test_the_case_of_tensorflow_recommenders():
    vectors = {k: np.array(v, "float32") for k, v in MULTIPOINT.items()}
    loss = ops.in_batch_softmax_loss(**vectors)
    np.testing.assert_allclose(to_numpy(loss), MULTIPOINT_LOSSES, rtol=1e-6)
    check_loss(vectors)


@pytest.mark.parametrize(
    "candidates, names",
    [(11, ()), (11, RULES), *[(14, names) for names in HALVES]],
)
def test_each_rule_over_several_chunks(monkeypatch, candidates, names):
    internals.small_chunks(monkeypatch)
    batch = batch_of(11, candidates, mask=candidates == 14)
    keep = ("query", "candidate", "query_mask", *names)
    batch = {name: batch[name] for name in keep if name in batch}
    upstream = np.random.default_rng(1).normal(size=11)
    check_loss(batch, upstream, compiled=candidates == 11 or BACKEND == "jax")


@pytest.mark.parametrize("rows, candidates, count", [(5, 9, 4), (300, 350, 2)])
def test_every_size(rows, candidates, count):
    batch = batch_of(rows, candidates, count, mask=True)
    check_loss({**batch, "temperature": np.float32(0.5)})


def test_one_vector_is_a_query_of_rank_two(each_path):
    batch = helpers.batch_of(5, 9)
    by = ("query", "candidate", "sample_weight")
    found = []
    for query in (batch["query"], batch["query"][:, None]):
        rest = {k: v for k, v in batch.items() if k not in by}
        given = {**{name: batch[name] for name in by}, "query": query}
        found.append(
            value_and_gradients(
                lambda rest=rest, **t: ops.in_batch_softmax_loss(**t, **rest),
                given,
            )
        )
    (one, d_one), (other, d_other) = found
    np.testing.assert_array_equal(one, other)
    for name in by:
        np.testing.assert_array_equal(
            d_one[name], d_other[name].reshape(d_one[name].shape)
        )


def test_of_equal_vectors_the_first_gets_the_gradient(chunked):
    batch = batch_of(6)
    batch["query"] = batch["query"].repeat(2, axis=1)  # 0 0 1 1 2 2
    check_loss(batch, compiled=BACKEND == "jax")
    mask = np.ones((6, 6), bool)
    mask[::2, 0] = mask[1::2, 3] = False  # then it is vector 1
    check_loss({**batch, "query_mask": mask}, compiled=True)
    by = {"query": batch["query"]}
    _, gradients = value_and_gradients(
        lambda query: ops.in_batch_softmax_loss(query, batch["candidate"]), by
    )
    assert gradients["query"][:, ::2].any()
    assert not gradients["query"][:, 1::2].any()


def test_a_row_without_vectors_is_refused_where_it_is_known():
    mask = np.array([[True, False], [False, False], [True, True]])
    query, candidate = np.ones((3, 2, 4), "float32"), np.ones((3, 4), "float32")
    words = "`query_mask` must be True for .*row 1 without any"
    with pytest.raises(ValueError, match=words):
        ops.in_batch_softmax_loss(query, candidate, query_mask=mask)
    with pytest.raises(ValueError, match=words):
        InBatchNegativeSoftmax()(query, candidate, query_mask=mask)


@pytest.mark.backends("tensorflow", "jax")
def test_a_row_without_vectors_is_one_of_zeros_in_a_compiled_step():
    batch = batch_of(6, mask=True)
    batch["query_mask"][2] = False
    by = {name: batch.pop(name) for name in ("query", "candidate")}
    mask = {"query_mask": batch.pop("query_mask").astype("float32")}

    def loss(query, candidate, query_mask):
        return ops.in_batch_softmax_loss(
            query, candidate, query_mask=query_mask > 0, **batch
        )

    value, gradients = value_and_gradients(loss, {**by, **mask}, compiled=True)
    by["query"][2], mask = 0, mask["query_mask"] > 0
    mask[2] = True
    expected, d_expected = oracle.softmax_loss(**by, **batch, query_mask=mask)
    d_expected["query"][2] = 0
    assert_close(value, expected)
    for name in by:
        assert_close(gradients[name], d_expected[name], name=name)


def test_nan_scores_are_seen():
    batch = batch_of(5)
    batch["query"][1, 2, 0] = np.nan
    loss = to_numpy(
        ops.in_batch_softmax_loss(batch["query"], batch["candidate"])
    )
    assert np.isnan(loss).tolist() == [False, True, False, False, False]


def test_symmetric(chunked):
    batch = batch_of(9, 11)
    upstream = np.arange(1, 10) / 5
    layer = InBatchNegativeSoftmax(symmetric=True, temperature=0.5)
    value, gradients = losses_and_gradients(layer, batch, upstream)
    options = {"temperature": 0.5, "upstream": upstream}
    there, d_there = oracle.softmax_loss(**batch, **options)
    back, d_back = oracle.softmax_loss(
        query=batch["candidate"][:9],
        candidate=batch["query"],
        candidate_ids=batch["query_ids"],
        query_ids=batch["candidate_ids"][:9],
        sample_weight=batch["sample_weight"],
        **options,
    )
    assert_close(value, (there + back) / 2)
    assert_close(
        gradients["query"], (d_there["query"] + d_back["candidate"]) / 2
    )
    expected = d_there["candidate"]
    expected[:9] += d_back["query"]
    assert_close(gradients["candidate"], expected / 2)


@pytest.mark.parametrize("sampling", ["rotation", "hardest"])
def test_symmetric_of_sampled_negatives(chunked, sampling):
    batch = batch_of(8, mask=True)
    vectors = {name: batch.pop(name) for name in ("query", "candidate")}
    upstream = np.linspace(0.5, 2.0, 8).astype("float32")

    def run(*arguments, **options):
        layer = InBatchNegativeSoftmax(
            *arguments, **options, symmetric=True, temperature=0.5
        )
        return value_and_gradients(
            lambda **tensors: layer(**tensors, **batch, training=True),
            vectors,
            upstream,
        )

    value, gradients = run(7, sampling=sampling)
    expected, d_expected = run()  # all seven
    assert_close(value, expected)
    for name in gradients:
        assert_close(gradients[name], d_expected[name], name=name)


@pytest.mark.parametrize(
    "arguments, hardest",
    [
        ({}, None),
        ({"num_negatives": 9}, None),
        ({"num_negatives": 4, "sampling": "hardest"}, 4),
    ],
    ids=["all", "rotation", "hardest"],
)
@pytest.mark.parametrize("logits", [False, True])
def test_layer(monkeypatch, arguments, hardest, logits):
    internals.small_chunks(monkeypatch, rows=4)
    batch = batch_of(10, 13, mask=True)
    layer = InBatchNegativeSoftmax(
        **arguments, temperature=0.5, return_logits=logits
    )
    if logits:
        batch.pop("sample_weight")
    upstream = np.linspace(0.5, 2.0, 10).astype("float32")

    def losses(query, candidate):
        given = {**batch, "query": query, "candidate": candidate}
        found = layer(**given, training=True)
        return cross_entropy_with_first(found) if logits else found

    value, gradients = value_and_gradients(
        losses,
        {name: batch[name] for name in ("query", "candidate")},
        upstream,
    )
    expected, d_expected = oracle.softmax_loss(
        **batch, temperature=0.5, upstream=upstream, hardest=hardest
    )
    assert_close(value, expected)
    for name in gradients:
        assert_close(gradients[name], d_expected[name], name=name)


def test_float64_and_half_precision():
    batch = batch_of(5, 9, mask=True)
    expected, _ = oracle.softmax_loss(**batch)
    batch["query"] = batch["query"].astype("float64")
    layer = InBatchNegativeSoftmax(dtype="float64")
    # JAX turns float64 into float32 unless it is told otherwise.
    tolerance = 2e-5 if BACKEND == "jax" else 1e-12
    assert_close(to_numpy(layer(**batch)), expected, tolerance)
    keras.config.set_dtype_policy("mixed_float16")
    batch = batch_of(5, 9)
    batch["query"] = batch["query"].astype("float16")
    expected, _ = oracle.softmax_loss(**batch)
    assert_close(to_numpy(InBatchNegativeSoftmax()(**batch)), expected)


ITEMS, DIMENSIONS, COUNT, ROWS = 20, 8, 3, 32


def multi_interest(softmax, memory=None):
    """Returns a model whose users have up to three vectors."""
    user = keras.Input((), dtype="int32", name="user")
    mask = keras.Input((COUNT,), dtype="bool", name="mask")
    item = keras.Input((), dtype="int32", name="item")
    query = keras.layers.Embedding(ITEMS, COUNT * DIMENSIONS)(user)
    query = keras.layers.Reshape((COUNT, DIMENSIONS))(query)
    normal = keras.layers.UnitNormalization()
    given = {
        "candidate": normal(keras.layers.Embedding(ITEMS, DIMENSIONS)(item)),
        "candidate_ids": item,
    }
    if memory is not None:
        given = memory(**given)
    losses = softmax(normal(query), **given, query_mask=mask)
    return keras.Model({"user": user, "item": item, "mask": mask}, losses)


@pytest.mark.parametrize(
    "arguments, memory",
    [
        ({"temperature": "learned", "symmetric": True}, None),
        (
            {"temperature": 0.2, "num_negatives": 5, "sampling": "hardest"},
            48,
        ),
    ],
)
def test_training_and_saving(tmp_path, arguments, memory):
    layer = InBatchNegativeSoftmax(batch_size=ROWS, **arguments)
    if memory is not None:
        memory = CrossBatchMemory(memory)
    model = multi_interest(layer, memory)
    model.compile(keras.optimizers.Adam(0.05), InBatchNegativeLoss())
    user = np.random.default_rng(0).integers(0, ITEMS, 2 * ROWS)
    pairs = {"user": user.astype("int32"), "item": (user + 1) % ITEMS}
    pairs["item"] = pairs["item"].astype("int32")
    pairs["mask"] = np.arange(COUNT) < 2 + (user[:, None] > 9)
    history = model.fit(
        pairs, batch_size=ROWS, epochs=12, verbose=0, shuffle=False
    ).history["loss"]
    assert history[-1] < 0.7 * history[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    one, other = (
        m.predict(pairs, batch_size=ROWS, verbose=0) for m in (model, again)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.backends("tensorflow")
def test_no_table_of_all_products(monkeypatch):
    """No tensor of the step has as many entries as the (B, C) scores."""
    import tensorflow as tf

    internals.small_chunks(monkeypatch, rows=4)
    rows, count, dimensions = 64, 4, 2

    @tf.function
    def step(query, candidate):
        with tf.GradientTape() as tape:
            tape.watch([query, candidate])
            loss = ops.in_batch_softmax_loss(query, candidate)
        return tape.gradient(loss, [query, candidate])

    graph = step.get_concrete_function(
        tf.TensorSpec((rows, count, dimensions)),
        tf.TensorSpec((rows, dimensions)),
    ).graph
    graphs = [graph, *graph._functions.values()]
    sizes = []
    for one in graphs:
        operations = getattr(one, "graph", one).get_operations()
        for operation in operations:
            for tensor in operation.outputs:
                sizes.append(tensor.shape.num_elements() or 0)
    assert max(sizes) <= rows * count * dimensions
    assert max(sizes) >= 4 * rows  # a chunk of scores was seen

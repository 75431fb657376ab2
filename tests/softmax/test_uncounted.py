"""NaN in rows that do not count reaches nothing else; other NaN stays."""

import keras
import numpy as np
import pytest

from inbatch_neg import InBatchNegativeLoss, InBatchNegativeSoftmax, ops
from inbatch_neg.backends import backend
from tests import helpers, internals, oracle
from tests.helpers import BACKEND, assert_close, value_and_gradients

ROWS, CANDIDATES = 10, 13
PADDED = np.array([3, 9])  # the last row of all, and one in the middle
MASKED = np.array([3, 9, 11])  # their candidates and an extra one
VECTORS = ("query", "candidate")
BY = (*VECTORS, "sample_weight")
NO_MORE = ("candidate_mask", "sample_weight")
ROTATION = {"num_negatives": ROWS - 1}  # all of them
HARDEST = {"num_negatives": 4, "sampling": "hardest"}


def padded_batch(several=False, names=helpers.RULES):
    """Returns a batch whose padding is finite, with the rules `names`."""
    batch = helpers.batch_of(ROWS, CANDIDATES)
    if several:
        rng = np.random.default_rng(7)
        batch["query"] = rng.normal(size=(ROWS, 3, 8)).astype("float32")
    batch["sample_weight"][PADDED] = 0
    batch["candidate_mask"][MASKED] = False
    return {name: batch[name] for name in (*VECTORS, *names)}


def spoiled(batch, what=np.nan, of=VECTORS):
    """Returns the batch with other values in what does not count."""
    batch = {name: np.copy(value) for name, value in batch.items()}
    for name in of:
        batch[name][PADDED if name == "query" else MASKED] = what
    return batch


def without_padding(batch, upstream=None, **arguments):
    """Returns the oracle's results, as if the padding were not there.

    Where the padding is, losses and gradients are 0.
    """
    rows = np.delete(np.arange(ROWS), PADDED)
    candidates = np.delete(np.arange(CANDIDATES), MASKED)
    kept = {
        name: rows if name in (*BY, "query_ids") else candidates
        for name in batch
    }
    kept["candidate"] = candidates
    losses, gradients = oracle.softmax_loss(
        **{name: value[kept[name]] for name, value in batch.items()},
        upstream=None if upstream is None else upstream[rows],
        **arguments,
    )
    value = np.zeros(ROWS)
    value[rows] = losses
    whole = {}
    for name in BY:
        whole[name] = np.zeros(np.shape(batch[name]))
        whole[name][kept[name]] = gradients[name]
    return value, whole


def check(function, batch, expected, upstream=None, tolerance=2e-5):
    """Compares a function of a batch with the expected results."""
    by = {name: batch[name] for name in BY}
    rest = {name: value for name, value in batch.items() if name not in by}
    value, gradients = value_and_gradients(
        lambda **tensors: function(**tensors, **rest),
        by,
        upstream,
        compiled=BACKEND != "torch",
    )
    losses, d_expected = expected
    assert_close(value, losses, tolerance, "loss")
    assert not value[PADDED].any()
    for name in by:
        assert_close(gradients[name], d_expected[name], tolerance, name)
    assert not gradients["query"][PADDED].any()
    assert not gradients["candidate"][MASKED].any()


@pytest.fixture(params=["chunked", "dense"])
def each_size(request, monkeypatch):
    """Several chunks, and what so small a batch takes by itself."""
    if request.param == "chunked":
        internals.small_chunks(monkeypatch)


@pytest.mark.parametrize(
    "chunked, what, several, names",
    [
        (True, np.nan, False, NO_MORE),
        (True, np.nan, True, helpers.RULES),
        (True, 3e38, False, helpers.RULES),  # whose products are infinite
        (False, np.nan, False, helpers.RULES),
        (False, 3e38, False, NO_MORE),
    ],
)
def test_loss_function(monkeypatch, chunked, what, several, names):
    if chunked:
        internals.small_chunks(monkeypatch)
    batch = padded_batch(several, names)
    upstream = np.linspace(0.5, 2.0, ROWS)
    expected = without_padding(batch, upstream)
    check(ops.in_batch_softmax_loss, spoiled(batch, what), expected, upstream)


@pytest.mark.parametrize(
    "options, several, training",
    [
        ({}, False, False),
        ({}, True, True),
        (ROTATION, False, True),
        (ROTATION, True, True),
        (HARDEST, False, True),
        (HARDEST, True, True),
    ],
)
def test_layer(monkeypatch, options, several, training):
    internals.small_chunks(monkeypatch)
    batch = padded_batch(several)
    layer = InBatchNegativeSoftmax(temperature=0.5, **options)
    hardest = 4 if "sampling" in options else None
    check(
        lambda **tensors: layer(**tensors, training=training),
        spoiled(batch),
        without_padding(batch, temperature=0.5, hardest=hardest),
    )


def test_query_of_weight_0_without_a_mask(each_size):
    batch = padded_batch(names=("sample_weight",))
    losses, gradients = oracle.softmax_loss(**batch)
    by = spoiled(batch, of=("query",))
    value, found = value_and_gradients(ops.in_batch_softmax_loss, by)
    assert_close(value, losses)
    for name in VECTORS:
        assert_close(found[name], gradients[name], name=name)
    assert not found["sample_weight"][PADDED].any()


def test_masked_extra_candidate_without_weights(each_size):
    batch = padded_batch(names=("candidate_mask",))
    mask = batch.pop("candidate_mask")
    mask[PADDED] = True
    losses, gradients = oracle.softmax_loss(**batch, candidate_mask=mask)
    batch["candidate"][11] = np.nan
    logits = InBatchNegativeSoftmax(return_logits=True)

    def by_logits(query, candidate):
        table = logits(query, candidate, candidate_mask=mask)
        return keras.ops.logsumexp(table, axis=1) - table[:, 0]

    def direct(query, candidate):
        return ops.in_batch_softmax_loss(query, candidate, candidate_mask=mask)

    for function in (by_logits, direct):
        value, found = value_and_gradients(function, batch)
        assert_close(value, losses)
        for name in VECTORS:
            assert_close(found[name], gradients[name], name=name)


@pytest.mark.parametrize("options", [{}, ROTATION], ids=len)
def test_both_directions(monkeypatch, options):
    """In the other one, `candidate_mask` applies to rows of weight 0 alone."""
    internals.small_chunks(monkeypatch)
    batch = padded_batch()

    def run(batch):
        layer = InBatchNegativeSoftmax(symmetric=True, **options)
        rest = {k: v for k, v in batch.items() if k not in VECTORS}
        return value_and_gradients(
            lambda **vectors: layer(**vectors, **rest, training=True),
            {name: batch[name] for name in VECTORS},
        )

    value, gradients = run(batch)
    # So padding is no negative there either.
    found, d_found = run(spoiled(batch))
    assert_close(found, value)
    for name in VECTORS:
        assert_close(d_found[name], gradients[name], name=name)
    # Any other query is one, whatever its weight is.
    del batch["candidate_ids"], batch["query_ids"]
    batch["candidate_mask"][PADDED] = True
    found, _ = run(spoiled(batch, of=("query",)))
    assert np.isnan(np.delete(found, PADDED)).all()


@pytest.mark.backends("tensorflow", "jax")  # PyTorch refuses it: no trace
def test_probability_in_a_compiled_step(each_size):
    batch = padded_batch()
    nan = spoiled(batch, of=("candidate_sampling_probability",))
    nan["candidate_sampling_probability"][PADDED] = np.inf
    check(ops.in_batch_softmax_loss, nan, without_padding(batch))


def test_masked_vectors_of_a_query():
    batch = padded_batch(several=True)
    del batch["sample_weight"]
    mask = np.random.default_rng(0).random((ROWS, 3)) < 0.6
    mask[:, 1] = True
    losses, gradients = oracle.softmax_loss(**batch, query_mask=mask)
    batch["query"][~mask] = np.nan
    by = {name: batch.pop(name) for name in VECTORS}
    value, found = value_and_gradients(
        lambda **tensors: ops.in_batch_softmax_loss(
            **tensors, **batch, query_mask=mask
        ),
        by,
    )
    assert_close(value, losses)
    for name in VECTORS:
        assert_close(found[name], gradients[name], name=name)


@pytest.mark.parametrize(
    "dtype, forced",
    [("float16", False), ("float16", True), ("bfloat16", True)],
)
def test_half_precision(monkeypatch, dtype, forced):
    if forced:
        internals.small_chunks(monkeypatch)
        monkeypatch.setattr(backend, "has_half_products", lambda tensor: True)
    batch = padded_batch()
    for name in VECTORS:
        half = keras.ops.cast(batch[name], dtype)
        batch[name] = helpers.to_numpy(keras.ops.cast(half, "float32"))

    def loss(query, candidate, **rest):
        query = keras.ops.cast(query, dtype)
        candidate = keras.ops.cast(candidate, dtype)
        return ops.in_batch_softmax_loss(query, candidate, **rest)

    # The gradients leave in half precision.
    check(loss, spoiled(batch), without_padding(batch), tolerance=2.0**-7)


def test_gradient_of_a_finite_row_by_its_weight_of_0(each_size):
    batch = padded_batch()
    losses, gradients = oracle.softmax_loss(**batch)
    weight = {"sample_weight": batch.pop("sample_weight")}
    value, found = value_and_gradients(
        lambda sample_weight: ops.in_batch_softmax_loss(
            **batch, sample_weight=sample_weight
        ),
        weight,
    )
    assert_close(value, losses)
    assert gradients["sample_weight"][PADDED].all()
    assert_close(found["sample_weight"], gradients["sample_weight"])


@pytest.mark.parametrize(
    "of, row, change, affected",
    [
        ("query", 2, {}, [2]),
        ("candidate", 2, {"candidate_mask": False}, [2]),
        ("candidate", 2, {"sample_weight": 0, "candidate_mask": True}, None),
        ("candidate", 12, {"candidate_mask": True}, None),
    ],
    ids=["query", "positive", "negative", "extra"],
)
@pytest.mark.parametrize("through", ["ops", "layer"])
def test_other_nan_stays_visible(of, row, change, affected, through):
    batch = padded_batch(names=NO_MORE)
    batch["sample_weight"][2] = 1
    for name, value in change.items():
        batch[name][row] = value
    batch[of][row] = np.nan
    function = ops.in_batch_softmax_loss
    if through == "layer":
        function = InBatchNegativeSoftmax()
    losses = helpers.to_numpy(function(**batch))
    counted = batch["sample_weight"] > 0
    expected = counted if affected is None else np.isin(range(ROWS), affected)
    assert np.array_equal(np.isnan(losses) & counted, expected & counted)


class Filled(keras.layers.Layer):
    """Gives rows that do not count another value."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def call(self, vectors, counts):
        other = keras.ops.full_like(vectors, self.value)
        return keras.ops.where(counts[:, None], vectors, other)


def trained_weights(padding):
    """Returns the weights of two towers after two epochs of `fit`."""
    keras.utils.set_random_seed(1)
    batch = helpers.batch_of(ROWS)
    counts = np.ones(ROWS, bool)
    counts[PADDED] = False
    data = {name: batch[name] for name in (*VECTORS, "candidate_ids")}
    data["counts"] = counts
    inputs = {
        name: keras.Input(value.shape[1:], dtype=str(value.dtype), name=name)
        for name, value in data.items()
    }
    query, candidate = (
        Filled(padding)(keras.layers.Dense(4)(inputs[name]), inputs["counts"])
        for name in VECTORS
    )
    losses = InBatchNegativeSoftmax()(
        query,
        candidate,
        candidate_ids=inputs["candidate_ids"],
        candidate_mask=inputs["counts"],
        sample_weight=keras.ops.cast(inputs["counts"], "float32"),
    )
    model = keras.Model(inputs, losses)
    model.compile(keras.optimizers.SGD(0.1), InBatchNegativeLoss())
    model.fit(data, batch_size=ROWS, epochs=2, shuffle=False, verbose=0)
    return helpers.weights_of(model)


def test_fit():
    finite, nan = trained_weights(0.0), trained_weights(np.nan)
    for one, other in zip(finite, nan, strict=True):
        assert_close(other, one)

"""`ops.positions`: the rows that it makes, and the losses of these rows."""

import keras
import numpy as np
import pytest

import inbatch_neg
from inbatch_neg import (
    CrossBatchMemory,
    InBatchNegativeLoss,
    InBatchNegativeSoftmax,
    ops,
)
from tests import helpers, oracle
from tests.helpers import assert_close, batch_of

B, T, D = 3, 4, 8
MASK = np.arange(T) < np.array([[4], [1], [3]])
VALID = MASK.reshape(-1)
RULES = ("candidate_ids", "query_ids", "candidate_sampling_probability")


def sequences(names=RULES, by_sequence=False):
    """Returns the arguments of `positions`, and the valid rows alone."""
    flat = batch_of(B * T, dimensions=D)
    flat = {name: flat[name] for name in ("query", "candidate", *names)}
    if by_sequence:
        flat["query_ids"] = np.repeat(np.array([5, 6, 5], "int32"), T)
    given = {
        name: value.reshape(B, T, *value.shape[1:])
        for name, value in flat.items()
    }
    if by_sequence:
        given["query_ids"] = given["query_ids"][:, 0]
    given["mask"] = MASK
    return given, {name: value[VALID] for name, value in flat.items()}


def spoiled(given):
    """With NaN in the vectors of the padding."""
    padding = ~MASK[:, :, None]
    return {
        name: np.where(padding, np.float32("nan"), value)
        if name in ("query", "candidate")
        else value
        for name, value in given.items()
    }


def gradients_of(function, given):
    """Returns the mean of the losses, and its gradients (B T, D)."""
    by = ("query", "candidate")
    rest = {name: value for name, value in given.items() if name not in by}
    value, gradients = helpers.value_and_gradients(
        lambda **vectors: keras.ops.mean(
            function(ops.positions(**vectors, **rest))
        ),
        {name: given[name] for name in by},
        compiled=True,
    )
    return value, {
        name: gradients[name].reshape(B * T, D) for name in gradients
    }


def check(function, given, rows, **options):
    """Compares the mean of the losses with that of the valid rows alone.

    Args:
        function: From the arguments of a softmax to its losses.
        given: What `positions` gets.
        rows: The valid rows, and extra candidates, for the oracle.
        options: For the oracle.
    """
    value, gradients = gradients_of(function, given)
    count = VALID.sum()
    losses, expected = oracle.softmax_loss(
        **rows, **options, upstream=np.full(count, 1 / count)
    )
    assert_close(value, losses.mean(), name="loss")
    for name, gradient in gradients.items():
        assert_close(gradient[VALID], expected[name][:count], name=name)
        assert not gradient[~VALID].any(), name


@pytest.mark.parametrize(
    "names, by_sequence", [((), False), (RULES, False), (RULES, True)]
)
def test_padding_is_as_if_it_were_not_there(names, by_sequence):
    given, rows = sequences(names, by_sequence)
    check(
        lambda batch: ops.in_batch_softmax_loss(**batch, temperature=0.5),
        spoiled(given),
        rows,
        temperature=0.5,
    )


HARDEST = {"num_negatives": 2, "sampling": "hardest"}


@pytest.mark.parametrize(
    "arguments, options",
    [
        ({}, {}),
        ({"num_negatives": B * T - 1}, {}),  # all of them, by rotation
        (HARDEST, {"hardest": 2}),
        ({"cross_replica": True}, {}),
    ],
)
def test_the_layer(arguments, options):
    given, rows = sequences()
    layer = InBatchNegativeSoftmax(temperature=0.5, **arguments)
    check(
        lambda batch: layer(**batch, training=True),
        spoiled(given),
        rows,
        temperature=0.5,
        **options,
    )


def test_both_directions():
    """The query of a padded position is no negative either."""
    given, rows = sequences()
    layer = InBatchNegativeSoftmax(symmetric=True, temperature=0.5)
    value, gradients = gradients_of(
        lambda batch: layer(**batch, training=True), spoiled(given)
    )
    options = {"temperature": 0.5, "upstream": np.full(8, 1 / 8)}
    there, d_there = oracle.softmax_loss(**rows, **options)
    back, d_back = oracle.softmax_loss(
        query=rows["candidate"],
        candidate=rows["query"],
        candidate_ids=rows["query_ids"],
        query_ids=rows["candidate_ids"],
        **options,
    )
    assert_close(value, (there + back).mean() / 2)
    for name, other in (("query", "candidate"), ("candidate", "query")):
        expected = (d_there[name] + d_back[other]) / 2
        assert_close(gradients[name][VALID], expected)
        assert not gradients[name][~VALID].any()


@pytest.mark.parametrize("kind", ["extra", "catalogue", "memory"])
def test_further_candidates(kind):
    """Appended by hand; the whole catalogue instead of the batch; stored."""
    given, rows = sequences()
    of_candidates = ("candidate", "candidate_ids")
    if kind == "catalogue":
        for one in (given, rows):
            del one["candidate_sampling_probability"]
    else:
        of_candidates += ("candidate_sampling_probability",)
    more = batch_of(5, dimensions=D, seed=3)
    more = {name: more[name] for name in of_candidates}
    more["candidate_mask"] = np.array([True, True, False, True, True])
    memory = CrossBatchMemory(2 * B * T)
    if kind == "memory":
        more = {
            name: np.resize(value, (B * T, *value.shape[1:]))
            for name, value in more.items()
        }
        memory(**more, training=True)

    def losses(batch):
        joined = {name: batch[name] for name in more}
        if kind == "memory":
            joined = memory(**joined)
        else:
            if kind == "catalogue":
                mask = joined["candidate_mask"]
                joined["candidate_mask"] = keras.ops.zeros_like(mask)
            joined = {
                name: keras.ops.concatenate([joined[name], more[name]])
                for name in more
            }
        return ops.in_batch_softmax_loss(**{**batch, **joined})

    for name in of_candidates:
        rows[name] = np.concatenate([rows[name], more[name]])
    rows["candidate_mask"] = np.concatenate(
        [np.full(8, kind != "catalogue"), more["candidate_mask"]]
    )
    check(losses, given if kind == "catalogue" else spoiled(given), rows)


def test_a_batch_of_padding_alone():
    given, _ = sequences()
    given["mask"] = np.zeros((B, T), bool)
    value, gradients = gradients_of(
        lambda batch: ops.in_batch_softmax_loss(**batch), given
    )
    assert value == 0.0
    assert not any(gradient.any() for gradient in gradients.values())


def functional():
    """Returns a model that maps the queries by a matrix, and its rows."""
    given, rows = sequences()
    inputs = {
        name: keras.Input(v.shape[1:], dtype=str(v.dtype), name=name)
        for name, v in given.items()
    }
    dense = keras.layers.Dense(D, use_bias=False)
    softmax = InBatchNegativeSoftmax(temperature=0.5)
    query = dense(inputs["query"])
    losses = softmax(**ops.positions(**{**inputs, "query": query}))
    model = keras.Model(inputs, losses)
    model.compile(keras.optimizers.SGD(0.1), InBatchNegativeLoss())
    return model, dense, given, rows


def test_a_step_of_sgd_is_by_the_mean_over_the_valid_positions():
    model, dense, given, rows = functional()
    before = helpers.to_numpy(dense.kernel)
    inputs = rows["query"]
    rows["query"] = inputs @ before
    losses, gradients = oracle.softmax_loss(
        **rows, temperature=0.5, upstream=np.full(8, 1 / 8)
    )
    loss = model.fit(given, batch_size=B, verbose=0).history["loss"][0]
    assert loss == pytest.approx(losses.mean(), rel=1e-5)
    step = -0.1 * inputs.T @ gradients["query"]
    assert_close(helpers.to_numpy(dense.kernel), before + step)


def test_a_partial_batch_is_still_refused():
    model, _, given, _ = functional()
    given = {name: np.concatenate([v, v[:2]]) for name, v in given.items()}
    model.fit(inbatch_neg.full_batches(given, B), shuffle=False, verbose=0)
    with pytest.raises(inbatch_neg.PartialBatchError, match="full_batches"):
        model.fit(given, batch_size=B, verbose=0)


def test_logits_are_weighted_in_the_loss():
    given, rows = sequences()
    batch = ops.positions(**given)
    weight = batch.pop("sample_weight")
    layer = InBatchNegativeSoftmax(return_logits=True)
    loss = InBatchNegativeLoss()(None, layer(**batch), weight)
    expected = oracle.softmax_loss(**rows)[0].mean()
    assert float(helpers.to_numpy(loss)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.backends("tensorflow")
def test_string_ids():
    given, rows = sequences(())
    for name, values in (
        ("query_ids", "aba"),
        ("candidate_ids", "abcaxxxxbadx"),
    ):
        given[name] = np.array(list(values))
    rows["query_ids"] = np.repeat(given["query_ids"], T)[VALID]
    rows["candidate_ids"] = given["candidate_ids"][VALID]
    given["candidate_ids"] = given["candidate_ids"].reshape(B, T)
    check(lambda batch: ops.in_batch_softmax_loss(**batch), given, rows)


WRONG = np.ones((B, T + 1), "int32")


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"query": np.ones((B, D))}, ValueError, r"`query`.*\(3, 8\)"),
        ({"query": None}, TypeError, "`query`"),
        (
            {"candidate": np.ones((B, T, 5))},
            ValueError,
            r"`candidate`.*3, 4, 5",
        ),
        ({"candidate": np.ones((B, T))}, ValueError, r"`candidate`.*\(3, 4\)"),
        ({"candidate": None}, ValueError, "`candidate`"),
        ({"mask": MASK[:2]}, ValueError, r"`mask`.*\(2, 4\)"),
        ({"mask": None}, ValueError, "`mask`"),
        ({"mask": MASK.astype("int32")}, TypeError, "`mask`.*int32"),
        ({"candidate_ids": WRONG}, ValueError, r"`candidate_ids`.*\(3, 5\)"),
        ({"candidate_ids": WRONG[:, 0]}, ValueError, "`candidate_ids`.*3,"),
        ({"query_ids": WRONG}, ValueError, r"`query_ids`.*\(3, 5\)"),
        ({"query_ids": np.ones(2, "int32")}, ValueError, r"`query_ids`.*\(2,"),
        (
            {"candidate_sampling_probability": np.ones(B)},
            ValueError,
            r"`candidate_sampling_probability`.*\(3,\)",
        ),
    ],
)
def test_what_is_refused(change, error, words):
    given, _ = sequences()
    with pytest.raises(error, match=words) as caught:
        ops.positions(**{**given, **change})
    assert "Received" in str(caught.value)

"""`ops.positions`: the rows that it makes, and the losses of these rows."""

import keras
import numpy as np
import pytest

from inbatch_neg import ops
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


def check(function, given, rows, **options):
    """Compares the mean of the losses with that of the valid rows alone.

    Args:
        function: From the arguments of a softmax to its losses.
        given: What `positions` gets.
        rows: The valid rows, for the oracle.
        options: For the oracle.
    """
    by = ("query", "candidate")
    rest = {name: value for name, value in given.items() if name not in by}
    value, gradients = helpers.value_and_gradients(
        lambda **vectors: keras.ops.mean(
            function(ops.positions(**vectors, **rest))
        ),
        {name: given[name] for name in by},
        compiled=True,
    )
    count = VALID.sum()
    upstream = np.full(count, 1 / count)
    losses, expected = oracle.softmax_loss(**rows, **options, upstream=upstream)
    if options.pop("symmetric", False):
        raise NotImplementedError
    assert_close(value, losses.mean(), name="loss")
    for name in by:
        flat = gradients[name].reshape(B * T, D)
        assert_close(flat[VALID], expected[name][:count], name=name)
        assert not flat[~VALID].any(), name


@pytest.mark.parametrize(
    "names, by_sequence",
    [((), False), *[((name,), False) for name in RULES], (RULES, True)],
)
@pytest.mark.parametrize("nan", [False, True])
def test_padding_is_as_if_it_were_not_there(names, by_sequence, nan):
    given, rows = sequences(names, by_sequence)
    check(
        lambda batch: ops.in_batch_softmax_loss(**batch, temperature=0.5),
        spoiled(given) if nan else given,
        rows,
        temperature=0.5,
    )

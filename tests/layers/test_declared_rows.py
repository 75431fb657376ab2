"""Rows that are declared and not static: checked while the step runs."""

import keras
import numpy as np
import pytest

from inbatch_neg import (
    InBatchNegativeLoss,
    InBatchNegativeSoftmax,
    PartialBatchError,
)
from tests.helpers import assert_all_equal, weights_of

# No other backend has batches of unknown size.
pytestmark = pytest.mark.backends("tensorflow")


def batches(rows, size):
    import tensorflow as tf

    ids = np.arange(rows, dtype="int32") % 9
    data = tf.data.Dataset.from_tensor_slices({"user": ids, "item": ids})
    return data.batch(size)


def two_towers(**compile):
    user = keras.Input((), dtype="int32", name="user")
    item = keras.Input((), dtype="int32", name="item")
    losses = InBatchNegativeSoftmax(batch_size=8, name="softmax")(
        keras.layers.Embedding(9, 4)(user), keras.layers.Embedding(9, 4)(item)
    )
    model = keras.Model({"user": user, "item": item}, losses)
    model.compile("sgd", loss=InBatchNegativeLoss(), **compile)
    return model


@pytest.mark.parametrize("jit_compile", [True, False])
def test_the_last_batch_raises_our_error(jit_compile):
    model = two_towers(jit_compile=jit_compile)
    model.fit(batches(16, 8), verbose=0)
    for method in (model.fit, model.evaluate, model.predict):
        with pytest.raises(PartialBatchError) as caught:
            method(batches(20, 8), verbose=0)
        first_line = str(caught.value).splitlines()[0]
        assert first_line.startswith("Partial batch. Fix: `inbatch_neg.full_")
        assert "(data, 8)" in first_line and "softmax" in first_line
        # The model goes on.
        model.fit(batches(16, 8), verbose=0)
        assert all(np.isfinite(w).all() for w in weights_of(model))


def test_other_errors_of_the_step_stay_themselves():
    model = two_towers(jit_compile=False)
    model.fit(batches(16, 8), verbose=0)
    before = weights_of(model)
    import tensorflow as tf

    ids = np.full(8, 99, "int32")  # not in the table
    wrong = tf.data.Dataset.from_tensor_slices({"user": ids, "item": ids})
    with pytest.raises(tf.errors.InvalidArgumentError):
        model.predict(wrong.batch(8), verbose=0)
    assert_all_equal(weights_of(model), before)

"""The message of an error of ours is what a user reads at the end."""

import keras
import numpy as np
import pytest

import inbatch_neg

BATCH = {"user": np.arange(4), "item": np.arange(4)}


class Model(keras.Model):
    """Keras builds it in the first step, and wraps an error on the way."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong
        self.tower = keras.layers.Embedding(4, 3)
        self.softmax = inbatch_neg.InBatchNegativeSoftmax()
        self.memory = inbatch_neg.CrossBatchMemory(8)

    def call(self, row, training=None):
        query, candidate = self.tower(row["user"]), self.tower(row["item"])
        ids = row["item"]
        if self.wrong == "ids":
            ids = keras.ops.cast(ids, "float32")
        if self.wrong == "vectors":
            candidate = candidate[:, :2]
        if self.wrong == "memory":
            self.memory(candidate, candidate_ids=query, training=training)
        return self.softmax(query, candidate, candidate_ids=ids)


WRONG = {
    "ids": "`candidate_ids` must hold integers",
    "vectors": "`query` and `candidate` must have the same number",
    "memory": "`candidate_ids` must",
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("method", ["fit", "predict", "call"])
def test_the_last_line_of_an_error(wrong, method):
    model = Model(wrong)
    model.compile("sgd", loss=inbatch_neg.InBatchNegativeLoss())
    batches = inbatch_neg.full_batches(BATCH, 4)
    with pytest.raises(Exception) as caught:
        if method == "call":
            model(BATCH)
        else:
            getattr(model, method)(batches, verbose=0)
    last = str(caught.value).splitlines()[-1]
    assert WRONG[wrong] in last and "Received: " in last, caught.value


def test_the_arguments_stay_at_an_error_of_others():
    class Broken(keras.layers.Layer):
        def call(self, ids):
            raise ArithmeticError("of the user's own")

    tower = inbatch_neg.ChunkedTower(Broken(), 2)
    with pytest.raises(Exception, match="of the user's own(.|\n)*Arguments"):
        tower(np.arange(4))

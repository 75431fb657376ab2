"""The metrics within a batch."""

import keras
import numpy as np
import pytest

import inbatch_neg

LOGITS = np.array(
    [
        [3.0, 1.0, 2.0, 0.0],  # rank 1
        [1.0, 1.0, 0.0, 0.0],  # a tie: 2
        [0.0, 0.0, 0.0, 0.0],  # collapsed: 4
        [np.nan, 0.0, 0.0, 0.0],  # no number: 4
        [1.0, -1e30, 2.0, -1e30],  # masked ones are behind: 2
    ],
    "float32",
)
RANKS = np.array([1, 2, 4, 4, 2])


@pytest.mark.parametrize("k", (1, 2, 3, 4, 9))
@pytest.mark.parametrize("weights", (None, [1.0, 0.5, 2.0, 0.0, 3.0]))
def test_top_k_accuracy(k, weights):
    metric = inbatch_neg.InBatchTopKAccuracy(k)
    metric.update_state(None, LOGITS[:2], weights and weights[:2])
    metric.update_state(None, LOGITS[2:], weights and weights[2:])
    expected = np.average(RANKS <= k, weights=weights)
    assert float(metric.result()) == pytest.approx(expected)


def test_mean_reciprocal_rank():
    metric = inbatch_neg.InBatchMeanReciprocalRank()
    metric.update_state(None, LOGITS)
    assert float(metric.result()) == pytest.approx(np.mean(1 / RANKS))
    metric.reset_state()
    assert float(metric.result()) == 0.0


@pytest.mark.parametrize("shape", ((3,), (3, 1), (3, 2, 2)))
def test_refuses_what_is_no_logits(shape):
    with pytest.raises(ValueError, match="return_logits=True"):
        inbatch_neg.InBatchTopKAccuracy()(None, np.zeros(shape))


def test_refuses_k():
    with pytest.raises(ValueError, match="`k` must be"):
        inbatch_neg.InBatchTopKAccuracy(0)


def test_config():
    metric = inbatch_neg.InBatchTopKAccuracy(5, name="five")
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert (again.k, again.name) == (5, "five")
    assert inbatch_neg.InBatchTopKAccuracy(3).name == "in_batch_top_3_accuracy"


def test_in_fit():
    query, item = keras.Input((4,)), keras.Input((4,))
    tower = keras.layers.Dense(4)
    softmax = inbatch_neg.InBatchNegativeSoftmax(return_logits=True)
    model = keras.Model([query, item], softmax(tower(query), item))
    rng = np.random.default_rng(0)
    model.compile(
        "sgd",
        loss=inbatch_neg.InBatchNegativeLoss(),
        metrics=[
            inbatch_neg.InBatchTopKAccuracy(2),
            inbatch_neg.InBatchMeanReciprocalRank(),
        ],
    )
    rows = rng.normal(size=(2, 16, 4)).astype("float32")
    # Labels that Keras wants are ignored.
    history = model.fit(list(rows), np.zeros(16), batch_size=8, verbose=0)
    for name in ("in_batch_top_2_accuracy", "in_batch_mean_reciprocal_rank"):
        assert 0.0 < history.history[name][0] < 1.0

"""Negatives by rotation: the logits, the shifts, and training with them."""

import keras
import numpy as np
import pytest

import inbatch_neg
from inbatch_neg import ops
from tests import models, oracle
from tests.helpers import (
    BACKEND,
    assert_close,
    batch_of,
    to_numpy,
    value_and_gradients,
)

# What the article that the rotation comes from prints for its two tensors.
ARTICLE = np.array([[2, 3], [5, 6], [7, 1], [3, 4]], "float32")
ARTICLE_LOGITS = [
    [0.99999976, 0.99430907, 0.6667947],
    [1.0000001, 0.7423931, 0.99868774],
    [0.99999994, 0.70710677, 0.6667947],
    [1.0, 0.9984603, 0.99868774],
]


def test_the_table_of_the_article():
    vectors = keras.utils.normalize(ARTICLE, axis=1)
    logits = ops.rotation_logits(vectors, vectors, (1, 2))
    np.testing.assert_allclose(to_numpy(logits), ARTICLE_LOGITS, atol=1e-6)


@pytest.mark.parametrize("shifts", [[1], [4, 2], [-1, 7, 1]])
def test_values_and_gradients(shifts):
    batch = {n: batch_of(5)[n] for n in ("query", "candidate")}
    shape = (5, 1 + len(shifts))
    upstream = np.random.default_rng(1).normal(size=shape)
    value, gradients = value_and_gradients(
        lambda **t: ops.rotation_logits(**t, shifts=shifts),
        batch,
        upstream,
        compiled=True,
    )
    expected, d_expected = oracle.rotation_logits(**batch, shifts=shifts)
    assert_close(value, expected, 1e-6)
    _, d_expected = oracle.rotation_logits(
        **batch, shifts=shifts, upstream=upstream
    )
    for name in batch:
        assert_close(gradients[name], d_expected[name], 1e-6, name)


def test_shifts_as_a_tensor():
    batch = {n: batch_of(5)[n] for n in ("query", "candidate")}
    shifts = keras.ops.convert_to_tensor([1, 3], dtype="int32")
    expected, _ = oracle.rotation_logits(**batch, shifts=[1, 3])
    assert_close(
        to_numpy(ops.rotation_logits(**batch, shifts=shifts)), expected, 1e-6
    )


def test_float64():
    batch = {
        n: batch_of(5)[n].astype("float64") for n in ("query", "candidate")
    }
    logits = to_numpy(ops.rotation_logits(**batch, shifts=[2]))
    exact = BACKEND != "jax"
    assert logits.dtype == ("float64" if exact else "float32")
    expected, _ = oracle.rotation_logits(**batch, shifts=[2])
    assert_close(logits, expected, 1e-13 if exact else 1e-6)


def numbered(rows, dimensions=None):
    """Returns vectors whose score (i, j) tells i and j."""
    query = np.zeros((rows, 2), "float32")
    query[:, 0] = 1
    query[:, 1] = np.arange(rows) * 1000
    candidate = np.ones((rows, 2), "float32")
    candidate[:, 0] = np.arange(rows)
    return query, candidate


def columns_of(logits, rows):
    """Returns the number of the candidate in each place of the logits."""
    return np.round(to_numpy(logits)).astype(int) - (
        1000 * np.arange(rows)[:, None]
    )


@pytest.mark.parametrize("rows, count", [(12, 4), (12, 11), (13, 5), (2, 1)])
def test_shifts_of_the_layer(rows, count):
    layer = inbatch_neg.InBatchNegativeSoftmax(
        count, return_logits=True, seed=3
    )
    seen = set()
    for _ in range(8):
        columns = columns_of(layer(*numbered(rows)), rows)
        assert columns.shape == (rows, 1 + count)
        shifts = (columns - np.arange(rows)[:, None]) % rows
        # The same shifts for all rows; the positive first.
        np.testing.assert_array_equal(shifts, shifts[:1].repeat(rows, 0))
        shifts = shifts[0]
        assert shifts[0] == 0
        assert 0 not in shifts[1:]
        assert len(set(shifts[1:])) == count
        for k, shift in enumerate(shifts[1:]):
            assert k * rows / count <= shift < (k + 1) * rows / count
        seen.add(tuple(shifts))
    choices = np.prod(
        [
            np.sum(
                [
                    k * rows / count <= s < (k + 1) * rows / count
                    for s in range(1, rows)
                ]
            )
            for k in range(count)
        ]
    )
    assert len(seen) > 1 or choices == 1


def test_every_shift_comes_up():
    layer = inbatch_neg.InBatchNegativeSoftmax(2, return_logits=True, seed=0)
    seen = set()
    for _ in range(80):
        columns = columns_of(layer(*numbered(7)), 7)
        seen.update(columns[0, 1:])
    assert seen == {1, 2, 3, 4, 5, 6}


def test_seed():
    def draws(seed):
        layer = inbatch_neg.InBatchNegativeSoftmax(
            3, return_logits=True, seed=seed
        )
        return [to_numpy(layer(*numbered(40))).tolist() for _ in range(3)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(None) != draws(None)


def logits_of(batch, **arguments):
    layer = inbatch_neg.InBatchNegativeSoftmax(return_logits=True, **arguments)
    weightless = {k: v for k, v in batch.items() if k != "sample_weight"}
    return to_numpy(layer(**weightless))


def expected_logits(batch, shifts, temperature):
    """Returns the logits by definition, and which are left out."""
    rows, candidates = len(batch["query"]), len(batch["candidate"])
    logits = np.zeros((rows, 1 + len(shifts) + candidates - rows))
    left_out = np.zeros_like(logits, bool)
    for i in range(rows):
        negatives = oracle.negatives_of(
            i,
            candidates,
            batch["candidate_ids"],
            batch["query_ids"],
            batch["candidate_mask"],
        )
        columns = [i] + [(i + s) % rows for s in shifts]
        columns += range(rows, candidates)
        for place, j in enumerate(columns):
            logits[i, place] = batch["query"][i] @ batch["candidate"][
                j
            ] / temperature - np.log(batch["candidate_sampling_probability"][j])
            left_out[i, place] = j != i and j not in negatives
    return logits, left_out


@pytest.mark.parametrize("candidates", [6, 8])
@pytest.mark.parametrize("count", [None, 5])
def test_layout_of_the_logits(candidates, count):
    # Five of five rotations are all of them, in order.
    batch = batch_of(6, candidates)
    logits = logits_of(batch, temperature=0.5, num_negatives=count)
    expected, left_out = expected_logits(batch, range(1, 6), 0.5)
    assert logits.dtype == "float32"
    assert left_out.any() and not left_out.all()
    np.testing.assert_allclose(
        logits[~left_out], expected[~left_out], rtol=2e-5, atol=1e-5
    )
    assert np.all(np.isfinite(logits))
    assert np.all(logits[left_out] < -1e9)


@pytest.mark.parametrize("count", [None, 5])
def test_losses_equal_the_softmax_of_the_logits(count):
    batch = batch_of(6, 8)
    layer = inbatch_neg.InBatchNegativeSoftmax(count, temperature=0.5)
    # Five of five rotations are all negatives.
    expected, _ = oracle.softmax_loss(**batch, temperature=0.5)
    assert_close(to_numpy(layer(**batch)), expected)


@pytest.mark.parametrize("return_logits", [False, True])
@pytest.mark.parametrize("count", [None, 5])
def test_gradients_of_the_layer(count, return_logits):
    batch = batch_of(6, 8)
    weight = batch.pop("sample_weight")
    layer = inbatch_neg.InBatchNegativeSoftmax(
        count, temperature=0.5, return_logits=return_logits
    )
    loss = inbatch_neg.InBatchNegativeLoss(reduction="sum")

    def total(query, candidate):
        rest = {
            k: v for k, v in batch.items() if k not in ("query", "candidate")
        }
        if return_logits:
            return loss(None, layer(query, candidate, **rest), weight)
        return loss(None, layer(query, candidate, **rest, sample_weight=weight))

    by = {n: batch[n] for n in ("query", "candidate")}
    # `training` is not said, so these gradients are asked for afterwards.
    value, gradients = value_and_gradients(total, by)
    expected, d_expected = oracle.softmax_loss(
        **batch, sample_weight=weight, temperature=0.5
    )
    assert_close(value, expected.sum())
    for name in by:
        assert_close(gradients[name], d_expected[name], name=name)


def trained(layer, loss, labels=None, epochs=2):
    keras.utils.set_random_seed(5)
    model = models.two_towers(layer)
    model.compile(keras.optimizers.Adam(0.05), loss=loss)
    data = models.interactions(64)
    data = (data,) if labels is None else (data, labels)
    data = inbatch_neg.full_batches(data, 16)
    losses = models.fit(model, data, epochs=epochs)["loss"]
    return model.get_weights(), losses


def test_categorical_crossentropy_trains_the_same():
    count = 3
    labels = np.zeros((64, 1 + count), "float32")
    labels[:, 0] = 1

    def layer(return_logits):
        return inbatch_neg.InBatchNegativeSoftmax(
            count, temperature=0.2, return_logits=return_logits, seed=7
        )

    ours, our_losses = trained(layer(True), inbatch_neg.InBatchNegativeLoss())
    kerass, keras_losses = trained(
        layer(True),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        labels,
    )
    direct, _ = trained(layer(False), inbatch_neg.InBatchNegativeLoss())
    np.testing.assert_allclose(our_losses, keras_losses, rtol=1e-5)
    assert our_losses[-1] < our_losses[0]
    for one, other, third in zip(ours, kerass, direct):
        np.testing.assert_allclose(one, other, atol=1e-4)
        np.testing.assert_allclose(one, third, atol=1e-4)


class Recorder(keras.layers.Layer):
    """Adds the candidate of row 0's only negative to a variable's place."""

    def build(self, shape):
        self.step = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self.seen = self.add_weight(
            shape=(12,), initializer="zeros", trainable=False
        )

    def call(self, logits):
        here = keras.ops.one_hot(self.step, 12)
        self.seen.assign(self.seen + here * logits[0, 1])
        self.step.assign(self.step + 1)
        return logits


def test_fresh_shifts_at_every_compiled_step():
    def shifts():
        query = keras.Input((2,))
        candidate = keras.Input((2,))
        layer = inbatch_neg.InBatchNegativeSoftmax(
            1, return_logits=True, seed=11
        )
        recorder = Recorder()
        dense = keras.layers.Dense(2, kernel_initializer="identity")
        logits = recorder(layer(dense(query), candidate))
        model = keras.Model([query, candidate], logits)
        model.compile(
            keras.optimizers.SGD(0.0), loss=inbatch_neg.InBatchNegativeLoss()
        )
        vectors = numbered(16)
        data = tuple(np.tile(v, (6, 1)) for v in vectors)
        models.fit(model, inbatch_neg.full_batches((data,), 16), epochs=2)
        return to_numpy(recorder.seen)

    first = shifts()
    # Row 0 has query (1, 0): its logits are the number of the candidate.
    assert np.all((first >= 1) & (first <= 15))
    assert len(set(first.tolist())) >= 4
    np.testing.assert_array_equal(first, shifts())

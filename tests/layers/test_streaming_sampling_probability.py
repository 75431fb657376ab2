"""The estimates against a loop over the definition, and against the truth."""

import keras
import numpy as np
import pytest

import inbatch_neg
from inbatch_neg import StreamingSamplingProbability
from tests import models
from tests.helpers import assert_all_equal, to_numpy
from tests.layers.test_hashing import buckets_of


def estimate(layer, ids, training=False):
    return to_numpy(layer(np.asarray(ids), training=training))


def weights(layer):
    return [to_numpy(weight) for weight in layer.weights]


class Oracle:
    """The definition in float64, a dict entry for each id, no hashing."""

    def __init__(self, rate):
        self.rate, self.clock = rate, 0
        self.last, self.sum, self.weight = {}, {}, {}

    def learn(self, ids):
        self.clock += len(ids)
        ids = [int(i) for i in ids]
        for i in set(ids):
            count = ids.count(i)
            gap = (self.clock - self.last.get(i, 0)) / count
            for _ in range(count):  # each occurrence alone
                self.sum[i] = (1 - self.rate) * self.sum.get(
                    i, 0.0
                ) + self.rate * gap
                self.weight[i] = (1 - self.rate) * self.weight.get(
                    i, 0.0
                ) + self.rate
            self.last[i] = self.clock

    def estimate(self, ids):
        return [
            self.weight[int(i)] / self.sum[int(i)]
            if int(i) in self.sum
            else 1 / (self.clock + 1)
            for i in ids
        ]


@pytest.mark.parametrize(("rate", "hashes"), [(0.01, 3), (0.3, 1), (1.0, 3)])
def test_equals_the_definition(rate, hashes):
    layer = StreamingSamplingProbability(
        50_021, learning_rate=rate, num_hashes=hashes
    )
    oracle = Oracle(rate)
    random = np.random.default_rng(0)
    everyone = np.arange(20)
    for ids in buckets_of(everyone, 50_021, hashes):
        assert len(set(ids)) == 20  # or the ids would share buckets
    for step in range(30):
        ids = np.minimum(random.geometric(0.3, 16), 18)
        got = estimate(layer, ids, training=True)
        oracle.learn(ids)
        np.testing.assert_allclose(got, oracle.estimate(ids), rtol=2e-5)
        if step == 5:  # some ids are new by then
            np.testing.assert_allclose(
                estimate(layer, everyone), oracle.estimate(everyone), rtol=2e-5
            )
    np.testing.assert_allclose(
        estimate(layer, everyone), oracle.estimate(everyone), rtol=2e-5
    )
    assert got.dtype == np.float32 and got.shape == (16,)


def test_starts_as_an_exact_count():
    # 10,000 times less weight than in the default, so counts stay counts.
    layer = StreamingSamplingProbability(1009, learning_rate=1e-6)
    first = np.array([3, 3, 3, 5])
    np.testing.assert_allclose(
        estimate(layer, first, training=True), [0.75, 0.75, 0.75, 0.25]
    )
    for ids in ([5, 5, 5, 5], [3, 5, 9, 9], [3, 3, 5, 9]):
        last = estimate(layer, ids, training=True)
    np.testing.assert_allclose(last, [6 / 16, 6 / 16, 7 / 16, 3 / 16], 1e-4)


def test_no_bias_from_repeats_in_a_batch():
    # They hold 230 times an id of probability 0.9, 1/B is 0.004.
    rows = 256
    truth = np.array([0.9, 0.08, 0.015, 0.005])
    layer = StreamingSamplingProbability(1009)
    random = np.random.default_rng(0)
    found = []
    for step in range(120):
        layer(random.choice(4, rows, p=truth), training=True)
        if step >= 50 and step % 10 == 0:
            found.append(estimate(layer, np.arange(4)))
    bias = np.mean(found, axis=0) / truth - 1
    # Noise: an id that has come n times is known to 1 / sqrt(n).
    noise = 4 / np.sqrt(120 * rows * truth) + 0.01
    assert (abs(bias) < noise).all(), (bias, noise)


def test_a_count_per_batch_would_saturate():
    """What the estimate of Algorithm 2, once in so many batches, cannot say."""
    layer = StreamingSamplingProbability(1009)
    ids = np.array([1] * 6 + [2] * 2)
    for _ in range(20):
        got = estimate(layer, ids, training=True)
    # Both come in every batch: an interval of one batch for both.
    np.testing.assert_allclose(got, [0.75] * 6 + [0.25] * 2, rtol=1e-5)


def test_does_not_depend_on_the_batch_size():
    small, large = (StreamingSamplingProbability(1009) for _ in range(2))
    mixed = StreamingSamplingProbability(1009)
    ids = np.tile([1, 1, 2, 3], 64)
    for step in range(4):
        parts = np.split(ids, 16)
        for part in parts:
            small(part, training=True)
        large(ids, training=True)
        for part in parts if step % 2 else [ids]:
            mixed(part, training=True)
    for layer in (small, large, mixed):
        np.testing.assert_allclose(
            estimate(layer, [1, 1, 2, 3]), [0.5, 0.5, 0.25, 0.25], rtol=1e-3
        )


def test_follows_a_shift():
    layer = StreamingSamplingProbability(1009, learning_rate=0.05)
    for _ in range(50):
        layer(np.array([1] * 7 + [2]), training=True)
    for _ in range(50):
        layer(np.array([1] + [2] * 7), training=True)
    np.testing.assert_allclose(
        estimate(layer, [1, 2]), [0.125, 0.875], rtol=0.1
    )


def test_never_seen_ids():
    layer = StreamingSamplingProbability(50_021)
    assert estimate(layer, [5, 6, 7]).tolist() == [1.0, 1.0, 1.0]
    for _ in range(3):
        layer(np.array([1, 1, 2]), training=True)
    np.testing.assert_allclose(estimate(layer, [5, 6, 7]), [0.1] * 3)


def test_shared_buckets_add_up_and_more_hashes_help():
    layer = StreamingSamplingProbability(1)
    layer(np.array([1, 2, 3, 4]), training=True)
    assert estimate(layer, [9, 9, 9]).tolist() == [1.0, 1.0, 1.0]
    ids = np.arange(256)
    errors = []
    for hashes in (1, 4):
        layer = StreamingSamplingProbability(512, num_hashes=hashes)
        for _ in range(5):
            layer(ids, training=True)
        got = estimate(layer, ids)
        assert (got > 0.99 / 256).all()  # collisions only add
        errors.append(np.mean(got * 256 - 1))
    # 256 ids in 512 buckets: 0.5 others in a bucket on average.
    assert 0.3 < errors[0] < 0.7
    assert errors[1] < 0.1 * errors[0]


def test_inference_learns_nothing():
    layer = StreamingSamplingProbability(1009)
    layer(np.array([1, 2, 2]), training=True)
    before = weights(layer)
    for training in (False, None):
        layer(np.array([2, 2, 2]), training=training)
    assert_all_equal(before, weights(layer))
    assert layer.trainable_weights == []


def two_towers(estimate):
    softmax = inbatch_neg.InBatchNegativeSoftmax()
    model = models.two_towers(softmax, estimate=estimate)
    model.compile("sgd", loss=inbatch_neg.InBatchNegativeLoss())
    return model


def test_learns_in_fit_not_in_evaluate_and_is_saved(tmp_path):
    layer = StreamingSamplingProbability(
        1009, learning_rate=0.02, num_hashes=2, name="estimate"
    )
    model = two_towers(layer)
    rows = {"user": np.arange(32) % 40, "item": np.arange(32) % 8}
    data = inbatch_neg.full_batches(rows, 16)
    models.fit(model, data, epochs=3)
    assert int(to_numpy(layer.weights[0])) == 96  # rows so far
    np.testing.assert_allclose(
        estimate(layer, np.arange(8)), [1 / 8] * 8, rtol=1e-5
    )
    before = weights(layer)
    loss = model.evaluate(data, verbose=0)
    model.predict(data, verbose=0)
    assert_all_equal(before, weights(layer))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_layer("estimate").get_config() == layer.get_config()
    assert_all_equal(before, weights(again.get_layer("estimate")))
    assert again.evaluate(data, verbose=0) == pytest.approx(loss, rel=1e-6)
    models.fit(again, data)  # goes on from there
    assert int(to_numpy(again.get_layer("estimate").weights[0])) == 128


def test_half_precision_policies_change_nothing():
    def run():
        layer = StreamingSamplingProbability(1009)
        for _ in range(20):
            layer(np.repeat([1, 2, 3, 4], 4), training=True)
        return layer(np.array([1, 2, 9, 9]))

    expected = to_numpy(run())
    for policy in ("mixed_float16", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        got = run()
        assert keras.backend.standardize_dtype(got.dtype) == "float32"
        np.testing.assert_allclose(to_numpy(got), expected, rtol=1e-6)
    np.testing.assert_allclose(expected[2], 1 / (20 * 16 + 1), rtol=1e-6)


def test_the_clock_goes_on_beyond_32_bits():
    layer = StreamingSamplingProbability(1009, learning_rate=1.0)
    layer(np.array([1, 2, 3, 4]), training=True)
    clock, last = layer.weights[:2]
    clock.assign(2**31 - 4)
    last.assign(np.full(1009, 2**31 - 8))
    for _ in range(3):  # on JAX, wraps in the first
        got = estimate(layer, [1, 1, 2, 3], training=True)
        np.testing.assert_array_equal(got[2:] <= 0.25, True)
    np.testing.assert_allclose(got, [0.5, 0.5, 0.25, 0.25])
    np.testing.assert_allclose(
        estimate(layer, [7, 8, 9]), [2.0**-31] * 3, rtol=1e-6
    )


# Backends.


@pytest.mark.backends("tensorflow", "torch")  # JAX cuts 64-bit ids
def test_64_bit_ids_differ():
    layer = StreamingSamplingProbability(50_021)
    ids = np.array([7, 7 + 2**32, 7 + 2**32, 7 + 2**33])
    np.testing.assert_allclose(
        estimate(layer, ids, training=True), [0.25, 0.5, 0.5, 0.25]
    )


@pytest.mark.backends("tensorflow")
def test_strings():
    layer = StreamingSamplingProbability(50_021)
    ids = np.array(["a", "b", "b", "c"])
    np.testing.assert_allclose(
        estimate(layer, ids, training=True), [0.25, 0.5, 0.5, 0.25]
    )


@pytest.mark.backends("tensorflow")
def test_unknown_number_of_rows_and_xla():
    import tensorflow as tf

    eager, traced, xla = (StreamingSamplingProbability(1009) for _ in range(3))
    for layer in (traced, xla):
        layer.build()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
    def unknown(ids):
        return traced(ids, training=True)

    @tf.function(jit_compile=True)
    def compiled(ids):
        return xla(ids, training=True)

    for ids in ([1, 1, 2, 3], [2, 2, 2, 5]):
        ids = np.array(ids, "int32")
        expected = estimate(eager, ids, training=True)
        for run in (unknown, compiled):
            np.testing.assert_allclose(run(ids).numpy(), expected, rtol=1e-6)
    assert unknown(np.array([1, 2], "int32")).shape == (2,)


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_buckets": 0}, ValueError, "num_buckets"),
        ({"num_buckets": 10.0}, TypeError, "num_buckets"),
        ({"num_buckets": True}, TypeError, "num_buckets"),
        ({"num_buckets": 9, "num_hashes": 0}, ValueError, "num_hashes"),
        ({"num_buckets": 9, "num_hashes": 1.5}, TypeError, "num_hashes"),
        ({"num_buckets": 2**30, "num_hashes": 2}, ValueError, "below 2"),
        ({"num_buckets": 9, "learning_rate": 0.0}, ValueError, "learning_rate"),
        ({"num_buckets": 9, "learning_rate": 1.1}, ValueError, r"\(0, 1\]"),
        ({"num_buckets": 9, "learning_rate": "a"}, TypeError, "learning_rate"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        StreamingSamplingProbability(**arguments)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (None, ValueError, "must be passed"),
        (np.array([1.0, 2.0], "float32"), TypeError, "candidate_ids"),
        (np.array([True, False]), TypeError, "candidate_ids"),
        (np.array([[1], [2]]), ValueError, "squeeze"),
        (np.array(3), ValueError, "rows"),
    ],
)
def test_bad_ids(ids, error, message):
    layer = StreamingSamplingProbability(9)
    with pytest.raises(error, match=message):
        layer(ids)
    if ids is not None:
        with pytest.raises(error, match=message):
            layer(keras.KerasTensor(ids.shape, dtype=str(ids.dtype)))


def test_symbolic_shapes():
    layer = StreamingSamplingProbability(9)
    for rows in (None, 5):
        out = layer(keras.Input((), batch_size=rows, dtype="int32"))
        assert out.shape == (rows,) and out.dtype == "float32"

"""On TensorFlow, data of unknown length trains as data of known length does.

Keras runs one more step in every epoch to find the end of the data, and what
does not depend on the batch runs in it.
"""

import keras
import numpy as np
import pytest

import inbatch_neg
from tests import models
from tests.helpers import assert_all_equal, to_numpy

pytestmark = pytest.mark.backends("tensorflow")

ROWS, SIZE, EPOCHS = 96, 16, 3
DATA = models.interactions(ROWS)


def batch(index):
    rows = slice(SIZE * index, SIZE * index + SIZE)
    return {name: ids[rows] for name, ids in DATA.items()}


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return ROWS // SIZE

    def __getitem__(self, index):
        return batch(index)


def function():
    for index in range(ROWS // SIZE):
        yield batch(index)


def from_generator(rows):
    import tensorflow as tf

    spec = tf.TensorSpec((rows,), tf.int32)
    return tf.data.Dataset.from_generator(
        function, output_signature=dict.fromkeys(DATA, spec)
    )


def rows_of_unknown_number():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(DATA).filter(lambda _: True)


# What `fit` gets for one epoch, or for all of them. Without `full_batches` the
# number of rows is unknown too, unless the data declares it.
SOURCES = {
    "generator": lambda: ((batch,) for batch in function()),
    "tf.data, static": lambda: from_generator(SIZE),
    "full PyDataset": lambda: inbatch_neg.full_batches(
        Batches(), SIZE, batched=True
    ),
    "full function": lambda: inbatch_neg.full_batches(
        function, SIZE, batched=True
    ),
    "full tf.data": lambda: inbatch_neg.full_batches(
        rows_of_unknown_number(), SIZE
    ),
}
ONCE = ("generator",)


def train(model, source, epochs=EPOCHS):
    """Trains by a source; returns the history of every epoch."""
    if source not in ONCE:
        return models.fit(model, SOURCES[source](), epochs=epochs)
    histories = [models.fit(model, SOURCES[source]()) for _ in range(epochs)]
    return {
        name: [value for one in histories for value in one[name]]
        for name in histories[0]
    }


def train_on_arrays(model, epochs=EPOCHS):
    data = inbatch_neg.full_batches(DATA, SIZE)
    return models.fit(model, data, epochs=epochs)


def every_state(chunk_size=5, **arguments):
    """Returns a model with every layer that assigns in its call."""
    keras.utils.set_random_seed(1)
    tower = keras.Sequential(
        [keras.layers.Dense(8), keras.layers.Dropout(0.5, seed=1)]
    )
    model = models.two_towers(
        inbatch_neg.InBatchNegativeSoftmax(
            4, temperature=0.5, seed=3, batch_size=SIZE
        ),
        between=inbatch_neg.ChunkedTower(tower, chunk_size),
        memory=inbatch_neg.CrossBatchMemory(3 * SIZE, warmup_steps=20),
        estimate=inbatch_neg.StreamingSamplingProbability(200, num_hashes=2),
    )
    # Of the optimizer, the number of steps does not matter.
    model.compile(
        keras.optimizers.SGD(0.5),
        loss=inbatch_neg.InBatchNegativeLoss(),
        **{"jit_compile": False, **arguments},
    )
    return model


def variables(model):
    return [to_numpy(variable) for variable in model.variables]


def assert_same_state(model, expected):
    paths = [variable.path for variable in model.variables]
    for name in ("filled", "steps", "clock", "seed_generator_state"):
        assert any(path.endswith(name) for path in paths)
    assert_all_equal(variables(model), variables(expected))


@pytest.mark.parametrize("source", SOURCES)
def test_every_state_waits_for_the_batch(source):
    model, expected = every_state(), every_state()
    train(model, source)
    train_on_arrays(expected)
    assert_same_state(model, expected)


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("full function", {"chunk_size": 32}),  # as one chunk
        ("full function", {"jit_compile": True}),
        ("full function", {"run_eagerly": True}),
        ("full function", {"steps_per_execution": 3}),
    ],
    ids=str,
)
def test_every_way_to_run_a_step(source, arguments):
    model, expected = every_state(**arguments), every_state(**arguments)
    train(model, source)
    train_on_arrays(expected)
    assert_same_state(model, expected)


# One whose number of rows is unknown in the step, and one that declares it.
TWO = ("generator", "full PyDataset")


@pytest.mark.parametrize("source", TWO)
def test_no_empty_slot_is_a_negative(source):
    def compiled(memory):
        keras.utils.set_random_seed(1)
        model = models.two_towers(
            inbatch_neg.InBatchNegativeSoftmax(batch_size=SIZE), memory=memory
        )
        model.compile(
            keras.optimizers.SGD(0.5), loss=inbatch_neg.InBatchNegativeLoss()
        )
        return model

    memory = inbatch_neg.CrossBatchMemory(2 * ROWS)
    model = compiled(memory)
    train(model, source, epochs=1)
    kept = memory(np.ones((SIZE, 8), "float32"), np.ones(SIZE, "int32"))
    filled = to_numpy(kept["candidate_mask"])
    assert filled.tolist() == [True] * (SIZE + ROWS) + [False] * ROWS
    # No row of the data is zeros, as an empty slot is.
    assert np.all(np.any(to_numpy(kept["candidate"])[filled] != 0.0, axis=1))
    expected = compiled(inbatch_neg.CrossBatchMemory(2 * ROWS))
    train_on_arrays(expected, epochs=1)
    data = inbatch_neg.full_batches(DATA, SIZE)
    losses = [one.evaluate(data, verbose=0) for one in (model, expected)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("source", TWO)
def test_the_clock_counts_the_rows(source):
    estimate = inbatch_neg.StreamingSamplingProbability(1000)
    model = models.two_towers(
        inbatch_neg.InBatchNegativeSoftmax(batch_size=SIZE), estimate=estimate
    )
    model.compile("sgd", loss=inbatch_neg.InBatchNegativeLoss())
    train(model, source)
    never_seen = to_numpy(estimate(np.array([2**20], "int32")))
    np.testing.assert_allclose(1.0 / never_seen, [EPOCHS * ROWS + 1])


@pytest.mark.parametrize("source", TWO)
def test_metrics_are_means_over_the_rows(source):
    def compiled():
        keras.utils.set_random_seed(1)
        model = models.two_towers(
            inbatch_neg.InBatchNegativeSoftmax(
                return_logits=True, batch_size=SIZE
            )
        )
        model.compile(
            keras.optimizers.SGD(0.5),
            loss=inbatch_neg.InBatchNegativeLoss(),
            metrics=[
                inbatch_neg.InBatchTopKAccuracy(k=3),
                inbatch_neg.InBatchMeanReciprocalRank(),
            ],
        )
        return model

    found, expected = train(compiled(), source), train_on_arrays(compiled())
    for name in ("in_batch_top_3_accuracy", "in_batch_mean_reciprocal_rank"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize("source", TWO)
def test_an_evaluation_draws_as_often_as_it_has_batches(source):
    model, expected = every_state(), every_state()
    for _ in range(2):
        model.evaluate(SOURCES[source](), verbose=0)
        expected.evaluate(inbatch_neg.full_batches(DATA, SIZE), verbose=0)
    assert_same_state(model, expected)

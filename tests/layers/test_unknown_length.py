"""On TensorFlow, data of unknown length trains as data of known length does.

Keras runs one more step in every epoch to find the end of the data, and what
does not depend on the batch runs in it.
"""

import functools

import keras
import pytest
from numpy.testing import assert_array_equal

import inbatch_neg
from tests import models
from tests.helpers import assert_close, to_numpy

pytestmark = pytest.mark.backends("tensorflow")

ROWS, SIZE, EPOCHS = 96, 16, 2
METRICS = ("in_batch_top_3_accuracy", "in_batch_mean_reciprocal_rank")
CAPACITY = EPOCHS * ROWS + 10  # the memory is not full in the end
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


def train(model, source):
    """Trains by a source; returns the history of every epoch."""
    if source not in ONCE:
        return models.fit(model, SOURCES[source](), epochs=EPOCHS)
    histories = [models.fit(model, SOURCES[source]()) for _ in range(EPOCHS)]
    return {
        name: [value for one in histories for value in one[name]]
        for name in histories[0]
    }


def every_state(chunk_size=5, **arguments):
    """Returns a model with metrics and every layer that assigns in its call."""
    keras.utils.set_random_seed(1)
    tower = keras.Sequential(
        [keras.layers.Dense(8), keras.layers.Dropout(0.5, seed=1)]
    )
    model = models.two_towers(
        inbatch_neg.InBatchNegativeSoftmax(
            4, temperature=0.5, seed=3, batch_size=SIZE, return_logits=True
        ),
        between=inbatch_neg.ChunkedTower(tower, chunk_size),
        memory=inbatch_neg.CrossBatchMemory(CAPACITY, warmup_steps=20),
        estimate=inbatch_neg.StreamingSamplingProbability(200, num_hashes=2),
    )
    # Of the optimizer, the number of steps does not matter.
    model.compile(
        keras.optimizers.SGD(0.5),
        loss=inbatch_neg.InBatchNegativeLoss(),
        metrics=[
            inbatch_neg.InBatchTopKAccuracy(k=3),
            inbatch_neg.InBatchMeanReciprocalRank(),
        ],
        **{"jit_compile": False, **arguments},
    )
    return model


@functools.cache
def trained_on_arrays(chunk_size=5):
    """Returns the expected model, and the history of its epochs."""
    model = every_state(chunk_size)
    data = inbatch_neg.full_batches(DATA, SIZE)
    return model, models.fit(model, data, epochs=EPOCHS)


def assert_same_state(model, expected):
    assert len(model.variables) == len(expected.variables)
    for one, other in zip(model.variables, expected.variables):
        if not one.dtype.startswith("float"):  # counts, ids, seeds
            assert_array_equal(to_numpy(one), to_numpy(other), one.path)
        elif not model.jit_compile:  # XLA draws other numbers
            assert_close(to_numpy(one), to_numpy(other), 1e-5, one.path)


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        *((source, {}) for source in SOURCES),
        ("full PyDataset", {"chunk_size": 32}),  # as one chunk
        ("full PyDataset", {"jit_compile": True}),
        ("full PyDataset", {"run_eagerly": True}),
        ("full PyDataset", {"steps_per_execution": 3}),
    ],
    ids=str,
)
def test_states_and_metrics_wait_for_the_batch(source, arguments):
    model = every_state(**arguments)
    history = train(model, source)
    expected, expected_history = trained_on_arrays(
        arguments.get("chunk_size", 5)
    )
    assert_same_state(model, expected)
    if not model.jit_compile:
        for name in METRICS:
            assert_close(history[name], expected_history[name], 1e-5, name)


def test_the_expected_states():
    model, _ = trained_on_arrays()
    states = {v.path.rsplit("/")[-1]: to_numpy(v) for v in model.variables}
    assert states["steps"] == ROWS // SIZE * EPOCHS
    assert states["filled"] == states["clock"] == ROWS * EPOCHS
    newest_first = DATA["item"].reshape(-1, SIZE)[::-1].reshape(-1)
    ids = [*newest_first.tolist() * EPOCHS, *[0] * 10]
    assert states["candidate_ids"].tolist() == ids
    assert "seed_generator_state" in states


def test_an_evaluation_draws_as_often_as_it_has_batches():
    expected = every_state()
    for _ in range(2):
        expected.evaluate(inbatch_neg.full_batches(DATA, SIZE), verbose=0)
    for source in ("generator", "full PyDataset"):
        model = every_state()
        for _ in range(2):
            model.evaluate(SOURCES[source](), verbose=0)
        assert_same_state(model, expected)

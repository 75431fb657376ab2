"""Every argument of `call` by position and by name, in every kind of call."""

import inspect

import keras
import numpy as np
import pytest

from inbatch_neg import (
    CrossBatchMemory,
    InBatchNegativeSoftmax,
    StreamingSamplingProbability,
)
from tests.helpers import assert_close, batch_of, to_numpy

LAYERS = {
    "softmax": lambda: InBatchNegativeSoftmax(),
    "memory": lambda: CrossBatchMemory(8),
    "estimator": lambda: StreamingSamplingProbability(32),
}


def arguments_of(layer):
    """Returns a value for every tensor argument, in order."""
    batch = batch_of(6)
    names = list(inspect.signature(layer.call).parameters)
    assert names[-1] == "training"
    return {name: batch[name] for name in names[:-1] if name in batch}


def flat(output):
    return [to_numpy(tensor) for tensor in keras.tree.flatten(output)]


def symbolic(arrays):
    return [
        keras.Input(
            batch_shape=array.shape,
            dtype=keras.backend.standardize_dtype(array.dtype),
        )
        for array in arrays
    ]


def functional(name, call, arrays):
    inputs = symbolic(arrays)
    return keras.Model(inputs, call(LAYERS[name](), inputs))(arrays)


def subclassed(name, call, arrays):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = LAYERS[name]()

        def call(self, inputs):
            return call(self.layer, inputs)

    return Model()(arrays)


def eager(name, call, arrays):
    return call(LAYERS[name](), arrays)


@pytest.mark.parametrize("kind", [eager, functional, subclassed])
@pytest.mark.parametrize("name", LAYERS)
def test_positions_and_names(name, kind):
    given = arguments_of(LAYERS[name]())
    arrays = [keras.ops.convert_to_tensor(value) for value in given.values()]

    def by_name(layer, tensors):
        return layer(**dict(zip(given, tensors)))

    def by_position(layer, tensors):
        return layer(*tensors)

    def mixed(layer, tensors):
        count = len(tensors) // 2 + 1
        rest = dict(zip(list(given)[count:], tensors[count:]))
        return layer(*tensors[:count], **rest)

    expected = flat(by_name(LAYERS[name](), arrays))
    for call in (by_name, by_position, mixed):
        found = flat(kind(name, call, arrays))
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_close(one, other)


@pytest.mark.parametrize("kind", [eager, functional])
def test_none_by_position(kind):
    batch = batch_of(6)
    arrays = [
        keras.ops.convert_to_tensor(batch[name])
        for name in ("query", "candidate", "query_ids")
    ]
    expected = InBatchNegativeSoftmax()(*arrays[:2], query_ids=arrays[2])
    found = kind("softmax", lambda f, x: f(x[0], x[1], None, x[2]), arrays)
    assert_close(to_numpy(found), to_numpy(expected))


def test_too_many_and_unknown_arguments():
    layer = InBatchNegativeSoftmax()
    query = keras.Input((4,))
    with pytest.raises(TypeError):
        layer(query, query, ids=query)
    vectors = np.eye(4, dtype="float32")
    with pytest.raises(TypeError):
        layer(vectors, vectors, ids=vectors)

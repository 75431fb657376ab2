"""Reads what `full_batches` returns, whatever it is."""

import functools
import re

import keras
import numpy as np
import pytest

import inbatch_neg

BACKEND = keras.backend.backend()


def to_numpy(nest):
    if isinstance(nest, dict):
        return {name: to_numpy(value) for name, value in nest.items()}
    if isinstance(nest, (tuple, list)):
        return tuple(to_numpy(value) for value in nest)
    if nest is None or isinstance(nest, np.ndarray):
        return nest
    return nest.numpy() if hasattr(nest, "numpy") else np.asarray(nest)


def epoch(dataset):
    """Returns the batches of one iteration, as nests of NumPy arrays."""
    return [to_numpy(batch) for batch in dataset]


def column(batches, name):
    """Returns a column of all batches, one after the other."""
    found = []
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple) else batch
        found.append(x[name] if name is not None else x)
    return np.concatenate(found)


def is_tf_data(dataset):
    return hasattr(dataset, "element_spec")


def assert_static(dataset, rows):
    """On TensorFlow the size must be declared, or its tracing fails."""
    import tensorflow as tf

    assert is_tf_data(dataset)
    for spec in tf.nest.flatten(dataset.element_spec):
        if isinstance(spec, tf.TensorSpec):
            assert spec.shape[0] == rows, dataset.element_spec


def check_refused(column, what, remedy):
    """A column of 10 rows is refused by name, with what it holds and a remedy.

    Nobody is told of a column that was not asked for.
    """
    ids = np.arange(10)
    with pytest.raises((TypeError, ValueError)) as caught:
        inbatch_neg.full_batches({"id": ids, "day": column}, 4)
    message = str(caught.value)
    assert message.startswith("`data['day']` holds "), message
    assert re.search(what, message), message
    assert remedy in message and "`columns=`" in message, message
    batches = epoch(
        inbatch_neg.full_batches({"id": ids, "day": column}, 5, columns=["id"])
    )
    assert [list(batch) for batch in batches] == [["id"], ["id"]]


def two_towers(users=60, items=60, mask=False, **arguments):
    """Returns a compiled model of the inputs "user" and "item"."""
    user = keras.Input((), dtype="int32", name="user")
    item = keras.Input((), dtype="int32", name="item")
    inputs = {"user": user, "item": item}
    if mask:
        inputs["candidate_mask"] = keras.Input(
            (), dtype="bool", name="candidate_mask"
        )
    losses = inbatch_neg.InBatchNegativeSoftmax(**arguments)(
        keras.layers.Embedding(users, 4, name="users")(user),
        keras.layers.Embedding(items, 4, name="items")(item),
        candidate_ids=item,
        candidate_mask=inputs.get("candidate_mask"),
    )
    model = keras.Model(inputs, losses)
    model.compile(
        keras.optimizers.SGD(0.1), loss=inbatch_neg.InBatchNegativeLoss()
    )
    return model


def steps_of(model):
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


one_model = functools.cache(two_towers)


def check_fit(dataset, batches, epochs=2):
    """Trains a two-tower model: so many full batches in every epoch."""
    if BACKEND == "tensorflow":
        assert_static(dataset, 8)
    model = one_model()
    earlier = steps_of(model)
    before = [w.copy() for w in model.get_weights()]
    history = model.fit(dataset, epochs=epochs, shuffle=False, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert any((a != b).any() for a, b in zip(before, model.get_weights()))
    found = steps_of(model) - earlier
    # Keras on TensorFlow also counts the attempt that finds an unknown end.
    assert found in (epochs * batches, epochs * (batches + 1)), found
    if found != epochs * batches:
        assert BACKEND == "tensorflow" and int(dataset.cardinality()) < 0

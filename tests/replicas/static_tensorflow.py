"""A functional model of static shapes for two mirrored replicas.

Prints the symbolic shapes, those of a replica, and what `fit` says of a layer
on top of the logits.
"""

import keras
import numpy as np
import tensorflow as tf

import inbatch_neg

ROWS, DIMENSIONS, CAPACITY = 8, 4, 12


def towers(softmax):
    """Returns the model and its inner outputs: memory and logits."""
    item = keras.Input((DIMENSIONS,), batch_size=ROWS)
    vector = keras.layers.Dense(DIMENSIONS)(item)
    memory = inbatch_neg.CrossBatchMemory(CAPACITY * 2)
    stored = memory(vector)
    logits = softmax(vector, **stored)
    return keras.Model(item, (stored["candidate"], logits))


def show(strategy):
    rows = np.ones((ROWS, DIMENSIONS), "float32")
    make = inbatch_neg.InBatchNegativeSoftmax
    for name, arguments in (
        # 11 is more than the rows of one replica, and fewer than of two.
        ("rotation", {"num_negatives": 11}),
        ("all", {}),
    ):
        with strategy.scope():
            softmax = make(return_logits=True, cross_replica=True, **arguments)
            model = towers(softmax)
        step = tf.function(
            lambda model=model: strategy.run(lambda: model(rows))
        )
        shapes = [
            tuple(one.shape)
            for outputs in step()
            for one in strategy.experimental_local_results(outputs)[1:]
        ]
        symbolic = [tuple(one.shape) for one in model.outputs]
        print(name, symbolic, shapes, flush=True)
    with strategy.scope():
        share = keras.ops.sigmoid(model.outputs[1])  # 0 where masked
        score = keras.layers.Dense(1)(share)
        trained = keras.Model(model.inputs, score)
        trained.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensor_slices(
        (np.tile(rows, (4, 1)), np.ones((4 * ROWS, 1), "float32"))
    )
    data = inbatch_neg.full_batches(data, ROWS * 2)
    history = trained.fit(data, verbose=0)
    finite = np.isfinite(history.history["loss"]).all()
    print("loss is finite:", finite, flush=True)
    with strategy.scope():
        try:
            towers(make(ROWS * 2, cross_replica=True))
        except ValueError as error:
            print(str(error), flush=True)

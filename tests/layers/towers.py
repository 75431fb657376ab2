"""Towers to chunk, and their gradients on the three backends."""

import keras
import numpy as np
from keras import layers, tree

import inbatch_neg
from tests.helpers import BACKEND, to_numpy

WORDS, LENGTH, WIDTH = 11, 5, 4

# How the oracle runs, the tower that is not in chunks: what it gives does not
# depend on it, and TensorFlow would trace it longer than it runs.
ORACLE = "eager" if BACKEND == "tensorflow" else "compiled"
TRAINS = {"run_eagerly": BACKEND == "tensorflow"}


def rows_of(rows, seed=0):
    """Returns inputs of `encoder`: padded ids and floats."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, WORDS, (rows, LENGTH)).astype("int32")
    ids[:, 3:] *= rng.integers(0, 2, (rows, LENGTH - 3)).astype("int32")
    return {
        "ids": ids,
        "x": rng.normal(size=(rows, 3)).astype("float32"),
    }


def inputs(prefix=""):
    """Returns symbolic inputs of `encoder`, with a prefix to their names."""
    return {
        "ids": keras.Input((LENGTH,), dtype="int32", name=f"{prefix}ids"),
        "x": keras.Input((3,), name=f"{prefix}x"),
    }


def encoder(dropout=0.0, dtype=None):
    """Returns a model with an embedding, a mask, attention and a GRU.

    Its outputs are a dict of a tensor and of a tuple of two.
    """
    given = inputs()
    kind = {"dtype": dtype}
    words = layers.Embedding(WORDS, WIDTH, mask_zero=True, **kind)(given["ids"])
    # A bias of the keys has a gradient of 0, which Adam would make noise of.
    attention = layers.MultiHeadAttention(
        2, 2, dropout=dropout, use_bias=False, seed=1, **kind
    )
    hidden = layers.LayerNormalization(**kind)(words + attention(words, words))
    last = layers.GRU(WIDTH, **kind)(hidden)
    pooled = layers.GlobalAveragePooling1D(**kind)(hidden)
    x = layers.Dense(WIDTH, activation="gelu", **kind)(given["x"])
    return keras.Model(
        given,
        {
            "vector": layers.Dense(WIDTH, **kind)(
                layers.Concatenate(**kind)([last, pooled, x])
            ),
            "parts": (last, x),
        },
    )


def light_encoder(dropout=0.0):
    """Returns a model as `encoder`, of few operations, which compiles fast."""
    given = inputs()
    words = layers.Embedding(WORDS, WIDTH, mask_zero=True)(given["ids"])
    pooled = layers.GlobalAveragePooling1D()(words)
    x = layers.Dense(WIDTH, activation="tanh")(given["x"])
    joined = layers.Concatenate()([pooled, x])
    if dropout:
        joined = layers.Dropout(dropout, seed=1)(joined)
    vector = layers.Dense(WIDTH)(joined)
    return keras.Model(given, {"vector": vector, "parts": (pooled, x)})


class Wrapped(keras.Model):
    """A subclassed model of a layer, so that Keras calls it as it does."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, inputs, training=None):
        return self.layer(inputs, training=training)


class ByHand(keras.Model):
    """The tower on one slice of the rows after the other: the oracle."""

    def __init__(self, tower, chunk_size):
        super().__init__()
        self.tower = tower
        self.chunk_size = chunk_size

    def call(self, inputs, training=None):
        rows = tree.flatten(inputs)[0].shape[0]
        found = [
            self.tower(
                tree.map_structure(
                    lambda x, start=start: x[start : start + self.chunk_size],
                    inputs,
                ),
                training=training,
            )
            for start in range(0, rows, self.chunk_size)
        ]
        return tree.map_structure(
            lambda *parts: keras.ops.concatenate(parts), *found
        )


def chunked(tower, chunk_size):
    """Returns a model of the tower in chunks."""
    return Wrapped(inbatch_neg.ChunkedTower(tower, chunk_size))


def _loss(outputs):
    """Returns a sum in which each entry of each output has its own weight."""
    total = 0.0
    for number, output in enumerate(tree.flatten(outputs)):
        size = int(np.prod(output.shape))
        weights = np.cos(np.arange(size) + number).reshape(output.shape)
        output = keras.ops.cast(output, "float32")
        weights = keras.ops.convert_to_tensor(weights.astype("float32"))
        total += keras.ops.sum(output * weights)
    return total


def run(model, rows, training=True, way="compiled"):
    """Returns what a model makes of rows; its state moves on.

    Args:
        model: Subclassed, as of this module.
        rows: Nest of arrays.
        training: As for the model.
        way: "compiled", "xla" or "eager".

    Returns:
        A dict: "outputs", a list; "weights" and "inputs", the gradients by
        trainable weights and by inputs that are floats; and the "state" after
        the call. Gradients that do not exist are None.
    """
    rows = tree.map_structure(keras.ops.convert_to_tensor, rows)
    # JAX compiles each operation of this call.
    if not all(layer.built for layer in model.layers):
        with keras.StatelessScope():
            model(rows)
    leaves = tree.flatten(rows)
    floats = [
        place
        for place, x in enumerate(leaves)
        if keras.backend.standardize_dtype(x.dtype).startswith("float")
    ]

    def outputs_of(values):
        again = list(leaves)
        for place, value in zip(floats, values):
            again[place] = value
        outputs = model(tree.pack_sequence_as(rows, again), training=training)
        return _loss(outputs), tree.flatten(outputs)

    outputs, by_weights, by_inputs = _BY_BACKEND[BACKEND](
        model, outputs_of, [leaves[place] for place in floats], way
    )
    return {
        "outputs": [to_numpy(x) for x in outputs],
        "weights": [None if x is None else to_numpy(x) for x in by_weights],
        "inputs": [None if x is None else to_numpy(x) for x in by_inputs],
        "state": [to_numpy(v) for v in model.non_trainable_variables],
    }


def _tensorflow(model, outputs_of, values, way):
    import tensorflow as tf

    variables = [v.value for v in model.trainable_variables]

    def step(*values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss, outputs = outputs_of(values)
        found = tape.gradient(loss, [*variables, *values])
        return outputs, found

    if way != "eager":
        step = tf.function(step, jit_compile=way == "xla")
    outputs, found = step(*values)
    found = [None if x is None else tf.convert_to_tensor(x) for x in found]
    return outputs, found[: len(variables)], found[len(variables) :]


def _jax(model, outputs_of, values, way):
    import jax

    variables = model.trainable_variables
    state = model.non_trainable_variables

    def loss_of(weights, values, before):
        pairs = [*zip(variables, weights), *zip(state, before)]
        with keras.StatelessScope(pairs) as scope:
            loss, outputs = outputs_of(values)
        return loss, (outputs, [scope.get_current_value(v) for v in state])

    step = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    if way != "eager":
        step = jax.jit(step)
    (_, (outputs, after)), found = step(
        [v.value for v in variables], values, [v.value for v in state]
    )
    for variable, value in zip(state, after):
        variable.assign(value)
    return outputs, *found


def _torch(model, outputs_of, values, way):
    import torch

    del way
    values = [x.detach().clone().requires_grad_() for x in values]
    loss, outputs = outputs_of(values)
    sources = [v.value for v in model.trainable_variables]
    found = torch.autograd.grad(loss, [*sources, *values], allow_unused=True)
    outputs = [x.detach() for x in outputs]
    return outputs, found[: len(sources)], found[len(sources) :]


_BY_BACKEND = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}

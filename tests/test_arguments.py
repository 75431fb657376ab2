"""One row for each error: it names the argument and shows what came."""

import keras
import numpy as np
import pytest

from inbatch_neg import (
    ChunkedTower,
    CrossBatchMemory,
    InBatchNegativeSoftmax,
    RetrievalEvaluation,
    StreamingSamplingProbability,
    ops,
)

V = np.ones((4, 3), "float32")
WIDE = np.ones((4, 5), "float32")
IDS = np.arange(4, dtype="int32")
FLOATS = np.full(4, 0.5, "float32")
BOOLS = np.ones(4, bool)
SEVERAL = TUPLES = np.ones((4, 2, 3), "float32")
MASK = np.ones((4, 2), bool)

# What each tensor of a batch must not be: the error and words of it.
BATCH = [
    ({"query": V[0]}, ValueError, r"`query`.*\(3,\)"),
    ({"query": V[None, None]}, ValueError, r"`query`.*\(1, 1, 4, 3\)"),
    ({"query": V.astype("int32")}, TypeError, "`query`.*int32"),
    ({"query": None}, TypeError, "`query`"),
    ({"query": 3}, (TypeError, ValueError), "`query`"),
    ({"query": "abc"}, (TypeError, ValueError), "`query`"),
    ({"candidate": V[0]}, ValueError, r"`candidate`.*\(3,\)"),
    (
        {"candidate": V[:, None, None]},
        ValueError,
        r"`candidate`.*Flatten\(\).*GlobalAveragePooling1D",
    ),
    ({"candidate": TUPLES[:3]}, ValueError, r"`candidate`.*\(3, 2, 3\)"),
    ({"candidate": TUPLES[:, :0]}, ValueError, r"`candidate`.*\(4, 0, 3\)"),
    (
        {"query": SEVERAL, "candidate": TUPLES},
        ValueError,
        "rank 3: n-tuples.*sequences.*ops.positions.*n-tuples to rows",
    ),
    (
        {"candidate": TUPLES, "candidate_ids": IDS},
        ValueError,
        r"`candidate_ids`.*\(rows, 1 \+ negatives\).*\(4,\)",
    ),
    (
        {"candidate": TUPLES, "candidate_mask": np.ones((4, 3), bool)},
        ValueError,
        r"`candidate_mask`.*\(4, 2\).*\(4, 3\)",
    ),
    ({"candidate": 3}, (TypeError, ValueError), "`candidate`"),
    ({"candidate": V.astype("int32")}, TypeError, "`candidate`.*int32"),
    ({"candidate": V[:3]}, ValueError, r"`candidate`.*\(3, 3\)"),
    ({"candidate": WIDE}, ValueError, r"`candidate`.*\(4, 5\)"),
    ({"candidate_ids": IDS[:, None]}, ValueError, "`candidate_ids`.*squeeze"),
    ({"candidate_ids": IDS[:3]}, ValueError, r"`candidate_ids`.*\(3,\)"),
    ({"candidate_ids": FLOATS}, TypeError, "`candidate_ids`.*float32"),
    ({"candidate_ids": BOOLS}, TypeError, "`candidate_ids`.*bool"),
    ({"query_ids": IDS[:, None]}, ValueError, "`query_ids`.*squeeze"),
    ({"query_ids": IDS[:3]}, ValueError, r"`query_ids`.*\(3,\)"),
    ({"query_ids": FLOATS}, TypeError, "`query_ids`.*float32"),
    ({"query_ids": BOOLS}, TypeError, "`query_ids`.*bool"),
    (
        {"candidate_sampling_probability": IDS},
        TypeError,
        "`candidate_sampling_probability`.*int32",
    ),
    (
        {"candidate_sampling_probability": FLOATS[:3]},
        ValueError,
        r"`candidate_sampling_probability`.*\(3,\)",
    ),
    (
        {"candidate_sampling_probability": FLOATS[:, None]},
        ValueError,
        "`candidate_sampling_probability`.*squeeze",
    ),
    (
        {"candidate_sampling_probability": 0.5},
        ValueError,
        "`candidate_sampling_probability`",
    ),
    ({"candidate_mask": FLOATS}, TypeError, "`candidate_mask`.*float32"),
    ({"candidate_mask": IDS}, TypeError, "`candidate_mask`.*int32"),
    ({"candidate_mask": BOOLS[:3]}, ValueError, r"`candidate_mask`.*\(3,\)"),
    ({"candidate_mask": BOOLS[None]}, ValueError, "`candidate_mask`"),
    ({"query": SEVERAL[:, :0]}, ValueError, r"`query`.*\(4, 0, 3\)"),
    ({"query": SEVERAL[..., :2]}, ValueError, r"`query`.*\(4, 2, 2\)"),
    ({"query": SEVERAL.astype("int32")}, TypeError, "`query`.*int32"),
    ({"query_mask": MASK}, ValueError, r"`query_mask` needs.*\(4, 3\)"),
    *[
        ({"query_mask": mask, "query": SEVERAL}, error, words)
        for mask, error, words in (
            (MASK[:, :1], ValueError, r"`query_mask`.*\(4, 1\)"),
            (MASK[:3], ValueError, r"`query_mask`.*\(3, 2\)"),
            (BOOLS, ValueError, r"`query_mask`.*\(4,\)"),
            (MASK.astype("int32"), TypeError, "`query_mask`.*int32"),
        )
    ],
    ({"sample_weight": BOOLS}, TypeError, "`sample_weight`.*bool"),
    ({"sample_weight": FLOATS[:3]}, ValueError, r"`sample_weight`.*\(3,\)"),
    ({"sample_weight": FLOATS[:, None]}, ValueError, "`sample_weight`"),
    ({"sample_weight": 2.0}, ValueError, "`sample_weight`"),
]
NAMES = [f"{next(iter(row[0]))}{i}" for i, row in enumerate(BATCH)]


@pytest.mark.parametrize("given, error, words", BATCH, ids=NAMES)
def test_loss_function(given, error, words):
    with pytest.raises(error, match=words) as caught:
        ops.in_batch_softmax_loss(**{"query": V, "candidate": V, **given})
    assert "Received: " in str(caught.value)


@pytest.mark.parametrize("given, error, words", BATCH, ids=NAMES)
def test_layer(given, error, words):
    layer = InBatchNegativeSoftmax()
    with pytest.raises(error, match=words):
        layer(**{"query": V, "candidate": V, **given})


@pytest.mark.parametrize(
    "given, error, words",
    [row for row in BATCH if hasattr(next(iter(row[0].values())), "shape")],
)
def test_layer_in_a_functional_model(given, error, words):
    values = {"query": V, "candidate": V, **given}
    layer = InBatchNegativeSoftmax()
    symbols = {
        name: keras.KerasTensor(value.shape, str(value.dtype))
        for name, value in values.items()
    }
    with pytest.raises(error, match=words):
        layer(**symbols)


CONSTRUCTOR = [
    ({"temperature": 0}, ValueError),
    ({"temperature": -1.0}, ValueError),
    ({"temperature": float("nan")}, ValueError),
    ({"temperature": float("inf")}, ValueError),
    ({"temperature": "x"}, TypeError),
    ({"temperature": "1"}, TypeError),
    ({"temperature": True}, TypeError),
    ({"temperature": None}, TypeError),
    ({"temperature": [1.0]}, TypeError),
    ({"num_negatives": 0}, ValueError),
    ({"num_negatives": -1}, ValueError),
    ({"num_negatives": 1.5}, TypeError),
    ({"num_negatives": 2.0}, TypeError),
    ({"num_negatives": True}, TypeError),
    ({"num_negatives": "3"}, TypeError),
    ({"sampling": "foo"}, ValueError),
    ({"sampling": None}, ValueError),
    ({"symmetric": 1}, TypeError),
    ({"cross_replica": "yes"}, TypeError),
    ({"return_logits": 1}, TypeError),
    ({"seed": 1.5}, TypeError),
    ({"seed": True}, TypeError),
    ({"seed": -1}, ValueError),
]


@pytest.mark.parametrize("given, error", CONSTRUCTOR, ids=str)
def test_constructor(given, error):
    ((name, value),) = given.items()
    with pytest.raises(error) as caught:
        InBatchNegativeSoftmax(**given)
    assert f"`{name}`" in str(caught.value)
    assert f"Received: {name}={value!r}" in str(caught.value)


def test_keywords_only():
    with pytest.raises(TypeError):
        InBatchNegativeSoftmax(3, "rotation")
    with pytest.raises((TypeError, ValueError), match="temprature"):
        InBatchNegativeSoftmax(temprature=3)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), "x", True])
def test_temperature_of_the_loss_function(temperature):
    with pytest.raises((TypeError, ValueError), match="`temperature`"):
        ops.in_batch_softmax_loss(V, V, temperature=temperature)


def test_temperature_as_a_vector():
    temperature = keras.ops.convert_to_tensor([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"`temperature`.*\(3,\)"):
        ops.in_batch_softmax_loss(V, V, temperature=temperature)


def test_an_unknown_number_of_vectors():
    query, candidate = (
        keras.KerasTensor((4, None, 3)),
        keras.KerasTensor((4, 3)),
    )
    with pytest.raises(
        ValueError, match="static number of vectors.*`query_mas"
    ):
        InBatchNegativeSoftmax()(query, candidate)


@pytest.mark.parametrize("count", [4, 5, 100])
def test_as_many_negatives_as_rows(count):
    layer = InBatchNegativeSoftmax(count)
    with pytest.raises(ValueError, match=f"`num_negatives`.*{count}"):
        layer(V, V)
    symbol = keras.KerasTensor((4, 3))
    with pytest.raises(ValueError, match=f"`num_negatives`.*{count}"):
        InBatchNegativeSoftmax(count)(symbol, symbol)
    InBatchNegativeSoftmax(3)(V, V)


def test_more_negatives_than_declared_rows():
    # Known without any batch.
    with pytest.raises(ValueError, match="`num_negatives`.*8"):
        InBatchNegativeSoftmax(8, batch_size=8)


@pytest.mark.parametrize("symbolic", [False, True])
def test_weight_of_logits(symbolic):
    layer = InBatchNegativeSoftmax(return_logits=True)
    vectors, weight = V, FLOATS
    if symbolic:
        vectors = keras.KerasTensor((4, 3))
        weight = keras.KerasTensor((4,))
    with pytest.raises(ValueError, match="`sample_weight`.*`return_logits"):
        layer(vectors, vectors, sample_weight=weight)


@pytest.mark.parametrize(
    "given, error, words",
    [
        ({"query": V[0]}, ValueError, "`query`"),
        ({"query": SEVERAL}, ValueError, r"`query`.*\(4, 2, 3\)"),
        ({"candidate": WIDE}, ValueError, "`candidate`"),
        ({"candidate": np.ones((5, 3))}, ValueError, r"`candidate`.*\(5, 3\)"),
        ({"shifts": []}, ValueError, "`shifts`"),
        ({"shifts": [0]}, ValueError, r"`shifts`.*\[0\]"),
        ({"shifts": [1, 4]}, ValueError, "`shifts`.*4 rows"),
        ({"shifts": [-4]}, ValueError, "`shifts`.*4 rows"),
        ({"shifts": [1.5]}, TypeError, "`shifts`.*1.5"),
        ({"shifts": ["a"]}, TypeError, "`shifts`"),
        ({"shifts": FLOATS}, TypeError, "`shifts`.*float32"),
        ({"shifts": 2}, ValueError, "`shifts`"),
        ({"shifts": IDS[None]}, ValueError, r"`shifts`.*\(1, 4\)"),
        ({"shifts": None}, (TypeError, ValueError), "`shifts`"),
        ({"shifts": np.array([0, 1])}, ValueError, "`shifts`"),
    ],
)
def test_rotation_logits(given, error, words):
    arguments = {"query": V, "candidate": V, "shifts": [1], **given}
    with pytest.raises(error, match=words):
        ops.rotation_logits(**arguments)


@pytest.mark.backends("jax", "torch")
@pytest.mark.parametrize("name", ["candidate_ids", "query_ids"])
def test_string_ids_are_refused_when_the_model_is_built(name):
    vectors = keras.Input((3,))
    ids = keras.Input((), dtype="string")
    with pytest.raises(TypeError, match=f"`{name}`.*StringLookup") as caught:
        InBatchNegativeSoftmax()(vectors, vectors, **{name: ids})
    assert "keras.layers.Hashing" in str(caught.value)
    for layer in (StreamingSamplingProbability(8), CrossBatchMemory(4)):
        with pytest.raises(TypeError, match="`candidate_ids`.*StringLookup"):
            if isinstance(layer, CrossBatchMemory):
                layer(vectors, candidate_ids=ids)
            else:
                layer(ids)


@pytest.mark.backends("torch")
def test_ids_of_64_bits_without_sign_are_refused_when_the_model_is_built():
    vectors = keras.Input((3,))
    ids = keras.Input((), dtype="uint64")
    with pytest.raises(TypeError, match="cast them to int64"):
        InBatchNegativeSoftmax()(vectors, vectors, candidate_ids=ids)


@pytest.mark.parametrize(
    "dtype",
    [
        *["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"],
        pytest.param("uint64", marks=pytest.mark.backends("tensorflow", "jax")),
        pytest.param("string", marks=pytest.mark.backends("tensorflow")),
    ],
)
def test_every_dtype_of_ids_masks(dtype):
    vectors = np.eye(4, dtype="float32")
    ids = np.array([1, 1, 2, 3])
    ids = ids.astype("U" if dtype == "string" else dtype)
    losses = keras.ops.convert_to_numpy(
        InBatchNegativeSoftmax()(vectors, vectors, candidate_ids=ids)
    )
    expected = np.log(1 + np.array([2, 2, 3, 3]) / np.e)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


class KerasTensor:
    """What Keras 2 calls so, as far as it is looked at."""

    shape, dtype = (4, 3), "float32"


KerasTensor.__module__ = "tf_keras.src.engine.keras_tensor"


@pytest.mark.parametrize(
    "name, call",
    [
        ("candidate", lambda other: ops.in_batch_softmax_loss(V, other)),
        ("tower", ChunkedTower),
        (
            "query_model",
            lambda other: RetrievalEvaluation(other, None, IDS, IDS, V),
        ),
    ],
)
def test_keras_2(name, call):
    message = f"`{name}` comes from Keras 2.*import keras.*Received: tf_keras"
    with pytest.raises(TypeError, match=message):
        call(KerasTensor())

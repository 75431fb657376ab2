"""Every feature under every `floatx`: integers stay integers.

On JAX, Keras makes floats of int32 in some functions where `floatx` is
"bfloat16". What comes out must be what comes out under "float32".
"""

import contextlib

import keras
import numpy as np
import pytest

import inbatch_neg
from inbatch_neg import InBatchNegativeSoftmax
from tests import internals
from tests.helpers import BACKEND, compiled, to_numpy

ROWS = 12
FLOATX = [
    ("float16", "float16"),
    ("bfloat16", "bfloat16"),
    ("float64", "float64"),
    ("float32", "mixed_bfloat16"),
]


@contextlib.contextmanager
def floatx(name, policy):
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(name)
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def drawn(seed=0):
    """Returns a batch, of vectors whose products no float rounds."""
    rng = np.random.default_rng(seed)
    arrays = {
        "query": rng.integers(-3, 4, (ROWS, 4)).astype("float32"),
        "candidate": rng.integers(-3, 4, (ROWS + 5, 4)).astype("float32"),
        "candidate_ids": rng.integers(0, 9, ROWS + 5).astype("int32"),
        "query_ids": rng.integers(0, 9, ROWS).astype("int32"),
        "candidate_mask": rng.random(ROWS + 5) < 0.7,
    }
    # On JAX, Keras would make floats of NumPy's integers.
    return {
        name: keras.ops.convert_to_tensor(array, dtype=array.dtype.name)
        for name, array in arrays.items()
    }


def softmax(**arguments):
    def run():
        layer = InBatchNegativeSoftmax(seed=3, **arguments)
        batch = drawn()

        def step(*tensors):
            return layer(**dict(zip(batch, tensors)), training=True)

        # JAX compiles each operation of an eager call.
        if BACKEND == "jax":
            step = compiled(step)
        return [step(*batch.values())]

    return run


def memory():
    layer = inbatch_neg.CrossBatchMemory(2 * ROWS, warmup_steps=2)
    found = []
    for seed in range(4):
        batch = drawn(seed)
        kept = layer(
            batch["query"], candidate_ids=batch["query_ids"], training=True
        )
        found += [kept[name] for name in sorted(kept)]
    return found


def estimate():
    layer = inbatch_neg.StreamingSamplingProbability(50, num_hashes=2)
    ids = [-(2**31), -1, 0, 1, 7, 7, 2**24 + 1, 2**31 - 1]
    ids = keras.ops.convert_to_tensor(ids, dtype="int32")
    found = [layer(ids, training=True) for _ in range(3)]
    return found + [variable.value for variable in layer.variables]


def evaluation():
    batch = {name: to_numpy(value) for name, value in drawn().items()}
    evaluation = inbatch_neg.RetrievalEvaluation(
        None,
        None,
        batch["query"],
        batch["query_ids"],
        batch["candidate"],
        k=(1, 3),
        coverage=True,
    )
    scores, places = evaluation.top_k(batch["query"], 1)
    del places  # of equal scores either may come first
    return [np.array(list(evaluation().values())), scores]


def metrics():
    logits = softmax(return_logits=True)()[0]
    found = []
    for metric in (
        inbatch_neg.InBatchTopKAccuracy(2),
        inbatch_neg.InBatchMeanReciprocalRank(),
    ):
        for _ in range(50):  # 600 rows, which bfloat16 cannot count
            metric.update_state(None, logits)
        found.append(metric.result())
    return found


FEATURES = {
    "all": softmax(),
    "symmetric": softmax(symmetric=True),
    "learned": softmax(temperature="learned"),
    "logits": softmax(return_logits=True),
    "rotation": softmax(num_negatives=5),
    "rotation of logits": softmax(num_negatives=5, return_logits=True),
    "hardest": softmax(num_negatives=5, sampling="hardest"),
    "memory": memory,
    "estimate": estimate,
    "evaluation": evaluation,
    "metrics": metrics,
}
EXPECTED = {}


@pytest.mark.parametrize("name, policy", FLOATX)
@pytest.mark.parametrize("feature", FEATURES)
def test_the_same_as_under_float32(feature, name, policy, monkeypatch):
    internals.small_chunks(monkeypatch, rows=5)
    if feature not in EXPECTED:
        with floatx("float32", "float32"):
            EXPECTED[feature] = [to_numpy(x) for x in FEATURES[feature]()]
    with floatx(name, policy):
        found = [to_numpy(x) for x in FEATURES[feature]()]
    assert len(found) == len(EXPECTED[feature])
    for one, expected in zip(found, EXPECTED[feature]):
        # Small integers, so that also half-precision towers are exact.
        np.testing.assert_allclose(
            one.astype("float64"), expected, rtol=2e-6, atol=1e-6
        )


@pytest.mark.parametrize("name, policy", FLOATX)
def test_fit(name, policy):
    with floatx(name, policy):
        user, item = (
            keras.Input((), dtype="int32", name=n) for n in ("user", "item")
        )
        vectors = [keras.layers.Embedding(20, 4)(one) for one in (user, item)]
        layer = InBatchNegativeSoftmax(num_negatives=3)
        model = keras.Model(
            {"user": user, "item": item},
            layer(*vectors, candidate_ids=item, query_ids=user),
        )
        model.compile("sgd", loss=inbatch_neg.InBatchNegativeLoss())
        data = np.arange(24, dtype="int32") % 20
        pairs = inbatch_neg.full_batches({"user": data, "item": data}, 8)
        losses = model.fit(pairs, verbose=0).history["loss"]
        assert np.all(np.isfinite([float(loss) for loss in losses]))
        assert model.predict(pairs, verbose=0).dtype in ("float32", "float64")

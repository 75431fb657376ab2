"""No error of the package costs a weight, whichever Keras call it leaves.

On JAX, Keras holds the weights in a local variable while a step runs. Every
error is raised in every call, in the first step and in a later one.
"""

import functools
from itertools import compress

import keras
import numpy as np
import pytest

import inbatch_neg
from tests.helpers import BACKEND, assert_all_equal, to_numpy

pytestmark = pytest.mark.filterwarnings(
    "error::pytest.PytestUnhandledThreadExceptionWarning"
)
ROWS = 8

# Each fault comes with a batch that has not ROWS rows, and its error's words.
FAULTS = {
    "partial": "Partial batch",
    "float ids": "`candidate_ids` must hold integers",
    "rank of ids": "`query_ids` must have shape",
    "dimensions": "the same number of dimensions",
    "weighted logits": "`sample_weight` cannot be passed",
    "memory without ids": "`candidate_ids` must be passed in every call",
    "estimator without ids": "`candidate_ids` must be passed: there is",
    "estimator of floats": "`candidate_ids` must hold integers",
    "function": "`temperature` must be",
    "loss": "`y_pred` must be the output",
    "metric": "`y_pred` must be logits",
}


class TwoTowers(keras.Model):
    """Everything of the package, with a fault at another number of rows."""

    def __init__(self):
        super().__init__()
        self.fault = None
        self.users = tower()
        self.items = tower()
        self.estimate = inbatch_neg.StreamingSamplingProbability(20)
        self.memory = inbatch_neg.CrossBatchMemory(16)
        self.softmax = inbatch_neg.InBatchNegativeSoftmax(return_logits=True)
        self.any_size = inbatch_neg.InBatchNegativeSoftmax(
            return_logits=True, batch_size="any"
        )
        self.per_row = inbatch_neg.InBatchNegativeSoftmax(batch_size="any")
        # Or Keras would build the model again, before the step.
        self.any_size.built = self.per_row.built = True

    def call(self, inputs, training=None):
        users, items = inputs["user"], inputs["item"]
        fault = None if users.shape[0] == ROWS else self.fault
        floats = keras.ops.cast(items, "float32")
        query, candidate = self.users(users), self.items(items)
        if fault == "dimensions":
            query = query[:, :2]
        if fault == "function":
            inbatch_neg.ops.in_batch_softmax_loss(
                query, candidate, temperature=-1.0
            )
        counted = {"estimator without ids": None, "estimator of floats": floats}
        probability = self.estimate(
            counted.get(fault, items), training=training
        )
        candidates = self.memory(
            candidate,
            None if fault == "memory without ids" else items,
            probability,
            training=training,
        )
        if fault == "float ids":
            candidates["candidate_ids"] = keras.ops.cast(
                candidates["candidate_ids"], "float32"
            )
        softmax = self.any_size if fault else self.softmax
        if fault == "metric":
            softmax = self.per_row
        found = (self.softmax if fault == "partial" else softmax)(
            query,
            **candidates,
            query_ids=users[:, None] if fault == "rank of ids" else users,
            sample_weight=floats if fault == "weighted logits" else None,
            training=training,
        )
        return found[:, :, None] if fault == "loss" else found


def tower():
    ids = keras.Input((), dtype="int32")
    return keras.Model(ids, keras.layers.Embedding(20, 4)(ids))


class Outer(keras.Model):
    """A model in a model."""

    def __init__(self):
        super().__init__()
        self.inner = TwoTowers()

    def call(self, inputs, training=None):
        return self.inner(inputs, training=training)


def dataset(rows):
    """Returns batches of at most ROWS rows."""
    import tensorflow as tf

    pairs = batch(rows)
    if rows % ROWS == 0:
        return inbatch_neg.full_batches(pairs, ROWS)
    return tf.data.Dataset.from_tensor_slices(pairs).batch(ROWS)


def batch(rows):
    """Returns the first rows, the same ones in every batch of so many."""
    drawn = np.random.default_rng(0).integers(0, 20, (2, 4 * ROWS))
    users, items = drawn.astype("int32")[:, :rows]
    return {"user": users, "item": items}


def inner(model):
    return getattr(model, "inner", model)


def variables(model):
    return model.variables + model.optimizer.variables


def state_of(model):
    return [to_numpy(variable) for variable in variables(model)]


def restore(model, state):
    for variable, value in zip(variables(model), state):
        variable.assign(value)


@functools.cache
def trained(kind):
    """Returns a trained model, and its state before and after one more step."""
    model = Outer() if kind == "nested" else TwoTowers()
    options = {
        "two steps at once": {"steps_per_execution": 2},
    }
    model.compile(
        keras.optimizers.Adam(0.1),
        loss=inbatch_neg.InBatchNegativeLoss(),
        metrics=[inbatch_neg.InBatchTopKAccuracy()],
        **options.get(kind, {}),
    )
    model.fit(dataset(4 * ROWS), verbose=0)
    model.evaluate(dataset(2 * ROWS), verbose=0)
    model.predict(dataset(2 * ROWS), verbose=0)
    before = state_of(model)
    model.fit(dataset(ROWS), verbose=0)
    return model, before, state_of(model)


CALLS = {
    "fit": lambda model: model.fit(dataset(6), verbose=0),
    "fit, second step": lambda model: model.fit(dataset(14), verbose=0),
    "evaluate": lambda model: model.evaluate(dataset(6), verbose=0),
    "evaluate, second step": lambda model: model.evaluate(
        dataset(14), verbose=0
    ),
    "validation": lambda model: model.fit(
        dataset(ROWS), validation_data=dataset(14), verbose=0
    ),
    "predict": lambda model: model.predict(dataset(6), verbose=0),
    "predict, second step": lambda model: model.predict(dataset(14), verbose=0),
    "train_on_batch": lambda model: model.train_on_batch(batch(6)),
    "test_on_batch": lambda model: model.test_on_batch(batch(6)),
    "predict_on_batch": lambda model: model.predict_on_batch(batch(6)),
}


def check(kind, fault, call):
    model, before, after_one_step = trained(kind)
    restore(model, before)
    inner(model).fault = fault
    with pytest.raises((ValueError, TypeError), match=FAULTS[fault]):
        CALLS[call](model)
    expected = after_one_step if call in AFTER_ONE_STEP else before
    found = state_of(model)
    if BACKEND == "torch":
        # Its steps are eager: layers before the faulty one have counted.
        counted = (
            inner(model).estimate.variables + inner(model).memory.variables
        )
        kept = [not any(v is one for one in counted) for v in variables(model)]
        found, expected = (list(compress(x, kept)) for x in (found, expected))
    assert_all_equal(found, expected)
    # And the model goes on.
    assert np.isfinite(model.predict_on_batch(batch(ROWS))).all()
    assert np.isfinite(model.train_on_batch(batch(ROWS))).all()


AFTER_ONE_STEP = {"validation"}
if BACKEND != "tensorflow":  # which finds the error before any step
    AFTER_ONE_STEP.add("fit, second step")


IN_TRAINING = ("loss", "metric")
# Elsewhere the weights never leave the model: one row and one column of the
# table do.
ON_JAX = pytest.mark.backends("jax")
CASES = [
    pytest.param(
        "plain",
        fault,
        call,
        marks=() if call == "evaluate" or fault == "rank of ids" else ON_JAX,
    )
    for fault in FAULTS
    for call in CALLS
    if not (fault in IN_TRAINING and "predict" in call)
] + [
    pytest.param(kind, "rank of ids", call, marks=ON_JAX)
    for kind in ("nested", "two steps at once")
    for call in CALLS
]


@pytest.mark.parametrize("kind, fault, call", CASES)
def test_every_error_in_every_call(kind, fault, call):
    check(kind, fault, call)


def generator():
    """Its second batch has another dtype than its first."""
    rows = batch(2 * ROWS)
    yield {name: ids[:ROWS] for name, ids in rows.items()}
    yield {name: ids[ROWS:].astype("int64") for name, ids in rows.items()}


def broken_data(kind, folder):
    """Returns batches of which the second is refused while a model reads."""
    if kind == "generator":
        data = generator()
        return inbatch_neg.full_batches(data, ROWS, batched=True)
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        columns = {
            name: [*ids[:ROWS].tolist(), None, *ids[ROWS + 1 :].tolist()]
            for name, ids in batch(2 * ROWS).items()
        }
        file = folder / "rows.parquet"
        parquet.write_table(pyarrow.table(columns), file, row_group_size=ROWS)
        return inbatch_neg.full_batches(str(file), ROWS)

    from torch.utils import data as torch_data

    class Rows(torch_data.IterableDataset):
        def __iter__(self):
            for place, user in enumerate(batch(2 * ROWS)["user"].tolist()):
                width = 1 if place < ROWS else place
                yield {"user": user, "item": np.ones(width, "int32")}

    return inbatch_neg.full_batches(Rows(), ROWS)


@pytest.mark.backends("jax", "torch")
@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("kind", ["generator", "parquet", "torch"])
def test_data_that_is_refused_while_a_model_reads_it(
    kind, steps, call, tmp_path
):
    ids = {n: keras.Input((), dtype="int32", name=n) for n in ("user", "item")}
    item = keras.Input((1,), dtype="int32", name="item")
    inputs = ids if kind != "torch" else {**ids, "item": item}
    model = keras.Model(
        inputs,
        inbatch_neg.InBatchNegativeSoftmax()(
            tower()(inputs["user"]),
            tower()(keras.ops.reshape(inputs["item"], (-1,))),
        ),
    )
    # Nothing moves the weights in the first batch.
    model.compile(
        keras.optimizers.SGD(0.0), loss=inbatch_neg.InBatchNegativeLoss()
    )
    before = model.get_weights()
    options = {"steps_per_epoch" if call == "fit" else "steps": steps}
    with pytest.raises((ValueError, TypeError)):
        getattr(model, call)(broken_data(kind, tmp_path), verbose=0, **options)
    assert_all_equal(model.get_weights(), before)


def test_a_model_that_was_never_compiled(tmp_path):
    user, item = (keras.Input((), dtype="int32", name=n) for n in batch(1))
    inputs = {"user": user, "item": item}
    outer = keras.Model(inputs, functional(inputs))
    outer.save(tmp_path / "model.keras")
    for loaded in (
        outer,
        keras.models.load_model(tmp_path / "model.keras", compile=False),
    ):
        before = loaded.get_weights()
        expected = loaded.predict(dataset(ROWS), verbose=0)
        for call in CALLS:
            if "predict" not in call:
                continue
            with pytest.raises(inbatch_neg.PartialBatchError):
                CALLS[call](loaded)
            assert_all_equal(loaded.get_weights(), before)
            found = loaded.predict(dataset(ROWS), verbose=0)
            np.testing.assert_array_equal(found, expected)


def functional(inputs):
    return inbatch_neg.InBatchNegativeSoftmax()(
        tower()(inputs["user"]), tower()(inputs["item"])
    )

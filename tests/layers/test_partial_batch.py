"""A partial batch: heard of before a weight moves, with the fix in front."""

import re

import keras
import numpy as np
import pytest

import inbatch_neg
from inbatch_neg import InBatchNegativeSoftmax, PartialBatchError
from tests import models, oracle
from tests.helpers import BACKEND, assert_all_equal, to_numpy
from tests.models import full
from tests.models import interactions as pairs

TENSORFLOW = BACKEND == "tensorflow"
REMEDY = "Partial batch. Fix: `inbatch_neg.full_batches("
UNKNOWN = "Partial batch. The number of rows is unknown: "


def batches(rows, size):
    """Returns a dataset whose last batch may be partial."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(pairs(rows)).batch(size)


def two_towers(between=None, optimizer="adam", compile=None, **arguments):
    """Returns a compiled functional model."""
    softmax = InBatchNegativeSoftmax(**{"name": "softmax", **arguments})
    model = models.two_towers(softmax, between=between)
    model.compile(
        optimizer, loss=inbatch_neg.InBatchNegativeLoss(), **(compile or {})
    )
    return model


def state_of(model):
    return [to_numpy(v) for v in model.variables + model.optimizer.variables]


def assert_same_weights(model, before):
    """Compares all but the optimizer's count of steps.

    TensorFlow counts a step that fails at run time, and changes nothing else.
    """
    optimizer = model.optimizer.variables
    assert optimizer[0] is model.optimizer.iterations
    count = len(model.variables)
    after = state_of(model)
    assert_all_equal(after[:count], before[:count])
    assert_all_equal(after[count + 1 :], before[count + 1 :])


def assert_fix(error, size):
    """Checks an error that comes at run time, from inside of TensorFlow."""
    # XLA reports the name of an operation, which has no brackets.
    pattern = rf"Partial.batch.*Fix.*inbatch_neg.full_batches.data\W+{size}\b"
    assert re.search(pattern, str(error)), str(error)


def assert_words(error, *words):
    message = str(error)
    # Both remedies, where the rows are unknown; else that of a smaller batch.
    assert message.startswith((REMEDY, UNKNOWN)), message
    if message.startswith(UNKNOWN):
        assert "Fix: for a smaller batch `inbatch_neg.full_batches(" in message
        assert "lost their static size" in message
        assert "`InBatchNegativeSoftmax(batch_size=" in message
    for word in ("drop_remainder=True", "drop_last=True", *words):
        assert word in message, message


# PyTorch's compiler would need a C++ one.
COMPILERS = pytest.mark.backends("tensorflow", "jax")


@pytest.mark.parametrize(
    ("jit", "arrays"),
    [
        pytest.param(True, False, marks=COMPILERS),
        (False, False),
        ("auto", True),
    ],
)
def test_fit_on_100_rows(jit, arrays):
    model = two_towers(compile={"jit_compile": jit})
    model.optimizer.build(model.trainable_variables)
    before = state_of(model)
    with pytest.raises(ValueError) as caught:
        if arrays:
            model.fit(pairs(100), batch_size=32, verbose=0)
        else:
            models.fit(model, batches(100, 32))
    assert type(caught.value) is PartialBatchError
    if TENSORFLOW:
        # While tracing, so before any step.
        assert_words(caught.value, "softmax", "(None, 8)")
        assert_all_equal(state_of(model), before)
        assert int(model.optimizer.iterations) == 0
    else:
        # The sizes are known: full batches train until the partial one.
        assert_words(caught.value, "softmax", "(4, 8)", "32 rows")
        assert int(to_numpy(model.optimizer.iterations)) == 3
    # Whatever was trained is still there, and goes on.
    assert np.all(np.isfinite(model.get_weights()[0]))
    models.fit(model, full(100, 32))


def test_fit_eagerly():
    model = two_towers(compile={"run_eagerly": True})
    with pytest.raises(PartialBatchError) as caught:
        models.fit(model, batches(100, 32))
    assert_words(caught.value, "softmax", "(4, 8)", "32 rows")
    assert int(to_numpy(model.optimizer.iterations)) == 3


def test_the_batch_size_of_the_remedy_is_the_one_expected():
    layer = InBatchNegativeSoftmax(batch_size=4, name="mine")
    with pytest.raises(PartialBatchError) as caught:
        layer(np.eye(3, dtype="float32"), np.eye(3, dtype="float32"))
    assert_words(caught.value, "full_batches(data, 4)", "(3, 3)", "4 rows")
    assert "`mine`" in str(caught.value)


@pytest.mark.parametrize("after_fit", [True, False])
def test_evaluate_loses_nothing(after_fit):
    model = two_towers()
    model.optimizer.build(model.trainable_variables)
    if after_fit:
        models.fit(model, full(64, 32), epochs=2)
    before = state_of(model)
    with pytest.raises(PartialBatchError) as caught:
        model.evaluate(batches(100, 32), verbose=0)
    assert_words(caught.value)
    assert_all_equal(state_of(model), before)
    assert_works(model)


def assert_works(model):
    loss = model.evaluate(full(64, 32), verbose=0)
    assert np.isfinite(loss)
    assert model.predict(full(64, 32), verbose=0).shape == (64,)
    models.fit(model, full(64, 32))


@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
def test_a_wrong_first_batch_loses_nothing(call, epochs):
    # Declared, so that the very first batch is wrong.
    model = two_towers(batch_size=32)
    model.optimizer.build(model.trainable_variables)
    if epochs:
        models.fit(model, full(64, 32), epochs=epochs)
    before = state_of(model)
    with pytest.raises(Exception) as caught:
        arguments = {"shuffle": False} if call == "fit" else {}
        getattr(model, call)(full(32, 16), verbose=0, **arguments)
    if TENSORFLOW and epochs and call == "fit":
        # Traced again, TensorFlow makes the rows unknown: it comes at run time.
        assert_fix(caught.value, 32)
        assert_same_weights(model, before)
        return assert_works(model)
    assert type(caught.value) is PartialBatchError
    assert_words(caught.value, "32 rows", "(16, 8)")
    assert_all_equal(state_of(model), before)
    assert_works(model)


@pytest.mark.parametrize(
    "call", ["train_on_batch", "test_on_batch", "predict_on_batch"]
)
def test_on_batch(call):
    model = two_towers()
    model.train_on_batch(pairs(32))
    model.test_on_batch(pairs(32))
    model.predict_on_batch(pairs(32))
    before = state_of(model)
    with pytest.raises(PartialBatchError) as caught:
        getattr(model, call)(pairs(4))
    # TensorFlow relaxes the shape when it comes a second time.
    assert_words(
        caught.value, "(None, 8)" if "(None" in str(caught.value) else "(4, 8)"
    )
    assert_all_equal(state_of(model), before)
    assert np.all(np.isfinite(model.train_on_batch(pairs(32))))


def test_training_and_inference_are_counted_apart():
    model = two_towers()
    models.fit(model, full(64, 32))
    assert np.isfinite(model.evaluate(full(64, 16), verbose=0))
    models.fit(model, full(64, 32))
    with pytest.raises(PartialBatchError):
        models.fit(model, full(64, 16))


def test_validation_data_of_another_size():
    model = two_towers()
    history = models.fit(
        model, full(64, 32), validation_data=full(64, 16), epochs=2
    )
    assert np.all(np.isfinite(history["val_loss"]))


def messages_of_ours(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "inbatch_neg"]


def test_evaluation_in_other_batches_is_logged_once(caplog):
    """Keras cuts `validation_data` of arrays into batches of 32."""
    model, arrays = two_towers(), (pairs(64), None)
    history = models.fit(model, full(128, 64), validation_data=arrays, epochs=2)
    assert history["val_loss"][-1] < history["loss"][-1]
    model.evaluate(*arrays, verbose=0)
    (message,) = messages_of_ours(caplog)
    for words in ("`softmax`", "of 32 rows", "on 64", "validation_batch_size="):
        assert words in message
    # The remedies of the message say nothing more, and compare.
    caplog.clear()
    model = two_towers()
    models.fit(
        model,
        full(128, 64),
        validation_data=arrays,
        validation_batch_size=64,
        epochs=2,
    )
    model.evaluate(full(64, 64), verbose=0)
    model.evaluate(*arrays, batch_size=64, verbose=0)
    assert not messages_of_ours(caplog)


def test_validation_split_of_arrays():
    """`full_batches` takes none, so the fix is to split first."""
    data = pairs(90)
    with pytest.raises(PartialBatchError, match="`validation_split`, split"):
        two_towers().fit(
            data, batch_size=32, validation_split=0.3, shuffle=False, verbose=0
        )


def test_a_functional_model_has_no_batch_yet():
    model = two_towers()
    assert model.output_shape == (None,)
    assert two_towers(return_logits=True).output_shape == (None, None)
    assert two_towers(batch_size=32).output_shape == (None,)


def test_a_symbolic_batch_of_known_size():
    query = keras.Input(batch_shape=(16, 8))
    assert InBatchNegativeSoftmax()(query, query).shape == (16,)
    assert InBatchNegativeSoftmax(batch_size=16)(query, query).shape == (16,)
    logits = InBatchNegativeSoftmax(3, return_logits=True)(query, query)
    assert logits.shape == (16, 4)
    with pytest.raises(PartialBatchError) as caught:
        InBatchNegativeSoftmax(batch_size=32)(query, query)
    assert_words(caught.value, "32 rows", "(16, 8)")
    one = keras.Input(batch_shape=(1, 8))
    with pytest.raises(PartialBatchError):
        InBatchNegativeSoftmax()(one, one)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_negatives": 3},
        {"return_logits": True},
    ],
    ids=["all", "sampled", "logits"],
)
def test_any_size(arguments):
    model = two_towers(
        optimizer=keras.optimizers.Adam(0.05), batch_size="any", **arguments
    )
    first = models.fit(model, batches(36, 16), epochs=4)
    losses = first["loss"]
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]


def test_any_size_gives_the_right_losses():
    model = two_towers(batch_size="any")
    predicted = model.predict(batches(36, 16), verbose=0)
    users, items = model.get_weights()
    data, expected = pairs(36), []
    for start in (0, 16, 32):
        user, item = (data[name][start : start + 16] for name in data)
        losses, _ = oracle.softmax_loss(users[user], items[item], item, user)
        expected.append(losses)
    np.testing.assert_allclose(
        predicted, np.concatenate(expected), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("batch_size", [None, "any", 8])
@pytest.mark.parametrize("training", [True, False])
def test_one_row(batch_size, training):
    one = np.ones((1, 4), "float32")
    layer = InBatchNegativeSoftmax(batch_size=batch_size, name="mine")
    with pytest.raises(PartialBatchError) as caught:
        layer(one, one, training=training)
    assert_words(caught.value, "`mine`", "(1, 4)")
    # Not even with an extra negative: the remedy is a full batch.
    with pytest.raises(PartialBatchError):
        layer(one, np.ones((3, 4), "float32"), training=training)


def test_one_row_does_not_become_the_size():
    layer = InBatchNegativeSoftmax()
    with pytest.raises(PartialBatchError):
        layer(np.ones((1, 4), "float32"), np.ones((1, 4), "float32"))
    layer(np.ones((3, 4), "float32"), np.ones((3, 4), "float32"))


def test_one_row_of_unknown_size():
    model = two_towers(batch_size="any")
    with pytest.raises(PartialBatchError, match="Partial batch. Fix"):
        models.fit(model, batches(33, 16))


@pytest.mark.backends("tensorflow")
def test_compile_is_named_only_after_another_trace():
    model = two_towers()
    with pytest.raises(PartialBatchError) as caught:
        models.fit(model, batches(40, 16))
    assert "compile" not in str(caught.value)
    model = two_towers()
    models.fit(model, full(40, 20))
    with pytest.raises(PartialBatchError) as caught:
        models.fit(model, batches(40, 16))
    assert "traced for 20 rows before" in str(caught.value)
    assert "construct a new layer and call `compile` again" in str(caught.value)


def test_a_smaller_batch_size_on_purpose():
    model = two_towers()
    models.fit(model, full(64, 32))
    model.compile("adam", loss=inbatch_neg.InBatchNegativeLoss())
    with pytest.raises(PartialBatchError) as caught:
        models.fit(model, full(64, 16))
    assert_words(caught.value, "(16, 8)", "32 rows", "construct a new layer")


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("lost_by", ["map", "generator"])
def test_full_batches_whose_size_was_lost(lost_by):
    import tensorflow as tf

    data = full(32, 16)
    spec = {name: tf.TensorSpec((None,), tf.int32) for name in ("user", "item")}
    if lost_by == "map":
        data = data.map(
            lambda row: tf.py_function(
                lambda user, item: (user, item),
                [row["user"], row["item"]],
                [tf.int32, tf.int32],
            )
        ).map(
            lambda user, item: {
                "user": tf.ensure_shape(user, [None]),
                "item": tf.ensure_shape(item, [None]),
            }
        )
    else:
        rows = list(data)
        data = tf.data.Dataset.from_generator(
            lambda: iter(rows), output_signature=spec
        )
    with pytest.raises(PartialBatchError) as caught:
        models.fit(two_towers(), data)
    assert_words(caught.value, "`InBatchNegativeSoftmax(batch_size=64)`")
    # The remedy that it names for this case helps.
    models.fit(two_towers(batch_size=16), data)


def test_a_larger_batch_becomes_the_size():
    layer = InBatchNegativeSoftmax()
    for rows in (4, 6, 6):
        vectors = np.ones((rows, 2), "float32")
        layer(vectors, vectors, training=True)
    with pytest.raises(PartialBatchError) as caught:
        vectors = np.ones((4, 2), "float32")
        layer(vectors, vectors, training=True)
    assert_words(caught.value, "6 rows")
    # Inference is counted apart.
    layer(vectors, vectors, training=False)


@pytest.mark.parametrize("size", [0, -1, 1])
def test_batch_size_too_small(size):
    with pytest.raises(ValueError, match=f"`batch_size`.*Received.*{size}"):
        InBatchNegativeSoftmax(batch_size=size)


@pytest.mark.parametrize("size", [2.5, True, False, [2]])
def test_batch_size_of_a_wrong_type(size):
    with pytest.raises(TypeError, match="`batch_size`.*Received"):
        InBatchNegativeSoftmax(batch_size=size)


def test_batch_size_of_a_wrong_word():
    with pytest.raises((TypeError, ValueError), match="`batch_size`.*'all'"):
        InBatchNegativeSoftmax(batch_size="all")


def test_batch_size_of_numpy():
    layer = InBatchNegativeSoftmax(batch_size=np.int64(4))
    assert layer.get_config()["batch_size"] == 4
    assert type(layer.get_config()["batch_size"]) is int


def test_a_subclassed_model():
    # Keras builds it by a symbolic batch, which must not count.
    model = models.Subclassed(InBatchNegativeSoftmax())
    model.compile("adam", loss=inbatch_neg.InBatchNegativeLoss())
    models.fit(model, full(64, 16))
    assert np.isfinite(model.evaluate(full(64, 32), verbose=0))
    with pytest.raises(PartialBatchError):
        models.fit(model, batches(20, 16))


def test_a_subclassed_model_hears_of_it_at_once():
    model = models.Subclassed(InBatchNegativeSoftmax())
    model.compile("adam", loss=inbatch_neg.InBatchNegativeLoss())
    with pytest.raises(PartialBatchError) as caught:
        models.fit(model, batches(36, 16))
    assert_words(caught.value)
    if TENSORFLOW:
        assert int(model.optimizer.iterations) == 0


class LoseRows(keras.layers.Layer):
    """Loses the static number of rows, as a reshape of unknown size does."""

    def call(self, x):
        if not TENSORFLOW:
            return x
        import tensorflow as tf

        return tf.reshape(x, tf.stack([tf.shape(x)[0], models.DIMENSIONS]))

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, models.DIMENSIONS), dtype=x.dtype)


@pytest.mark.parametrize("jit", [pytest.param(True, marks=COMPILERS), False])
def test_declared_rows_that_a_layer_loses(jit):
    model = two_towers(
        LoseRows(),
        keras.optimizers.Adam(0.05),
        batch_size=16,
        compile={"jit_compile": jit},
    )
    # Unknown to TensorFlow while tracing, and full all the same.
    history = models.fit(model, batches(64, 16), epochs=3)
    assert history["loss"][-1] < history["loss"][0]
    assert int(to_numpy(model.optimizer.iterations)) == 12
    for size in (8, 24):
        before = state_of(model)
        with pytest.raises(Exception) as caught:
            models.fit(model, batches(size, size))
        assert_fix(caught.value, 16)
        assert "softmax" in str(caught.value)
        assert_same_weights(model, before)
        models.fit(model, batches(32, 16))


def test_the_error_is_a_value_error():
    error = PartialBatchError("words")
    assert str(error) == "words"
    assert isinstance(error, ValueError)


def test_pickle():
    import pickle

    error = pickle.loads(pickle.dumps(PartialBatchError("words")))
    assert type(error) is PartialBatchError and str(error) == "words"


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("rows", [1, None])
def test_the_error_leaves_a_compiled_function_as_it_is(rows):
    import tensorflow as tf

    layer = inbatch_neg.InBatchNegativeSoftmax()

    @tf.function(input_signature=[tf.TensorSpec((rows, 2), tf.float32)])
    def step(vectors):
        if tf.reduce_sum(vectors) > 0.0:  # so that AutoGraph has work
            vectors = vectors + 1.0
        return layer(vectors, vectors)

    with pytest.raises(inbatch_neg.PartialBatchError) as caught:
        step(tf.ones((1, 2)))
    assert str(caught.value).startswith("Partial batch. ")

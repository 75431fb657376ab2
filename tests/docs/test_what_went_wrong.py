"""docs/what-went-wrong.md: each of its messages is raised by a small call."""

import datetime
import pathlib
import re

import keras
import numpy as np
import pytest

import inbatch_neg
from inbatch_neg import full_batches, ops

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "what-went-wrong.md"
HOLE = "…"
ROWS = np.eye(4, 3, dtype="float32")
IDS = np.arange(4)
NUMBERS = np.arange(10)


def layer(query=ROWS, candidate=ROWS, **arguments):
    return inbatch_neg.InBatchNegativeSoftmax()(query, candidate, **arguments)


def logits(**arguments):
    return inbatch_neg.InBatchNegativeSoftmax(**arguments)(ROWS, ROWS)


def unknown_rows():
    import tensorflow as tf

    spec = tf.TensorSpec((None, 3))
    tf.function(layer, input_signature=[spec, spec])(ROWS, ROWS)


def keras_2():
    model = type("Model", (), {"__module__": "tf_keras.src.engine.training"})
    inbatch_neg.RetrievalEvaluation(model(), None, ROWS, IDS, ROWS)


def two_calls():
    memory = inbatch_neg.CrossBatchMemory(8)
    memory(ROWS, IDS)
    memory(ROWS)


def other_batches():
    softmax = inbatch_neg.InBatchNegativeSoftmax()
    softmax(ROWS, ROWS, training=True)
    softmax(ROWS[:2], ROWS[:2])


def fixed_temperature():
    inbatch_neg.InBatchNegativeSoftmax(temperature=0.1).temperature = 0.2


def training_model():
    x = keras.Input((3,))
    vectors = keras.layers.Dense(2)(x)
    losses = inbatch_neg.InBatchNegativeSoftmax()(vectors, vectors)
    model = keras.Model(x, losses)
    model.compile("sgd", loss=inbatch_neg.InBatchNegativeLoss())
    return model, keras.Model(x, vectors)


def exported(folder):
    training_model()[0].export(str(folder / "model"))


def evaluated_in_an_epoch():
    model, tower = training_model()
    evaluate = evaluation(tower, tower, ROWS, IDS, ROWS)
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: evaluate()
    )
    model.fit(ROWS, batch_size=4, callbacks=[callback], verbose=0)


def tower(layer, *others, **arguments):
    return inbatch_neg.ChunkedTower(layer, 2)(ROWS, *others, **arguments)


def spectral():
    dense = keras.layers.Dense(2)
    tower(keras.layers.SpectralNormalization(dense), training=True)


def frame(column):
    full_batches({"id": NUMBERS[:4], "column": column}, 2)


def elements():
    import tensorflow as tf

    rows = tf.data.Dataset.from_tensor_slices(NUMBERS)
    full_batches(rows.batch(3), 2)


def read_twice():
    batches = full_batches((x for x in [NUMBERS]), 4, batched=True)
    for _ in range(2):
        list(batches)


def loader(**arguments):
    torch = pytest.importorskip("torch")
    from_torch = torch.utils.data.DataLoader(
        torch.arange(10), 4, drop_last=arguments.pop("drop_last", True)
    )
    full_batches(from_torch, **{"batch_size": 4, **arguments})


def evaluation(
    query_model=None,
    candidate_model=None,
    queries=ROWS,
    targets=IDS,
    candidates=ROWS,
    **arguments,
):
    return inbatch_neg.RetrievalEvaluation(
        query_model,
        candidate_model,
        queries,
        targets,
        candidates,
        verbose=0,
        **arguments,
    )


def model_of_two_inputs():
    inputs = [keras.Input((), name=name) for name in ("age", "price")]
    stacked = keras.layers.Lambda(lambda x: keras.ops.stack(x, 1))(inputs)
    evaluation(keras.Model(inputs, stacked), None, {"age": IDS})()


def dataset_of_rows():
    import tensorflow as tf

    x = keras.Input((3,))
    rows = tf.data.Dataset.from_tensor_slices(ROWS)
    evaluation(keras.Model(x, x), None, rows)()


def estimate():
    inbatch_neg.StreamingSamplingProbability(20)(None)


def share(targets):
    evaluation(targets=targets)()


CALLS = {
    "Partial batch. The number of rows is unknown:": unknown_rows,
    "Partial batch. Fix: `inbatch_neg.full_batches(data, …)`": lambda: (
        inbatch_neg.InBatchNegativeSoftmax(batch_size=8)(ROWS, ROWS)
    ),
    "`query` and `candidate` must have the same number of dimensions "
    "(columns).": lambda: layer(ROWS, ROWS[:, :2]),
    "`candidate` must have at least as many rows as `query`:": lambda: layer(
        ROWS, ROWS[:3]
    ),
    "`…` must have shape (rows, dimensions).": lambda: layer(ROWS, ROWS[0]),
    "`query` and `candidate` must not both have rank 3:": lambda: layer(
        ROWS[:, None], ROWS[:, None]
    ),
    "`candidate` of shape (rows, …, dimensions) has a positive and … hard "
    "negatives in each row.": lambda: layer(
        candidate=np.ones((4, 68, 3), "float32")
    ),
    "`…` must have one entry per row of `…`": lambda: layer(
        candidate_ids=IDS[:3]
    ),
    "`…` must hold floats.": lambda: layer(IDS[:, None], ROWS),
    "`query_mask` must be True for at least one vector of every row.": (
        lambda: layer(ROWS[:, None], query_mask=np.zeros((4, 1), bool))
    ),
    "`…` comes from Keras 2, and this package is for Keras 3.": keras_2,
    "`…` must hold integers": lambda: layer(
        candidate_ids=IDS.astype("float32")
    ),
    "`…` and `candidate_ids` must both hold integers or both strings.": (
        lambda: evaluation(candidate_ids=list("abcd"))()
    ),
    "`inputs` must be integers, since floats of 32 bits merge ids above": (
        lambda: keras.Sequential([inbatch_neg.SparseEmbedding(9, 2)])(
            keras.Input((), dtype="int32")
        )
    ),
    "`…` must hold floats: probabilities or counts, not logarithms.": (
        lambda: layer(candidate_sampling_probability=IDS)
    ),
    "`…` must hold numbers of 0 or more:": lambda: layer(
        candidate_sampling_probability=-ROWS[:, 0]
    ),
    "`…` must hold bools, True where a candidate may be a negative.": (
        lambda: layer(candidate_mask=IDS)
    ),
    "`sample_weight` cannot be passed to the layer with "
    "`return_logits=True`": lambda: inbatch_neg.InBatchNegativeSoftmax(
        return_logits=True
    )(ROWS, ROWS, sample_weight=ROWS[:, 0]),
    "`…` must be an integer of … or more": lambda: logits(num_negatives=1.5),
    "`…` must be a finite number above 0.": lambda: logits(temperature=0),
    "`num_negatives` must be smaller than the batch:": lambda: logits(
        num_negatives=8
    ),
    '`sampling="hardest"` needs `num_negatives`': lambda: logits(
        sampling="hardest"
    ),
    "`shifts` must be one or more integers, none a multiple of the number of "
    "rows:": lambda: ops.rotation_logits(ROWS, ROWS, [4]),
    "`temperature` cannot be set, since a compiled step would ignore it.": (
        fixed_temperature
    ),
    "`…` cannot be exported on the backend": exported,
    "`capacity` must be at least the number of rows of a batch": lambda: (
        inbatch_neg.CrossBatchMemory(2)(ROWS)
    ),
    "`…` must be passed in every call or in none:": two_calls,
    "`candidate_ids` must be passed:": estimate,
    "`inputs` must be the only positional argument.": lambda: tower(
        keras.layers.Dense(2), IDS
    ),
    "`mask` must be an argument of the tower's `call`": lambda: tower(
        keras.layers.Dense(2), mask=ROWS[:, 0] > 0
    ),
    "`tower` must return tensors with one entry per row of its inputs": (
        lambda: tower(keras.layers.Lambda(lambda x: x[:1]))
    ),
    "`tower` must not call `add_loss` or have an `activity_regularizer`:": (
        lambda: tower(keras.layers.ActivityRegularization(0.1))
    ),
    "`tower` must not assign a trainable weight in its call": spectral,
    "`y_pred` must be the output of `InBatchNegativeSoftmax`:": lambda: (
        inbatch_neg.InBatchNegativeLoss()(IDS, ROWS[:, :1])
    ),
    "`y_pred` must be logits (rows, 1 + negatives) with the positive in "
    "column 0:": lambda: inbatch_neg.InBatchTopKAccuracy(1)(IDS, ROWS[:, 0]),
    "`data` is a list of arrays, which could be several inputs, or an input "
    "and its labels.": lambda: full_batches([NUMBERS, NUMBERS], 4),
    "`batched=True` needs `data` that yields batches:": lambda: full_batches(
        NUMBERS, 4, batched=True
    ),
    "`data` of type … is read in batches:": lambda: full_batches(
        (x for x in [NUMBERS]), 4
    ),
    "The elements of `data` look like batches:": elements,
    "`…` holds dates or times": lambda: frame([datetime.date.today()] * 4),
    "`…` holds missing values": lambda: frame([1, None] * 2),
    "`…` holds rows of unequal length": lambda: frame([[1], [2, 3]] * 2),
    "`…` holds strings, which Keras takes on TensorFlow only": lambda: frame(
        list("abcd")
    ),
    "`columns` must name columns of `data`, which are": lambda: full_batches(
        {"user": NUMBERS}, 4, columns=["item"]
    ),
    "evaluates batches of … rows and trains on …: the losses do not compare": (
        other_batches
    ),
    "`data` as a path must be parquet: a file, a folder, or a list of files": (
        lambda: full_batches("pairs.csv", 4)
    ),
    "`data` must have at least `batch_size` rows": lambda: full_batches(
        NUMBERS, 16
    ),
    "… must have the same number of rows.": lambda: frame(NUMBERS),
    "full_batches leaves out the last … of … rows in every epoch.": lambda: (
        full_batches(NUMBERS, 4)
    ),
    "`data` is an iterator and has been read to its end.": read_twice,
    "`data` is a DataLoader whose last batch may be partial:": lambda: loader(
        drop_last=False
    ),
    "`batch_size` must be that of the DataLoader:": lambda: loader(
        batch_size=8
    ),
    "`shuffle=True` does not apply to a DataLoader:": lambda: loader(
        shuffle=True
    ),
    "`…` must be a keras.Model, or None if vectors are given.": lambda: (
        evaluation(keras.layers.Dense(2))
    ),
    "`…` must return one or more vectors of numbers": lambda: evaluation(
        candidates=IDS
    )(),
    "`…` must have a column for every input of the model": model_of_two_inputs,
    "`…` must be a dataset of batches.": dataset_of_rows,
    "`…` has no weights here: on this backend Keras has taken them out of the "
    "model that trains": evaluated_in_an_epoch,
    "`targets` must be ids from `candidate_ids`": lambda: share(IDS + 4),
    "`…` must have one entry per query": lambda: share(IDS[:3]),
    "`candidate_ids` must all be different": lambda: evaluation(
        candidate_ids=[1, 1, 2, 3]
    ),
    "… of … targets are not in the catalogue and count as not found.": (
        lambda: share(IDS + 1)
    ),
}

# Where a message is raised, if not everywhere.
BACKENDS = {
    unknown_rows: ["tensorflow"],
    read_twice: ["tensorflow"],
    exported: ["jax"],
    evaluated_in_an_epoch: ["jax"],
    "`…` holds strings, which Keras takes on TensorFlow only": ["jax", "torch"],
}


def lines():
    """Returns the messages on the page."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```text\n(.*?)^```$", text, re.S | re.M)
    return [line for block in blocks for line in block.splitlines()]


def on_their_backends():
    for line, call in CALLS.items():
        backends = BACKENDS.get(call) or BACKENDS.get(line)
        marks = [pytest.mark.backends(*backends)] if backends else []
        yield pytest.param(line, marks=marks or [pytest.mark.once], id=line)


@pytest.mark.once
def test_every_message_of_the_page_has_a_call():
    assert sorted(lines()) == sorted(CALLS)


@pytest.mark.parametrize("line", list(on_their_backends()))
def test_a_message_is_as_on_the_page(line, tmp_path, caplog):
    call = CALLS[line]
    try:
        call(tmp_path) if call is exported else call()
        said = caplog.text
    except Exception as error:  # TensorFlow wraps those of its data
        said = str(error)
    # Keras puts words of its own before the message of a layer.
    assert re.search(".*".join(map(re.escape, line.split(HOLE))), said), said

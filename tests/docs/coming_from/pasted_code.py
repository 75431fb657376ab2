"""What docs/coming-from/pasted-code.md says, in equations."""

import keras
import numpy as np
import tensorflow as tf

from tests.docs.coming_from import pages


def comparisons():
    """Returns what is compared, theirs and ours."""
    # The positive's score is 100 below that of the negative.
    scores = np.array([[0.0, 100.0]], "float32")
    labels = np.array([[1.0, 0.0]])
    probabilities = tf.nn.softmax(scores)
    loss = keras.losses.categorical_crossentropy(labels, probabilities)
    return [
        ("in an eager step a loss is at most 16.1", loss, [-np.log(1e-7)]),
        ("in a compiled step it has no limit", _compiled(scores, labels), 100),
        ("a partial batch fails after an epoch", _steps_until_error(), 1),
    ]


def _compiled(scores, labels):
    model = keras.Sequential([keras.layers.Lambda(tf.nn.softmax)])
    model.compile("sgd", loss="categorical_crossentropy")
    return model.evaluate(scores, labels, verbose=0)


def _steps_until_error():
    """Returns the steps before the partial batch of a second epoch's data."""
    page = pages.run("pasted-code", pages.DATA, pages.BEFORE)
    rows, labels, count = page["rows"], page["labels"], page["ROWS"] + 10
    steps = []
    counting = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(batch)
    )
    more = {name: np.resize(column, count) for name, column in rows.items()}
    try:
        page["model"].fit(
            more,
            np.resize(labels, (count, labels.shape[1])),
            batch_size=page["ROWS"],
            shuffle=False,
            verbose=0,
            callbacks=[counting],
        )
    except tf.errors.InvalidArgumentError:
        return len(steps)
    return -1

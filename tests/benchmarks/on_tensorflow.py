"""Contenders on TensorFlow: compiled by `tf.function`, without XLA.

Each takes the `Inputs` and returns a function without arguments that gives
the mean loss and its gradients by the queries and the candidates.
"""

import tensorflow as tf


def differentiated(inputs, loss_of, dtype=tf.float32, xla=False, **tensors):
    """Returns the compiled step of `loss_of(query, candidate, **tensors)`."""
    query = tf.cast(inputs.query, dtype)
    candidate = tf.cast(inputs.candidate, dtype)
    tensors = {name: tf.constant(value) for name, value in tensors.items()}

    @tf.function(jit_compile=xla)
    def step(query, candidate, tensors):
        with tf.GradientTape() as tape:
            tape.watch([query, candidate])
            loss = loss_of(query, candidate, **tensors)
        return loss, *tape.gradient(loss, [query, candidate])

    return lambda: step(query, candidate, tensors)


def ours(inputs, dtype=tf.float32):
    """`inbatch_neg.ops.in_batch_softmax_loss`."""
    from inbatch_neg import ops

    def loss_of(query, candidate, **rules):
        losses = ops.in_batch_softmax_loss(query, candidate, **rules)
        return tf.reduce_mean(losses)

    return differentiated(inputs, loss_of, dtype, **inputs.rules)


def positions(inputs, length=50):
    """Windows of 50 positions, a fifth of them padding, with ids and q."""
    from inbatch_neg import ops

    windows = len(inputs.query) // length
    mask = tf.broadcast_to(tf.range(length) < 40, (windows, length))

    def loss_of(query, candidate, ids, probability):
        rows = ops.positions(
            tf.reshape(query, (windows, length, -1)),
            tf.reshape(candidate, (windows, length, -1)),
            mask,
            tf.reshape(ids, (windows, length)),
            tf.range(windows),
            tf.reshape(probability, (windows, length)),
        )
        return tf.reduce_mean(ops.in_batch_softmax_loss(**rows))

    return differentiated(
        inputs,
        loss_of,
        ids=inputs.candidate_ids,
        probability=inputs.probability,
    )


def ours_uneven(inputs):
    """With another weight for each row, so another upstream gradient."""
    from inbatch_neg import ops

    weight = tf.linspace(0.5, 1.5, len(inputs.query))

    def loss_of(query, candidate):
        losses = ops.in_batch_softmax_loss(query, candidate)
        return tf.reduce_mean(losses * tf.cast(weight, losses.dtype))

    return differentiated(inputs, loss_of)


def ours_bfloat16(inputs):
    """Of half-precision towers, as a `mixed_bfloat16` policy has them."""
    return ours(inputs, tf.bfloat16)


def ours_float16(inputs):
    """As a `mixed_float16` policy has them."""
    return ours(inputs, tf.float16)


def tfrs(inputs):
    """TensorFlow Recommenders' retrieval task. It sums over the batch."""
    import tensorflow_recommenders

    task = tensorflow_recommenders.tasks.Retrieval(
        remove_accidental_hits=inputs.with_rules
    )
    rows = len(inputs.query)

    def loss_of(query, candidate, **rules):
        loss = task(query, candidate, compute_metrics=False, **rules)
        return loss / rows

    return differentiated(inputs, loss_of, **inputs.rules)


def keras_rs(inputs):
    """Keras Recommenders' layers, one-hot labels and Keras' cross-entropy."""
    import keras
    import keras_rs as library

    correct = library.layers.SamplingProbabilityCorrection()
    remove_hits = library.layers.RemoveAccidentalHits()
    cross_entropy = keras.losses.CategoricalCrossentropy(from_logits=True)

    def loss_of(
        query,
        candidate,
        candidate_ids=None,
        candidate_sampling_probability=None,
    ):
        logits = keras.ops.matmul(query, keras.ops.transpose(candidate))
        labels = keras.ops.eye(*logits.shape)
        if inputs.with_rules:
            logits = correct(logits, candidate_sampling_probability)
            logits = remove_hits(logits, labels, candidate_ids)
        return cross_entropy(labels, logits)

    return differentiated(inputs, loss_of, **inputs.rules)


def plain(inputs):
    """A matrix product and TensorFlow's sparse softmax cross-entropy."""
    return _plain(inputs, xla=False)


def _plain(inputs, xla):
    def loss_of(
        query,
        candidate,
        candidate_ids=None,
        candidate_sampling_probability=None,
    ):
        scores = tf.matmul(query, candidate, transpose_b=True)
        rows = tf.range(len(inputs.query))
        if inputs.with_rules:
            scores -= tf.math.log(candidate_sampling_probability)
            same = candidate_ids[:, None] == candidate_ids[None, :]
            same &= rows[:, None] != rows[None, :]
            scores = tf.where(same, -1e30, scores)
        return tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(rows, scores)
        )

    return differentiated(inputs, loss_of, xla=xla, **inputs.rules)


def plain_xla(inputs):
    """The same, compiled by XLA."""
    return _plain(inputs, xla=True)


def limit(inputs):
    """The three matrix products that any exact gradient needs, and no more.

    Queries of several vectors count as so many rows. From 32,768 rows on by
    blocks of rows, of 1 GB of scores each.
    """
    query = tf.constant(inputs.query.reshape(-1, inputs.query.shape[-1]))
    candidate = tf.constant(inputs.candidate)
    block_rows = max(2**28 // len(candidate), 1)

    @tf.function
    def products(block, candidate):
        scores = tf.matmul(block, candidate, transpose_b=True)
        return (
            tf.matmul(scores, candidate),
            tf.matmul(scores, block, transpose_a=True),
        )

    def step():
        for start in range(0, len(query), block_rows):
            products(query[start : start + block_rows], candidate)

    return step


def limit_in_chunks(inputs):
    """The same products in chunks of rows, which stay in the cache.

    As in the loop of the package, with the sums over the chunks.
    """
    from inbatch_neg.softmax.chunks import Chunks
    from inbatch_neg.softmax.log_q_and_masks import Scoring

    query = tf.constant(inputs.query)
    candidate = tf.constant(inputs.candidate)
    rows = Chunks(query, candidate, Scoring()).size

    @tf.function
    def products(query, candidate):
        def chunk(index, d_query, d_candidate):
            start = index * rows
            part = query[start : start + rows]
            scores = tf.matmul(part, candidate, transpose_b=True)
            d_query = tf.tensor_scatter_nd_update(
                d_query,
                (start + tf.range(rows))[:, None],
                tf.matmul(scores, candidate),
            )
            d_candidate += tf.matmul(part, scores, transpose_a=True)
            return index + 1, d_query, d_candidate

        return tf.while_loop(
            lambda index, *_: index < len(query) // rows,
            chunk,
            (0, tf.zeros_like(query), tf.zeros_like(tf.transpose(candidate))),
            parallel_iterations=1,
        )[1:]

    def step():
        products(query, candidate)

    return step

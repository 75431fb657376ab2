"""The maths as pure functions of tensors, for custom layers and loops."""

from collections.abc import Sequence

from keras import ops

from inbatch_neg import arguments, batch_checks, keras_private
from inbatch_neg.positions import flatten
from inbatch_neg.softmax import loss
from inbatch_neg.softmax.batch import Batch
from inbatch_neg.softmax.log_q_and_masks import compute_dtype, product_dtype
from inbatch_neg.softmax.rotation import rotated_scores
from inbatch_neg.types import Tensor


@keras_private.restore_model_state
def in_batch_softmax_loss(
    query: Tensor,
    candidate: Tensor,
    *,
    candidate_ids: Tensor = None,
    query_ids: Tensor = None,
    candidate_sampling_probability: Tensor = None,
    candidate_mask: Tensor = None,
    sample_weight: Tensor = None,
    query_mask: Tensor = None,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """Softmax loss of each row's positive among the candidates of the batch.

    ```
    s_ij   = <query_i, candidate_j> / temperature - log q_j
    loss_i = weight_i * (logsumexp over j of s_ij - s_ii)
    ```

    where j runs over the row's own positive i and its unmasked negatives.
    Losses and gradients are exact and take O((B + C)D) memory: the B x C
    matrix of scores is not kept, except for small batches. There are
    gradients with respect to `query`, `candidate`, `sample_weight`, and
    `temperature` if it is a tensor.

    Args:
        query: (B, D) floats, B of 2 or more. Or (B, P, D), P vectors per row:
            `<query_i, candidate_j>` is then the largest of the P products,
            and the gradient goes to the vector that it belongs to, among
            equal ones the first.
        candidate: (C, D) floats, C of B or more. Row i is the positive of
            query i; rows B and up are extra negatives for every row. Or
            (B, 1 + K, D), n-tuples: the positive of each row, then K hard
            negatives, which count as rows B and up, row by row; then ids,
            probabilities and mask of the candidates are (B, 1 + K) too.
        candidate_ids: (C,) integers (strings too on TensorFlow). A negative
            with the id of the row's positive is masked.
        query_ids: (B,) integers or strings. A negative that is the positive
            of a row with the same query id is masked.
        candidate_sampling_probability: (C,) floats in (0, 1], the probability
            that a given row holds the candidate. Its logarithm is subtracted
            from every score, the positive's too. Counts, as floats, serve as
            well: they are right up to a constant factor, which the softmax
            cancels. Zero and values below 1.2e-38 count as 1.2e-38.
        candidate_mask: (C,) bools. False: this candidate is a negative of no
            row. A row's own positive always stays.
        sample_weight: (B,) numbers that multiply the losses. NaN in a
            query of weight 0 has no effect, nor has NaN in a masked candidate
            whose row, if it has one, has weight 0.
        query_mask: (B, P) bools, with queries (B, P, D). False: this vector
            is ignored. A row without any other is an error in an eager call;
            in a compiled step it counts as one vector of zeros, with a
            gradient of 0.
        temperature: Number above 0, or scalar tensor, that divides the scores.

    Returns:
        (B,) float32 losses (float64 for float64 inputs). A row without
        unmasked negatives has loss 0 and gradient 0.

    Raises:
        ValueError: for a wrong shape; a temperature that is a number and not
            above 0; probabilities that are negative or NaN, if they can be
            read, as in eager calls (they give NaN losses otherwise).
        TypeError: for a wrong dtype, such as float ids or integer
            probabilities.

    Example:
    >>> import numpy as np
    >>> query = candidate = np.eye(3, dtype="float32")
    >>> loss = in_batch_softmax_loss(query, candidate, temperature=0.5)
    >>> print(np.asarray(loss).round(4))
    [0.2395 0.2395 0.2395]

    References: Yi et al. 2019, "Sampling-bias-corrected neural modeling for
    large corpus item recommendations" (RecSys, doi 10.1145/3298689.3346996).
    """
    batch = Batch(
        query,
        candidate,
        candidate_ids=candidate_ids,
        query_ids=query_ids,
        candidate_sampling_probability=candidate_sampling_probability,
        candidate_mask=candidate_mask,
        sample_weight=sample_weight,
        query_mask=query_mask,
    )
    batch = batch_checks.to_tensors(batch)
    batch_checks.check_batch(batch)
    temperature = arguments.check_temperature(temperature)
    if not isinstance(temperature, float):
        dtype = compute_dtype(batch.query, batch.candidate)
        temperature = ops.cast(temperature, dtype)
    batch = batch.flatten().fill_queries().clear_uncounted()
    return loss.batch_loss(
        batch,
        temperature,
        with_gradients=True,
        product_dtype=product_dtype(batch),
    )


@keras_private.restore_model_state
def rotation_logits(
    query: Tensor, candidate: Tensor, shifts: Sequence[int] | Tensor
) -> Tensor:
    """Scores of each row's positive and of its negatives by rotation.

    ```
    logits_i0 = <query_i, candidate_i>
    logits_ik = <query_i, candidate_j>,  j = (i + shifts_k) mod B
    ```

    Args:
        query: (B, D) floats.
        candidate: (B, D) floats.
        shifts: N integers, a sequence or a tensor (N,).

    Returns:
        (B, 1 + N) float32 (float64 for float64 inputs), positive first.

    Raises:
        ValueError: for a wrong shape, or for a known shift that is a multiple
            of B, which would make the positive its own negative.
        TypeError: for a wrong dtype.

    Example:
    >>> import numpy as np
    >>> rotation_logits(np.eye(2), np.eye(2), [1]).shape[1]
    2
    """
    query = arguments.to_tensor("query", query)
    candidate = arguments.to_tensor("candidate", candidate)
    batch_checks.check_vectors(query, candidate)
    if candidate.shape[0] != query.shape[0]:
        raise ValueError(
            "`candidate` must have as many rows as `query` to rotate. "
            f"Received: query.shape={tuple(query.shape)}, "
            f"candidate.shape={tuple(candidate.shape)}"
        )
    shifts = arguments.check_shifts(shifts, query.shape[0])
    dtype = compute_dtype(query, candidate)
    query, candidate = ops.cast(query, dtype), ops.cast(candidate, dtype)
    positive = ops.sum(query * candidate, axis=1, keepdims=True)
    return ops.concatenate(
        [positive, rotated_scores(query, candidate, shifts)], axis=1
    )


@keras_private.restore_model_state
def positions(
    query: Tensor,
    candidate: Tensor,
    mask: Tensor,
    candidate_ids: Tensor = None,
    query_ids: Tensor = None,
    candidate_sampling_probability: Tensor = None,
) -> dict[str, Tensor]:
    """Every position of a sequence as a row of the softmax, padding left out.

    For a tower that returns a vector per position, each of which has a
    positive of its own, such as the item that came next. B sequences of T
    positions become B T rows: `softmax(**positions(query, candidate, mask))`.

    ```
    row b T + t  =  position t of sequence b
    weight       =  B T / (number of valid positions), 0 for padding
    ```

    So the mean over the B T rows, which `InBatchNegativeLoss` takes, is the
    mean over the valid positions. Padding is nobody's negative either. What
    its vectors hold has no effect, NaN included. With several replicas, each
    takes the mean over its own valid positions, and Keras the mean of these.

    Args:
        query: (B, T, D) floats.
        candidate: (B, T, D) floats, the positive of each position.
        mask: (B, T) bools, False for padding. A batch of padding alone has
            loss 0 and gradient 0.
        candidate_ids: (B, T) integers (strings too on TensorFlow).
        query_ids: (B, T), or (B,), one for all positions of a sequence: these
            are then no negatives of each other.
        candidate_sampling_probability: (B, T) floats.

    Returns:
        A dict of arguments of `InBatchNegativeSoftmax` and of
        `in_batch_softmax_loss`: those that were passed, with the first two
        dimensions as one, `candidate_mask` and `sample_weight`, (B T,)
        float32. Multiply this by weights of your own. With
        `return_logits=True`, take it out and pass it to the loss; then the
        vectors of padding must be finite. Static sizes stay static, so that
        the layer still refuses a partial batch.

    Raises:
        ValueError: for shapes that differ.
        TypeError: for a mask that does not hold bools.

    Example:
    >>> import numpy as np
    >>> query = candidate = np.eye(6, dtype="float32").reshape(2, 3, 6)
    >>> mask = np.array([[True, True, True], [True, False, False]])
    >>> rows = positions(query, candidate, mask)
    >>> print(np.asarray(rows["sample_weight"]))
    [1.5 1.5 1.5 1.5 0.  0. ]
    >>> loss = in_batch_softmax_loss(**rows, temperature=0.5)
    >>> round(float(np.mean(np.asarray(loss))), 4)  # among four
    0.3408

    References: Kang and McAuley 2018, "Self-attentive sequential
    recommendation" (arXiv 1808.09781), which trains on all positions.
    """
    return flatten(
        {
            "query": query,
            "candidate": candidate,
            "mask": mask,
            "candidate_ids": candidate_ids,
            "query_ids": query_ids,
            "candidate_sampling_probability": candidate_sampling_probability,
        }
    )

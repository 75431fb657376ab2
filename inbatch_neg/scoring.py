"""From dot products to the scores that compete: log q, masks, softmax.

A `Scoring` holds what is added to a column of the score matrix and which
entries of a row are left out. Both the walk and the logits ask it, so the
rules stand once.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from inbatch_neg import engines

# A score that is left out. Scores are never of less than 32 bits here, where
# exp(MASKED - m) is exactly 0 for every real score m, and MASKED plus a score
# is still finite.
MASKED = -1e30

# The smallest normal float32: log 0 would be -inf.
SMALLEST_PROBABILITY = 1.1754944e-38


class Scoring(NamedTuple):
    """How the dot product of row i and candidate j becomes a score.

    Attributes:
        column_bias: (C,) added to the scores of a candidate, or None.
        own_bias: (B,) added to the score of a row's own positive, or None.
        codes: pairs of int32 codes, (B,) of the rows and (C,) of the
            candidates; a negative with the code of the row is left out.
        masked_columns: (C,) bools, candidates that are left out of all rows,
            or None.

    What is left out may include a row's own positive; it stays all the same.
    """

    column_bias: Any = None
    own_bias: Any = None
    codes: tuple = ()
    masked_columns: Any = None


def make(
    rows,
    candidates,
    dtype,
    candidate_ids=None,
    query_ids=None,
    candidate_sampling_probability=None,
    candidate_mask=None,
):
    """Returns the `Scoring` of a batch of `rows` rows.

    Args:
        rows: Number of rows B, an int or a scalar tensor.
        candidates: Number of candidates C, likewise.
        dtype: Of the scores.
        candidate_ids: (C,) integers or strings, or None.
        query_ids: integers or strings, or None: (B,), or more than B where
            the candidates after the first B are positives of rows elsewhere.
        candidate_sampling_probability: (C,) in (0, 1], or None.
        candidate_mask: (C,) bool, or None.
    """
    column_bias = own_bias = None
    codes = []
    if candidate_sampling_probability is not None:
        # The correction of Yi et al. 2019: the score minus log q.
        column_bias = -ops.log(
            ops.maximum(
                ops.cast(candidate_sampling_probability, dtype),
                constant(SMALLEST_PROBABILITY, dtype),
            )
        )
        column_bias = ops.stop_gradient(column_bias)
        own_bias = column_bias[:rows]
    masked_columns = None
    if candidate_mask is not None:
        masked_columns = ops.logical_not(candidate_mask)
    if candidate_ids is not None:
        column_codes = engines.dense_codes(candidate_ids)
        codes.append((column_codes[:rows], column_codes))
    if query_ids is not None:
        positive_codes = engines.dense_codes(query_ids)
        # Extra candidates belong to no row's query; no code is -1.
        extra = candidates - ops.shape(positive_codes)[0]
        extra = ops.full((extra,), -1, dtype="int32")
        column_codes = ops.concatenate([positive_codes, extra])
        codes.append((positive_codes[:rows], column_codes))
    return Scoring(column_bias, own_bias, tuple(codes), masked_columns)


def constant(value, dtype):
    """Returns the number as a tensor of this dtype.

    On PyTorch, Keras takes a Python float for a float32, and float64 beside
    one falls to float32.
    """
    return ops.convert_to_tensor(value, dtype=dtype)


def left_out(row_codes, column_codes, masked_columns):
    """Returns bools, True where a candidate is left out; None if nowhere.

    Args:
        row_codes: the row half of each pair of `Scoring.codes`, any shape.
        column_codes: the candidate half, of a shape that broadcasts with it.
        masked_columns: bools of a shape that broadcasts too, or None.
    """
    hit = masked_columns
    for row_code, column_code in zip(row_codes, column_codes):
        equal = ops.equal(row_code, column_code)
        hit = equal if hit is None else ops.logical_or(hit, equal)
    return hit


def cross_entropy_with_first(logits):
    """Returns (B,) softmax cross-entropies of (B, 1 + K) with column 0."""
    # Subtracted first: beside a large score, the logarithm would be rounded.
    return ops.logsumexp(logits - logits[:, :1], axis=-1)


def compute_dtype(*tensors):
    """The dtype of the maths: float64 if an input has it, else float32.

    Half-precision inputs are cast up: (B, D) floats are cheap to cast, and a
    half-precision B x C product would round every score.
    """
    dtypes = [keras.backend.standardize_dtype(t.dtype) for t in tensors]
    return "float64" if "float64" in dtypes else "float32"

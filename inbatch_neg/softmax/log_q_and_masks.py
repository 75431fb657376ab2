"""From dot products to scores: log q correction, masks, softmax.

A `Scoring` holds what is added to the columns of the score matrix and which
entries are masked. The exact losses and the logits share it, so that the rules
are written once.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops
from keras.backend import standardize_dtype

from inbatch_neg.backends import HALF, backend
from inbatch_neg.softmax import several_vectors
from inbatch_neg.softmax.batch import Batch
from inbatch_neg.types import Tensor

# A masked score. Scores have at least 32 bits, so exp(MASKED - m) is exactly 0
# for every real score m, and MASKED plus a score is finite.
MASKED = -1e30

# The smallest normal float32: log 0 would be -inf.
SMALLEST_PROBABILITY = 1.1754944e-38


class HalfVectors(NamedTuple):
    """Vectors to multiply in half precision, and the scale of their products.

    Attributes:
        query: (B, D), not divided by the temperature.
        candidate: (C, D).
        scale: Scalar, 1 / temperature.
    """

    query: Tensor
    candidate: Tensor
    scale: Tensor


class Scoring(NamedTuple):
    """How the dot product of row i and candidate j becomes a score.

    Attributes:
        column_bias: (C,), added to the scores of a candidate; or None.
        positive_bias: (B,), added to the score of a row's positive; or None.
        codes: Pairs of int32 codes, (B,) of the rows and (C,) of the
            candidates; a negative with the code of the row is masked.
        masked_columns: (C,) bools, candidates that are masked in all rows;
            or None.
        half: The vectors in half precision, whose products take the place of
            those of the others; or None.

    These masks may include a row's own positive, which stays nevertheless.
    """

    column_bias: Tensor = None
    positive_bias: Tensor = None
    codes: tuple[tuple[Tensor, Tensor], ...] = ()
    masked_columns: Tensor = None
    half: HalfVectors | None = None


def make_scoring(batch: Batch) -> Scoring:
    """Returns the `Scoring` of a batch, in the dtype of its queries."""
    rows = batch.rows
    column_bias = positive_bias = masked_columns = None
    codes = []
    if batch.candidate_sampling_probability is not None:
        column_bias = _minus_log_q(
            batch.candidate_sampling_probability, batch.query.dtype
        )
        positive_bias = column_bias[:rows]
    if batch.candidate_mask is not None:
        masked_columns = ops.logical_not(batch.candidate_mask)
    if batch.candidate_ids is not None:
        column_codes = backend.factorize(batch.candidate_ids)
        codes.append((column_codes[:rows], column_codes))
    if batch.query_ids is not None:
        positive_codes = backend.factorize(batch.query_ids)
        # Extra candidates belong to no query; their code -1 equals no other.
        extra = batch.candidates - ops.shape(positive_codes)[0]
        extra = ops.full((extra,), -1, dtype="int32")
        column_codes = ops.concatenate([positive_codes, extra])
        codes.append((positive_codes[:rows], column_codes))
    return Scoring(column_bias, positive_bias, tuple(codes), masked_columns)


def _minus_log_q(probability: Tensor, dtype: str) -> Tensor:
    """Returns the correction of Yi et al. 2019, without gradient."""
    probability = ops.cast(probability, dtype)
    smallest = constant(SMALLEST_PROBABILITY, dtype)
    # Values below 0 and NaN give NaN: otherwise logarithms in the place of
    # probabilities would silently become a constant correction.
    low = ops.where(probability >= 0, smallest, constant(math.nan, dtype))
    probability = ops.where(probability > smallest, probability, low)
    return ops.stop_gradient(-ops.log(probability))


def constant(value: float | Tensor, dtype: str) -> Tensor:
    """Returns the number as a tensor of this dtype.

    On some backends, Keras treats a Python float as float32, and turns a
    float64 operand into float32 too. Under `floatx` "bfloat16" it treats a
    Python integer as a float, even next to an int32. So integers are computed
    with Python's operators, which are those of the backend, or with constants
    from this function.
    """
    return ops.convert_to_tensor(value, dtype=dtype)


def left_out(
    row_codes: Sequence[Tensor],
    column_codes: Sequence[Tensor],
    masked_columns: Tensor,
) -> Tensor:
    """Returns bools, True where a candidate is masked; None without masks.

    Args:
        row_codes: The codes of rows of `Scoring.codes`, of any shape.
        column_codes: The codes of candidates, of shapes that broadcast with
            them.
        masked_columns: Bools of a shape that broadcasts too, or None.
    """
    hit = masked_columns
    for row_code, column_code in zip(row_codes, column_codes):
        equal = ops.equal(row_code, column_code)
        hit = equal if hit is None else ops.logical_or(hit, equal)
    return hit


def cross_entropy_with_first(logits: Tensor) -> Tensor:
    """Returns (B,) softmax cross-entropies of (B, 1 + K) with column 0."""
    # Subtracted first: added to a large score, the logarithm would be rounded.
    return ops.logsumexp(logits - logits[:, :1], axis=-1)


def compute_dtype(*tensors: Tensor) -> str:
    """The dtype of the maths: float64 if an input has it, else float32.

    Half-precision inputs are cast to float32: (B, D) floats are cheap to cast,
    and a B x C product that has half precision would round every score.
    """
    dtypes = [standardize_dtype(t.dtype) for t in tensors]
    return "float64" if "float64" in dtypes else "float32"


def at_least_float32(dtype: Any) -> Any:
    """Returns the dtype or policy; float32 in place of half precision.

    Sums over the rows of a batch need 32 bits: 8,192 losses of 9 exceed the
    range of float16, and counting by ones stops at 256 in bfloat16.
    """
    policy = keras.dtype_policies.get(dtype or keras.config.floatx())
    return "float32" if policy.compute_dtype in HALF else dtype


def product_dtype(batch: Batch) -> str | None:
    """Returns the half precision to multiply in; None for that of the maths.

    Args:
        batch: The batch before it is cast to the dtype of the maths.
    """
    query, candidate = batch.query, batch.candidate
    dtype = standardize_dtype(query.dtype)
    if (
        dtype in HALF
        and dtype == standardize_dtype(candidate.dtype)
        and several_vectors.vectors_per_row(query, candidate) == 1
        and backend.has_half_products(query)
    ):
        return dtype
    return None


def half_vectors(
    batch: Batch, dtype: str, temperature: float | Tensor
) -> HalfVectors:
    """Returns the vectors in half precision, without gradient.

    Args:
        batch: The batch in float32, of values that half precision has.
        dtype: From `product_dtype`.
        temperature: Divides the scores.
    """
    batch = batch.cast(dtype)
    scale = ops.cast(1.0 / temperature, "float32")
    return HalfVectors(
        *map(ops.stop_gradient, (batch.query, batch.candidate, scale))
    )

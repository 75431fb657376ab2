"""The interface of a backend, with defaults in `keras.ops`.

One subclass per backend, in its own file, overrides what differs. No other
module depends on which backend is used.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
from keras import ops

from inbatch_neg.types import Size, Tensor

HALF = ("float16", "bfloat16")


class Tuning(NamedTuple):
    """Sizes that affect speed and memory only.

    Attributes:
        chunk_scores: The intended number of scores in a chunk. More rows make
            faster matrix products and fewer updates of the candidates'
            gradient, but a larger chunk does not fit into the cache.
        wide_dimensions: With twice as many dimensions as this, a chunk has
            twice as many scores, and so on: the candidates' gradient, which
            every chunk updates, is larger too. None: never.
        min_chunk_rows: The minimum number of rows of a chunk.
        max_chunk_rows: The maximum number of rows of a chunk.
        max_chunk_scores: The maximum number of scores in a chunk, which
            takes precedence over the number of rows.
        table_scores: Like `chunk_scores`, for each table of a chunk if there
            are several vectors per row.
        max_dense_scores: Up to this many scores, the whole matrix is kept and
            the backend's own derivative is used. This is faster for a small
            batch, whose memory does not matter.
    """

    chunk_scores: int = 2**21
    wide_dimensions: int | None = 128
    min_chunk_rows: int = 128
    max_chunk_rows: int = 1024
    max_chunk_scores: int = 2**31 - 1
    table_scores: int = 2**18
    max_dense_scores: int = 2**16


# Not measured: no GPU was available. A GPU needs larger chunks to be busy, and
# has the memory for them. Others measured that 8,192 rows are enough.
GPU_TUNING = Tuning(
    chunk_scores=2**26,
    wide_dimensions=None,
    max_chunk_rows=8192,
    table_scores=2**24,
    max_dense_scores=2**20,
)


class Backend:
    """The defaults, used on every backend that does not override them.

    Attributes:
        name: The name in Keras.
        id_dtypes: The dtypes of ids; the backend can sort all of them.
        cpu_tuning: The sizes that are fast on a CPU.
        can_export_losses: Whether an export can hold our custom gradients.
    """

    name: str
    can_export_losses: bool = True
    cpu_tuning: Tuning = Tuning()
    id_dtypes: tuple[str, ...] = (
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
    )

    # Matrix products

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns the product of (R, C) and (C, D), in their common dtype."""
        return ops.matmul(left, right)

    def matmul_no_grad(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns `matmul(left, right)`, without gradient support.

        Of two matrices in half precision it returns a product in float32.
        """
        if keras.backend.standardize_dtype(left.dtype) in HALF:
            return self.half_matmul(left, right)
        return self.matmul(left, right)

    def has_half_products(self, tensor: Tensor) -> bool:
        """Returns whether the device of `tensor` has units for `half_matmul`.

        Args:
            tensor: In half precision.
        """
        return False

    def half_matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns a float32 product of matrices in half precision.

        The sums are in float32 too. Without gradient support.
        """
        return self.matmul(
            ops.cast(left, "float32"), ops.cast(right, "float32")
        )

    def addmm(self, tensor: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Returns (D, C) `tensor` plus the product of (D, R) and (R, C).

        Without gradient support. May modify `tensor` in place; do not reuse
        it.
        """
        return tensor + self.matmul_no_grad(left, right)

    def cross_entropy(self, scores: Tensor) -> Tensor:
        """Returns (B,), of (B, C) scores whose row i has the label i."""
        # Subtracted from 0: a negated loss of 0 would be -0.
        return 0.0 - ops.diagonal(ops.log_softmax(scores))

    def tuning(self, tensor: Tensor) -> Tuning:
        """Returns the sizes that are fast on the device of `tensor`.

        Those of CPUs were measured with 2 cores, B from 64 to 131,072 at
        D = 64, and D from 8 to 1,024 at B = 8,192, by `python -m
        tests.benchmarks`.
        """
        return GPU_TUNING if self.is_on_gpu(tensor) else self.cpu_tuning

    def is_on_gpu(self, tensor: Tensor) -> bool:
        """Whether `tensor` is, or will be, computed on a GPU or a TPU."""
        raise NotImplementedError

    # Rows and ids

    def update_rows(self, tensor: Tensor, start: Size, rows: Tensor) -> Tensor:
        """Returns `tensor` with its rows from `start` on replaced by `rows`.

        May modify `tensor` in place; do not reuse it.
        """
        rest = (0,) * (len(tensor.shape) - 1)
        return ops.slice_update(tensor, (start, *rest), rows)

    def update_diagonal(
        self, table: Tensor, start: Size, values: Tensor
    ) -> Tensor:
        """Returns an (R, C) table with (R,) values at (r, start + r).

        May modify `table` in place; do not reuse it.
        """
        row = ops.arange(ops.shape(values)[0], dtype="int32")
        return ops.scatter_update(
            table, ops.stack([row, row + start], axis=1), values
        )

    def add_columns(self, table: Tensor, values: Tensor) -> Tensor:
        """Returns an (R, C) table plus (C,) values in each row.

        May modify `table` in place; do not reuse it.
        """
        return table + values

    def fill(self, table: Tensor, places: Tensor, value: Tensor) -> Tensor:
        """Returns an (R, C) table with a scalar where (R, C) bools are True.

        May modify `table` in place; do not reuse it.
        """
        return ops.where(places, value, table)

    def factorize(self, ids: Tensor) -> Tensor:
        """Returns int32 codes (n,), which are equal where the ids are equal.

        The code of an id is its first index among the sorted ids. Comparing
        int32 is faster than comparing int64 or strings, and -1 can stand for
        "no id".
        """
        return ops.cast(ops.searchsorted(ops.sort(ids), ids), "int32")

    def top_k(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns the k highest scores of each row and their int32 indices.

        Among equal scores, the one with the lower index comes first.
        """
        best, indices = ops.top_k(scores, k)
        return best, ops.cast(indices, "int32")

    def maximum(self, one: Tensor, other: Tensor) -> Tensor:
        """Returns the entrywise maximum, NaN where either is NaN."""
        return ops.maximum(one, other)

    def hash_strings(self, ids: Tensor) -> Tensor:
        """Returns the ids, with strings hashed to integers of 63 bits."""
        return ids

    def widest_integer(self) -> str:
        """Returns "int64", or "int32" if the backend has nothing wider."""
        return "int64"

    # Differentiation, compilation, order of execution

    def custom_gradient(
        self,
        function: Callable[
            ..., tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]
        ],
    ) -> Callable[..., Tensor]:
        """Returns a function with a custom gradient.

        Args:
            function: Returns its value, and a function from the upstream
                gradient to the gradients of its arguments.
        """
        return ops.custom_gradient(function)

    def compile(self, function: Callable, xla: bool = True) -> Callable:
        """Returns `function` of tensors, compiled if the backend can.

        XLA fuses elementwise operations and sums into one loop over a matrix.
        `xla` says whether to use it, if the backend has a choice.
        """
        return function

    def with_control_dependency(
        self, tensor: Tensor, earlier: Tensor
    ) -> Tensor:
        """Returns `tensor`, available after `earlier` has been computed."""
        return tensor

    def after(
        self, tensors: Sequence[Tensor]
    ) -> contextlib.AbstractContextManager:
        """A context whose operations run after tensors have been computed.

        Every assignment of a step stands in it, with the tensors of the batch
        (None for a missing one): one that does not depend on them could run
        in a step that finds no batch.
        """
        return contextlib.nullcontext()

    def full_precision_matmul(self) -> contextlib.AbstractContextManager:
        """A context in which float32 products are not rounded to fewer bits."""
        return contextlib.nullcontext()

    # Sizes and values that are known only at run time

    def asserts_rows(self) -> bool:
        """Returns whether `ensure_rows` acts in a step that is being traced."""
        return False

    def ensure_rows(
        self,
        tensors: Sequence[Tensor],
        rows: int | None,
        message: str,
        name: str,
    ) -> list[Tensor]:
        """Returns the tensors of a batch; refuses a partial one at run time.

        Args:
            tensors: Tensors or None; the first one is checked.
            rows: The number of rows that the first tensor must have, which
                is static in the result; or None, for 2 or more.
            message: Of the backend's own exception.
            name: Of the operation that fails, in that exception too.
        """
        return list(tensors)

    def is_readable(self, tensor: Tensor) -> bool:
        """Returns whether the values of a tensor can be read cheaply."""
        return False

    def has_value(self, tensor: Tensor) -> bool:
        """Returns whether a tensor has a value: not a tracer, nor deleted."""
        return True

    def ensure_at_most_rows(
        self, tensor: Tensor, rows: int, message: str
    ) -> Tensor:
        """Returns `tensor`; refuses more than `rows` rows at run time."""
        return tensor

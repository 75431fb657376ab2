"""What the package asks of a backend: the defaults, in `keras.ops`.

One subclass per backend, in a file of its own, overrides what differs there.
No other module names a backend.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from inbatch_neg.backends.collectives import Collectives, Sharding
from inbatch_neg.backends.tower_call import TowerCall, Values
from inbatch_neg.backends.types import Size, Tensor


class Tuning(NamedTuple):
    """Sizes that decide about speed alone.

    Attributes:
        chunk_scores: The scores that a chunk should have. More rows make
            better matrix products and fewer updates of the candidates'
            gradient; a larger chunk falls out of the cache.
        min_chunk_rows: The fewest rows of a chunk, whatever its scores.
        max_chunk_rows: The most rows of a chunk.
        max_chunk_scores: The most scores of a chunk, whatever its rows.
        table_scores: The scores that each of the tables of a chunk should
            have, where there are several vectors a row.
        max_dense_scores: Up to so many scores, the whole matrix is kept and
            the backend's own derivative is used: faster for a small batch,
            whose memory does not matter.
    """

    chunk_scores: int = 2**21
    min_chunk_rows: int = 128
    max_chunk_rows: int = 1024
    max_chunk_scores: int = 2**31 - 1
    table_scores: int = 2**18
    max_dense_scores: int = 2**16


class Backend:
    """The defaults, which hold on every backend unless it overrides them.

    Attributes:
        name: As Keras calls it.
        id_dtypes: What ids may be; every one of these can be sorted.
    """

    name: str
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
        """Returns the product of (R, C) and (C, D), in the dtype of both."""
        return ops.matmul(left, right)

    def matmul_no_grad(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns `matmul(left, right)`, without gradient support."""
        return self.matmul(left, right)

    def addmm(self, tensor: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Returns (D, C) `tensor` + the product of (D, R) and (R, C).

        Without gradient support. May modify `tensor` in place; do not reuse
        it.
        """
        return tensor + self.matmul_no_grad(left, right)

    def tuning(self, tensor: Tensor) -> Tuning:
        """Returns the sizes that are fast where `tensor` is computed.

        Measured on CPUs with 2 cores, B from 64 to 131,072 and D = 64, by
        `python -m tests.benchmarks`.
        """
        return Tuning()

    # Rows and ids

    def update_rows(self, tensor: Tensor, start: Size, rows: Tensor) -> Tensor:
        """Returns `tensor` with these rows from `start` on.

        May modify `tensor` in place; do not reuse it.
        """
        rest = (0,) * (len(tensor.shape) - 1)
        return ops.slice_update(tensor, (start, *rest), rows)

    def factorize(self, ids: Tensor) -> Tensor:
        """Returns int32 codes (n,), equal exactly where the ids are equal.

        The code of an id is its first place among the sorted ids. Comparing
        int32 is faster than comparing int64 or strings, and -1 stays free for
        "no id".
        """
        return ops.cast(ops.searchsorted(ops.sort(ids), ids), "int32")

    def top_k(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns the k highest scores of each row and their int32 places.

        Of equal scores the one with the lower place comes first.
        """
        best, places = ops.top_k(scores, k)
        return best, ops.cast(places, "int32")

    def maximum(self, one: Tensor, other: Tensor) -> Tensor:
        """Returns the entrywise maximum, NaN where one of them is NaN."""
        return ops.maximum(one, other)

    def hash_strings(self, ids: Tensor) -> Tensor:
        """Returns the ids, strings as integers of 63 bits."""
        return ids

    def string_tensor(self, strings: np.ndarray) -> Tensor:
        """Returns strings as a model takes them, None if it takes none."""
        return None

    def widest_integer(self) -> str:
        """Returns "int64", or "int32" where the backend has nothing wider."""
        return "int64"

    # Differentiation, compilation, order of execution

    def custom_gradient(
        self,
        function: Callable[
            ..., tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]
        ],
    ) -> Callable[..., Tensor]:
        """Returns a function with a gradient of its own.

        Args:
            function: Returns its value and a function from the upstream
                gradient to the gradients by its arguments. It must not raise:
                on PyTorch, Keras swallows the exception and returns NaN.
        """

        def with_gradient(*args: Tensor) -> tuple[Tensor, Callable]:
            value, gradient = function(*args)

            # Keras passes the upstream gradient by position on one backend
            # and by name on the others.
            def pull(*args: Tensor, upstream: Tensor = None) -> Sequence:
                return gradient(args[0] if upstream is None else upstream)

            return value, pull

        return ops.custom_gradient(with_gradient)

    def compile(self, function: Callable, xla: bool = True) -> Callable:
        """Returns `function` of tensors, compiled where the backend can.

        XLA merges elementwise steps and sums into one loop over a matrix.
        Where the backend can do without, `xla` says whether to use it.
        """
        return function

    def with_control_dependency(
        self, tensor: Tensor, earlier: Tensor
    ) -> Tensor:
        """Returns `tensor`, to be used once `earlier` has been computed."""
        return tensor

    def full_precision_matmul(self) -> contextlib.AbstractContextManager:
        """While inside, a GPU multiplies float32 matrices with all bits."""
        return contextlib.nullcontext()

    # A tower in chunks of rows

    def is_dense(self, tensor: Tensor) -> bool:
        """Whether a tensor is neither sparse nor ragged."""
        raise NotImplementedError

    def run_in_chunks(
        self, call: TowerCall, chunk_size: int
    ) -> tuple[list[Tensor], Values]:
        """Returns what a tower makes of its rows, a chunk of them at a time.

        Keeps the activations of one chunk alone. The gradient runs each chunk
        again, from the state that the tower had before it.

        Args:
            call: The call of the tower.
            chunk_size: Rows of a chunk.

        Returns:
            The outputs, and the variables that the tower assigns with their
            new values, not assigned yet.
        """
        raise NotImplementedError

    # Sizes that are known at run time alone

    def ensure_rows(
        self,
        tensors: Sequence[Tensor],
        rows: int | None,
        error: Callable[[], Exception],
        label: str,
    ) -> list[Tensor]:
        """Returns the tensors of a batch, refused at run time if partial.

        Args:
            tensors: Tensors or None; the first one decides.
            rows: The number of rows that the first must have, static in it
                from here on; or None, for 2 or more.
            error: Makes the exception. Inside of a compiled step, what the
                user sees first may be the backend's own, with its message.
            label: A short form of the message, fit for the name of an
                operation.
        """
        return list(tensors)

    def is_readable(self, tensor: Tensor) -> bool:
        """Whether the values of a tensor are at hand, at little cost."""
        return False

    def ensure_at_most_rows(
        self, tensor: Tensor, rows: int, message: str
    ) -> Tensor:
        """Returns `tensor`, refused at run time if it has more than `rows`."""
        return tensor

    # Replicas

    def collectives(self) -> Collectives | None:
        """Returns those of the training step, or None without replicas."""
        return None

    def sharding(self, rows: int) -> Sharding | None:
        """Returns how global tensors are sharded, None if they are not."""
        return None

    def replica_count(self) -> int:
        """Returns how many replicas hold one batch together.

        1 where the tensors are those of the global batch already.
        """
        collectives = self.collectives()
        return 1 if collectives is None else collectives.count

    def symbolic_call_sees_means(self) -> bool:
        """Whether a symbolic call may see floats in the place of integers."""
        return False

    # Exports and the state of the model

    def refuses_export(self) -> bool:
        """Whether a model is being exported that this backend cannot save."""
        return False

    def restore_model_state(self) -> contextlib.AbstractContextManager:
        """Lets an exception leave a Keras step without loss of weights.

        Every public layer, loss, metric and function raises inside of it.
        """
        return contextlib.nullcontext()

    def keep_weights(
        self, model: keras.Model
    ) -> contextlib.AbstractContextManager:
        """Lets any exception leave `model.predict` without loss of weights."""
        return contextlib.nullcontext()

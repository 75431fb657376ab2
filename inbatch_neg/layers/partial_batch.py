"""What a partial batch is, and the message of its error.

In-batch negatives need a number of rows that is known, and the same in every
batch. `BatchSize` holds that number and checks every batch against it.
"""

import logging
from collections.abc import Sequence
from typing import TypeAlias

from inbatch_neg import keras_private
from inbatch_neg.arguments import check_integer
from inbatch_neg.backends import backend
from inbatch_neg.types import Tensor

ANY = "any"

_logger = logging.getLogger("inbatch_neg")

# The name of the operation that refuses a partial batch at run time, which is
# in every error of it, also under XLA: the fix, in the characters of a name.
OPERATION = "Partial_batch.Fix.inbatch_neg.full_batches"

# The shape of the queries; None if the number of rows is unknown while tracing.
Shape: TypeAlias = Sequence[int | None]


class PartialBatchError(ValueError):
    """A batch has a different number of rows from the other batches.

    Raised by `InBatchNegativeSoftmax`. Batch the data with
    `inbatch_neg.full_batches`, which drops the last, partial batch.
    """


class BatchSize:
    """The number of rows that every batch must have.

    Args:
        batch_size: The number of rows, 2 or more; `None`, for that of the
            first batch, separately in training and inference; or `"any"`, for
            any number of 2 or more.
    """

    def __init__(self, batch_size: int | str | None) -> None:
        self.declared: int | str | None
        if batch_size is None or (
            isinstance(batch_size, str) and batch_size == ANY
        ):
            self.declared = batch_size
        else:
            self.declared = check_integer(
                "batch_size",
                batch_size,
                minimum=2,
                otherwise=' None, or "any"',
            )
        self._largest: dict[bool, int] = {}
        self._has_compared = False

    @property
    def rows(self) -> int | None:
        """The declared number of rows, or None."""
        return self.declared if isinstance(self.declared, int) else None

    def check_symbolic(self, layer_name: str, shape: Shape) -> None:
        """Refuses a symbolic batch with a known, wrong number of rows."""
        rows = shape[0]
        if rows is not None and (rows == 1 or self.rows not in (None, rows)):
            raise PartialBatchError(_other_rows(layer_name, shape, self.rows))

    def check(
        self, layer_name: str, shape: Shape, training: bool | None
    ) -> None:
        """Refuses a batch that is not full.

        Args:
            layer_name: For the error.
            shape: Static shape of the queries; the first entry is None if
                the number of rows is unknown while tracing.
            training: Whether this is a training call.

        Raises:
            PartialBatchError: if the number of rows is 1, differs from the
                declared one, is smaller than in an earlier batch, or is
                neither known nor declared.
        """
        rows = shape[0]
        if rows is None:
            if self.declared is None:
                largest = max(self._largest.values(), default=None)
                message = _unknown_rows(layer_name, shape, largest)
                if not training:
                    message += f" Fix for an export: {EXPORT_TOWER}"
                raise PartialBatchError(message)
            return
        expected = self.rows
        if expected is None and self.declared != ANY:
            kind = bool(training)
            expected = max(rows, self._largest.get(kind, rows))
            if rows > 1:
                self._largest[kind] = expected
        if rows == 1 or (expected is not None and rows != expected):
            message = _other_rows(layer_name, shape, expected)
            if rows == 1 and not training:  # PyTorch's export tries this
                message += f" Fix for an export: {EXPORT_TOWER}"
            raise PartialBatchError(message)
        if not training:
            self._compare_with_training(layer_name, rows)

    def _compare_with_training(self, layer_name: str, rows: int) -> None:
        """Logs once that losses of other batches than in training differ."""
        trained = self._largest.get(True, rows)
        if rows != trained and not self._has_compared:
            self._has_compared = True
            _logger.warning(
                "`%s` evaluates batches of %d rows and trains on %d: the "
                "losses do not compare, since fewer negatives give a lower "
                "one. Pass `validation_batch_size=%d` to `fit`, `batch_size` "
                "to `evaluate`, or `full_batches(data, %d)`: Keras cuts arrays "
                "into batches of 32.",
                layer_name,
                rows,
                *[trained] * 3,
            )

    def ensure(
        self, layer_name: str, tensors: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Returns the tensors; refuses a partial batch at run time, too.

        For a step that is traced, also one of a known size: an error in a
        later batch of another size reaches the step that is running.

        Args:
            layer_name: For the error.
            tensors: Tensors or None; the first one is checked.
        """
        if not backend.asserts_rows():
            return tensors

        def error() -> PartialBatchError:
            return PartialBatchError(_other_rows(layer_name, None, self.rows))

        keras_private.translate_step_error(OPERATION, error)
        return backend.ensure_rows(tensors, self.rows, str(error()), OPERATION)


EXPORT_TOWER = "export the tower, as in `query_tower.export(path)`."


def _unknown_rows(layer_name: str, shape: Shape, largest: int | None) -> str:
    """The message for a batch whose rows are unknown while tracing.

    Args:
        layer_name: Name of the layer.
        shape: Shape of the queries.
        largest: The most rows of any earlier batch, None if there was none.
    """
    before = ""
    if largest:
        before = (
            f"; the model was traced for {largest} rows before (if the batch "
            "size has changed, construct a new layer and call `compile` again)"
        )
    return (
        "Partial batch. The number of rows is unknown: the last batch of the "
        "data is smaller, or all are full and a layer, a map, a generator or "
        "a `PyDataset` lost their static size. Fix: for a smaller batch "
        f"{_full('batch_size')}; for a lost size construct the layer with "
        f"`InBatchNegativeSoftmax(batch_size={largest or 64})`, or with "
        '`batch_size="any"` if any will do. Received: queries of shape '
        f"{tuple(shape)} in `{layer_name}`{before}."
    )


def _other_rows(
    layer_name: str, shape: Shape | None, expected: int | None
) -> str:
    """The message for a batch with another number of rows.

    Args:
        layer_name: Name of the layer.
        shape: Shape of the queries; None if it is known only at run time.
        expected: The number of rows, None for any but 1.
    """
    size: int | str = "batch_size"
    wanted = "the same number of rows, 2 or more,"
    if expected is not None and expected != 1:
        size, wanted = expected, f"{expected} rows"
    got = "another number of rows"
    if shape is not None:
        got = f"queries of shape {tuple(shape)}"
        if shape[0] == 1:
            got += ", and one row has no negatives,"
    return (
        f"Partial batch. Fix: {_full(size)}; for another size construct a new "
        'layer, for any size one with `batch_size="any"`. Expected: '
        f"{wanted} in every batch. Received: {got} in `{layer_name}`."
    )


def _full(size: int | str) -> str:
    return (
        f"`inbatch_neg.full_batches(data, {size})` (for `validation_split`, "
        f"split `data` first), or `dataset.batch({size}, "
        "drop_remainder=True)`, or `drop_last=True` in a `DataLoader`"
    )

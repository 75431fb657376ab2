"""What a partial batch is, and the message of its error.

In-batch negatives need a number of rows that is known and the same for every
batch. `BatchSize` holds that number and checks every batch against it.
"""

from collections.abc import Sequence
from typing import TypeAlias

from inbatch_neg import arguments
from inbatch_neg.backends import keras_internals

ANY = "any"

# Of the queries; None for a number of rows that is unknown while tracing.
Shape: TypeAlias = Sequence[int | None]


class PartialBatchError(keras_internals.UnchangedMessage, ValueError):
    """A batch has another number of rows than the training was set up for.

    Raised by `InBatchNegativeSoftmax`. Batch the data with
    `inbatch_neg.full_batches`, which leaves out the last, partial batch.
    """


class BatchSize:
    """The number of rows that every batch must have.

    Args:
        batch_size: `None` (the first batch says it; training and inference
            are counted apart), `"any"` (no check beyond two rows), or the
            number of rows, 2 or more.
    """

    def __init__(self, batch_size: int | str | None) -> None:
        self.declared: int | str | None
        if batch_size is None or (
            isinstance(batch_size, str) and batch_size == ANY
        ):
            self.declared = batch_size
        else:
            self.declared = arguments.integer(
                "batch_size",
                batch_size,
                minimum=2,
                otherwise=' None, or "any"',
            )
        self._largest: dict[bool, int] = {}

    @property
    def rows(self) -> int | None:
        """The declared number of rows, or None."""
        return self.declared if isinstance(self.declared, int) else None

    def check_symbolic(self, layer_name: str, shape: Shape) -> None:
        """Refuses a symbolic batch whose rows are known and wrong."""
        rows = shape[0]
        if rows is not None and (rows == 1 or self.rows not in (None, rows)):
            raise PartialBatchError(_other_rows(layer_name, shape, self.rows))

    def check(
        self, layer_name: str, shape: Shape, training: bool | None
    ) -> None:
        """Refuses a batch that is not full.

        Args:
            layer_name: Named in the error.
            shape: Static shape of the queries; the first entry is None where
                the number of rows is not known while tracing.
            training: Whether this is a training call.

        Raises:
            PartialBatchError: if the rows are unknown and not declared, are
                not the declared ones, are fewer than the most so far, or 1.
        """
        rows = shape[0]
        if rows is None:
            if self.declared is None:
                largest = max(self._largest.values(), default=None)
                raise PartialBatchError(
                    _unknown_rows(layer_name, shape, largest)
                )
            return
        expected = self.rows
        if expected is None and self.declared != ANY:
            kind = bool(training)
            expected = max(rows, self._largest.get(kind, rows))
            if rows > 1:
                self._largest[kind] = expected
        if rows == 1 or (expected is not None and rows != expected):
            raise PartialBatchError(_other_rows(layer_name, shape, expected))

    def error(self, layer_name: str) -> PartialBatchError:
        """The error of a batch whose rows are only known at run time."""
        return PartialBatchError(_other_rows(layer_name, None, self.rows))

    @property
    def label(self) -> str:
        """The fix, in letters that the name of an operation may have."""
        return f"Partial_batch.Fix.inbatch_neg.full_batches.data.{self.rows}"


def _remedy(size: int | str) -> str:
    return (
        f"`inbatch_neg.full_batches(data, {size})`, or "
        f"`dataset.batch({size}, drop_remainder=True)`; with a PyTorch "
        "`DataLoader`, `drop_last=True`"
    )


def _unknown_rows(layer_name: str, shape: Shape, largest: int | None) -> str:
    """The message for a batch whose rows are unknown while tracing.

    Args:
        layer_name: Of the layer.
        shape: Of the queries.
        largest: The most rows of an earlier batch, None for a first one.
    """
    example = largest or 64
    before = ""
    if largest:
        before = (
            f" Or the model was traced for {largest} rows before, and the "
            "batch size has changed. Fix: call `compile` again, with a new "
            "layer."
        )
    return (
        f"Partial batch. The number of rows is unknown: `{layer_name}` got "
        f"queries of shape {_text(shape)}. Either the data is not batched in "
        f"full, so the last batch is smaller. Fix: {_remedy('batch_size')}. "
        "Or all batches are full, and a layer, a map, a generator or a "
        "`PyDataset` on the way lost their size. Fix: construct the layer "
        "with the number of rows, for example "
        f"`InBatchNegativeSoftmax(batch_size={example})`.{before} If every "
        'size is fine: `batch_size="any"`.'
    )


def _other_rows(
    layer_name: str, shape: Shape | None, expected: int | None
) -> str:
    """The message for a batch with another number of rows.

    Args:
        layer_name: Of the layer.
        shape: Of the queries; None if it is known at run time alone.
        expected: The number of rows, None for any but 1.
    """
    size: int | str = "batch_size"
    wanted = "the same number of rows, 2 or more,"
    changed = ""
    if expected is not None and expected != 1:
        size, wanted = expected, f"{expected} rows"
        if shape is not None and shape[0] != 1:
            changed = (
                " If you changed the batch size on purpose, construct the "
                "layer again (`compile` does not reset it)."
            )
    if shape is None:
        got = f"`{layer_name}` got a batch with another number of rows"
    else:
        got = f"`{layer_name}` got queries of shape {_text(shape)}"
        if shape[0] == 1:
            got += ": a batch of one row has no negatives"
    return (
        f"Partial batch. Fix: {_remedy(size)}. {got}. Expected: {wanted} "
        f"every time.{changed} If every size is fine, construct the layer "
        'with `batch_size="any"`.'
    )


def _text(shape: Shape) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"

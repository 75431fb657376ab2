"""The arguments of `full_batches`, checked, and the rules for the rows."""

import functools
import logging
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from inbatch_neg import keras_private
from inbatch_neg.arguments import check_choice, check_flag, check_integer
from inbatch_neg.data import nests
from inbatch_neg.replicas.base import text_as_number
from inbatch_neg.replicas.current import replicas

# Rows in the shuffle buffer of data that is read in order.
SHUFFLE_BUFFER = 2**17

# No data has so many rows: grain's length of an endless `repeat` is 2**63 - 1.
_ENDLESS = 2**48

_logger = logging.getLogger("inbatch_neg")


class FirstEpoch:
    """The number of the first epoch, whose order comes first.

    Args:
        given: An integer, or a function that returns it.

    Raises:
        TypeError: if it is neither.
        ValueError: if it is below 0.
    """

    def __init__(self, given: Any) -> None:
        self.is_function = callable(given)
        self._given = given
        self._found: int | None = None
        if not self.is_function:
            self.value()

    def value(self) -> int:
        """Returns the number; a function is called only once."""
        if self._found is None:
            self._found = check_integer(
                "first_epoch",
                self._given() if self.is_function else self._given,
                minimum=0,
                otherwise=" or a function that returns one",
            )
        return self._found

    def forget(self) -> None:
        """Lets a function be called again.

        Keras looks at the data before its callbacks restore a model. The look
        of a strategy of TensorFlow at rows in memory is not noticed.
        """
        self._found = None


class Options(NamedTuple):
    """The arguments of `full_batches`, checked."""

    batch_size: int
    shuffle: bool
    seed: int | None
    columns: tuple[str, ...] | None
    pad: bool
    first_epoch: FirstEpoch
    process: int = 0  # the index of this process
    processes: int = 1  # that share the rows

    @property
    def global_size(self) -> int:
        """The rows of one batch of every process."""
        return self.batch_size * self.processes

    @property
    def offset(self) -> int:
        """The place of this process's rows in a global batch."""
        return self.batch_size * self.process

    def rng(self, seed: int, epoch: int) -> np.random.Generator:
        """Returns what draws the order of an epoch; 0 is the first one read."""
        return np.random.default_rng((seed, self.first_epoch.value() + epoch))

    def refuse_first_epoch(self, what: str, remedy: str) -> None:
        """Refuses `first_epoch` for data whose order is not made here."""
        if self.first_epoch.is_function or self.first_epoch.value():
            raise ValueError(
                f"`first_epoch` does not apply to {what}. {remedy} Received: "
                "a `first_epoch` other than 0"
            )

    def num_batches(self, rows: int) -> int:
        """The number of batches in an epoch of this many rows, globally."""
        return (rows + (self.global_size - 1) * self.pad) // self.global_size

    def order_seed(self) -> int:
        """Returns the seed, or one drawn from NumPy's global generator.

        `keras.utils.set_random_seed` seeds that generator.
        """
        if self.seed is not None:
            return self.seed
        return int(np.random.randint(2**31))

    def compare(self, rows: int | None) -> None:
        """Raises in every process if they got other rows or arguments.

        Else some would train for more steps, and wait for the others.

        Args:
            rows: The number of rows, or None if it is unknown.
        """
        own = self.process, self.processes
        if self.processes == 1 or replicas.process() != own:
            return
        facts = {
            "rows of `data`, -1 if unknown,": -1 if rows is None else rows,
            "`batch_size`": self.batch_size,
            "`shuffle`": self.shuffle,
            "`seed`, -1 for None,": -1 if self.seed is None else self.seed,
            '`remainder="pad"`': self.pad,
            "`first_epoch`, -1 for a function,": (
                -1 if self.first_epoch.is_function else self.first_epoch.value()
            ),
            "`columns`, as a hash,": text_as_number(repr(self.columns)),
        }
        differing = replicas.differing(list(map(int, facts.values())))
        if differing is not None:
            place, received = differing
            raise ValueError(
                "`full_batches` with `shard` needs the same rows and arguments "
                "in every process. Received: "
                f"{list(facts)[place]} by process: {received}"
            )

    @keras_private.restore_model_state
    def check_rows(
        self,
        rows: int,
        hint: Callable[[], str] = str,
        log: bool = True,
        left_over: int = 0,
    ) -> None:
        """Refuses data that fills no batch, and logs how much is left out.

        Args:
            rows: The number of rows.
            hint: Returns text to append to the error, such as a `batch_hint`.
            log: Whether to log.
            left_over: The number of rows besides, which no process reads.
        """
        if rows < (1 if self.pad else self.global_size):
            raise ValueError(
                f"{self._too_few()} Received: {rows} rows.{hint()}"
            )
        if log:
            self.log_left_out(rows, left_over)

    def log_left_out(self, rows: int, left_over: int = 0) -> None:
        """Logs how many rows an epoch leaves out, if any."""
        left_out = rows % self.global_size + left_over
        if self.pad or not left_out or rows >= _ENDLESS or self.process:
            return
        level, what = (
            logging.INFO,
            "%d of %d rows in each epoch, others each time",
        )
        if not self.shuffle:
            level = logging.WARNING
            what = "the last %d of %d rows in every epoch. Shuffle to see them"
        _logger.log(
            level,
            f"full_batches leaves out {what}.",
            left_out,
            rows + left_over,
        )

    def _too_few(self) -> str:
        """The error message for data that does not fill one batch."""
        if self.pad:
            return "`data` must have rows, otherwise an epoch is empty."
        if self.processes > 1:
            return (
                "`data` must have at least `batch_size` rows for each process "
                f"of `shard`, {self.batch_size} x {self.processes}, otherwise "
                "an epoch is empty. Choose a smaller `batch_size`."
            )
        return (
            f"`data` must have at least `batch_size` rows, {self.batch_size}, "
            "otherwise an epoch is empty. Choose a smaller one, or "
            '`remainder="pad"` to evaluate all rows.'
        )


def batch_hint(shapes: list[Any]) -> str:
    """Returns a hint if rows look like batches, else an empty string.

    Args:
        shapes: The shapes of the columns of a row; () if one is unknown.
    """
    if not shapes or not all(len(shape) for shape in shapes):
        return ""
    if len({shape[0] for shape in shapes}) != 1:
        return ""
    return (
        f" Each row looks like a batch of {shapes[0][0]} rows: if so, pass "
        "`batched=True`."
    )


def hint_of_rows(rows: Iterable[Any]) -> str:
    """Returns the `batch_hint` for the first of some rows, of any form."""
    leaves = nests.leaves(nests.as_nest(next(iter(rows), None)))
    return batch_hint([getattr(leaf, "shape", ()) for leaf in leaves])


def checked(
    batch_size: Any,
    shuffle: Any,
    seed: Any,
    batched: Any,
    columns: Any,
    remainder: Any,
    shard: Any,
    first_epoch: Any,
) -> Options:
    """Returns the arguments of `full_batches`, or raises.

    Args:
        batch_size: An integer of 2 or more.
        shuffle: A bool.
        seed: An integer of 0 or more, or None.
        batched: A bool.
        columns: A list or tuple of names, or None.
        remainder: "drop" or "pad".
        shard: A pair (index, count), "auto" or None.
        first_epoch: An integer of 0 or more, or a function that returns one.

    Raises:
        TypeError: for an argument of another type.
        ValueError: for another value.
    """
    if seed is not None:
        seed = check_integer("seed", seed, minimum=0, otherwise=" or None")
        if seed >= 2**63:
            raise ValueError(
                f"`seed` must be below 2**63. Received: seed={seed}"
            )
    check_flag("batched", batched)
    if shard is not None and shuffle is True and seed is None:
        raise ValueError(
            "`shard` with `shuffle=True` needs a `seed`, the same in every "
            f"process, so that no row comes twice. Received: shard={shard!r}, "
            "seed=None"
        )
    return Options(
        check_integer("batch_size", batch_size, minimum=2),
        check_flag("shuffle", shuffle),
        seed,
        _names(columns),
        check_choice("remainder", remainder, ("drop", "pad")) == "pad",
        FirstEpoch(first_epoch),
        *_shard(shard),
    )


def _shard(shard: Any) -> tuple[int, int]:
    """Returns the index of this process, and the number of them."""
    if shard is None:
        return 0, 1
    if isinstance(shard, str) and shard == "auto":
        return replicas.process()
    received = f"Received: shard={shard!r}"
    rule = (
        '`shard` must be None, "auto" or a pair (index, count) of integers, '
        "with 0 <= index < count."
    )
    if isinstance(shard, str):
        raise ValueError(f"{rule} {received}")
    try:
        index, count = map(operator.index, shard)
    except (TypeError, ValueError):
        raise TypeError(f"{rule} {received}") from None
    if not 0 <= index < count:
        raise ValueError(f"{rule} {received}")
    return index, count


@functools.cache  # once per process
def warn_of_same_rows() -> None:
    """Warns if several processes train, so that all get the same rows."""
    count = replicas.process()[1]
    if count > 1:
        _logger.warning(
            "full_batches gives all rows to each of the %d processes of this "
            'job. For training, pass `shard="auto"`: each gets its part.',
            count,
        )


def _names(columns: Sequence[str] | None) -> tuple[str, ...] | None:
    if columns is None:
        return None
    received = f"Received: columns={columns!r}"
    rule = "`columns` must be a list of names, one or more, and none twice."
    if not isinstance(columns, (list, tuple)) or not all(
        isinstance(name, str) for name in columns
    ):
        raise TypeError(f"{rule} {received}")
    if not columns or len(set(columns)) != len(columns):
        raise ValueError(f"{rule} {received}")
    return tuple(columns)

"""A stream, or rows in memory, as a `PyDataset`, for JAX and PyTorch."""

import itertools
from collections.abc import Iterator
from typing import Any, NoReturn

import keras
import numpy as np

from inbatch_neg.data.arrays import Rows, permutation
from inbatch_neg.data.padding import padded
from inbatch_neg.data.stream import Stream, read_to_end

# On a GPU, Keras reads one batch ahead.
_MOST_LOOKED_AT = 2


class SingleWorkerDataset(keras.utils.PyDataset):
    """Base of the batches that Keras reads itself, on JAX and PyTorch.

    With several workers, Keras 3.15 reads ahead to build the model, and trains
    in the first epoch once more on what it has read, in place of the last
    batches.
    """

    def _refuse(self, name: str, value: Any) -> NoReturn:
        raise ValueError(
            f"`{name}` of the result of `full_batches` cannot be changed: "
            "Keras would train twice on some batches. Pass `full_batches` a "
            f"PyDataset or DataLoader that has it. Received: {name}={value!r}"
        )

    @property
    def workers(self) -> int:
        """The number of workers, 1."""
        return 1

    @workers.setter
    def workers(self, value: int) -> None:
        if value not in (0, 1):
            self._refuse("workers", value)

    @property
    def use_multiprocessing(self) -> bool:
        """Whether the workers are processes: False."""
        return False

    @use_multiprocessing.setter
    def use_multiprocessing(self, value: bool) -> None:
        if value:
            self._refuse("use_multiprocessing", value)


class ArrayBatches(SingleWorkerDataset):
    """Full batches of rows in memory, for `fit` on JAX and PyTorch.

    If the rows are shuffled, every iteration has a new order, as every epoch
    of `fit` has. Pass `shuffle=False` to `fit`, which would otherwise permute
    the batches too.

    Args:
        rows: The `Rows`.
    """

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self._rows = rows
        self._options = options = rows.options
        self._seed = options.order_seed() if options.shuffle else 0
        self._epoch = 0
        self._served = 0
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._options.num_batches(self._rows.rows)

    def __getitem__(self, index: int) -> Any:
        """Returns a batch of the current epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} batches, not {index + 1}")
        self._served += 1
        return self._batch(index, self._epoch)

    def __iter__(self) -> Iterator[Any]:
        epoch = self._epoch
        self._epoch += 1
        for index in range(len(self)):
            yield self._batch(index, epoch)

    def on_epoch_end(self) -> None:
        """Changes to the order of the next epoch, if this one has been read.

        Keras calls this more than once per epoch, and also after it has read
        a single batch to build the model.
        """
        if self._served >= len(self):
            self._epoch += 1
            self._served = 0
        elif not self._epoch:  # Keras has only looked at the data
            self._options.first_epoch.forget()
            self._order = None

    def _batch(self, index: int, epoch: int) -> Any:
        size, total = self._options.batch_size, self._rows.rows
        start = index * self._options.global_size + self._options.offset
        rows = max(min(size, total - start), 0)
        start = min(start, total - 1)  # a row to copy, if there is none
        end = start + max(rows, 1)
        if self._options.shuffle:
            batch = self._rows.take(self._places(epoch)[start:end])
        else:
            batch = self._rows.between(start, end)
        if self._options.pad:
            batch = padded(batch, rows, size)
        return batch

    def _places(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            places = permutation(self._rows, self._seed, epoch)
            self._order = epoch, places
        return self._order[1]


class StreamBatches(SingleWorkerDataset):
    """The batches of a `Stream` in order, whatever index is requested.

    An index tells only whether a pass over the data goes on. Keras begins a new
    pass in every epoch, and also after a pass that it has left early: for
    `steps`, or after an interrupt. Within `steps_per_epoch`, a pass goes on in
    the next epoch. If Keras has only looked at the first batches, to build a
    model, they come again.

    Args:
        stream: The `Stream`. If its length is unknown, it is read once to
            count the rows, when `fit` or `len` need the number of batches.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._iterator: Iterator[Any] | None = None
        self._served: set[int] = set()  # the indices of this pass
        self._looked_at: list[Any] | None = []  # the batches of this pass
        self._epoch_begins = False
        self._size_was_read = False

    @property
    def num_batches(self) -> int | None:
        """The number of batches in an epoch; None if it never ends."""
        self._size_was_read = True
        return None if self._stream.endless else self._stream.count()

    def __len__(self) -> int:
        if self._stream.endless:
            raise TypeError("`data` never ends, so it has no length")
        return self._stream.count()

    def __getitem__(self, index: int) -> Any:
        """Returns the next batch."""
        if self._iterator is None or self._begins_a_pass(index):
            self._begin()
        self._epoch_begins = self._size_was_read = False
        batch = next(self._iterator, None)  # type: ignore[arg-type]
        if batch is None:
            self._looked_at = None
            self._begin()
            batch = next(self._iterator)  # type: ignore[arg-type]
        if not self._stream.endless:
            self._served.add(index)
        if self._looked_at is not None:
            self._looked_at.append(batch)
            if len(self._looked_at) > _MOST_LOOKED_AT:
                self._looked_at = None
        return batch

    def __iter__(self) -> Iterator[Any]:
        return self._stream.next_epoch()

    def on_epoch_begin(self) -> None:
        """Called by Keras; the next index shows whether a pass goes on."""
        self._epoch_begins = True

    def on_epoch_end(self) -> None:
        """Called by Keras, also after a look at the data.

        Then it has read the number of batches before.
        """
        if not self._size_was_read:
            self._looked_at = None

    def _begins_a_pass(self, index: int) -> bool:
        """Returns whether this is the first index of a pass.

        Keras reads the number of batches for each new order of the indices.
        `fit` shuffles them, so that the first one need not be 0.
        """
        if index in self._served:
            return True
        return self._epoch_begins and (index == 0 or self._size_was_read)

    def _begin(self) -> None:
        known = None if self._stream.endless else self._stream.count()
        again: list[Any] = []
        if self._iterator and len(self._served) != known:
            again = self._looked_at or []
        if again and not self._stream.options.first_epoch.is_function:
            self._iterator = itertools.chain(again, self._iterator or ())
        else:
            self._iterator = None  # frees its buffer, and ends the source
            epoch = self._stream.next_epoch(again=bool(again))
            self._iterator = read_to_end(epoch, known) if known else epoch
        self._looked_at = []
        self._served = set()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "Batches of a stream cannot be copied or sent to another process: "
            "they know how far the stream has been read. Instead, call "
            "`full_batches` again, in the other process or for the copy."
        )

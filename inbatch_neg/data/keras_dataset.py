"""A stream as a `PyDataset`, for `fit` on JAX and PyTorch."""

import itertools
from collections.abc import Iterator
from typing import Any

from inbatch_neg.data.one_reader import OneReader
from inbatch_neg.data.stream import Stream, read_to_end

# On a GPU, Keras reads one batch ahead.
_MOST_LOOKED_AT = 2


class StreamBatches(OneReader):
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
        self._epoch = 0
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
        epoch = self._epoch
        self._epoch += 1
        return self._stream.epoch(epoch)

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
        if self._iterator and self._looked_at and len(self._served) != known:
            self._iterator = itertools.chain(self._looked_at, self._iterator)
        else:
            self._iterator = None  # frees its buffer, and ends the source
            epoch = self._stream.epoch(self._epoch)
            self._iterator = read_to_end(epoch, known) if known else epoch
            self._epoch += 1
        self._looked_at = []
        self._served = set()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "Batches of a stream cannot be copied or sent to another process: "
            "they know how far the stream has been read. Instead, call "
            "`full_batches` again, in the other process or for the copy."
        )

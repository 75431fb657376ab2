"""A stream as what `fit` takes on JAX and PyTorch."""

import threading
from collections.abc import Iterator
from typing import Any

import keras

from inbatch_neg.data.stream import Stream

# Keras reads so many batches at most to build a model.
_PEEKED = 2


class StreamBatches(keras.utils.PyDataset):
    """The batches of a `Stream` in order, whichever index is asked for.

    At the end of the stream it begins anew. An epoch that ends before, by
    `steps_per_epoch`, goes on in the next one. One process reads it; a lock
    lets several threads do so.

    Args:
        stream: The `Stream`. If its length is not known, it is read once to
            count its rows, when `fit` or `len` ask for the number of batches.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._epoch = 0
        self._iterator: Iterator[Any] | None = None
        self._served: list[Any] = []  # the first batches of this pass
        self._again: list[Any] = []  # those that are served once more
        self._count = 0
        self._peeked = False
        self._lock = threading.Lock()

    @property
    def num_batches(self) -> int | None:
        """Batches of an epoch; None if there is no end."""
        return None if self._stream.endless else self._stream.count()

    def __len__(self) -> int:
        if self._stream.endless:
            raise TypeError("`data` never ends, so it has no length")
        return self._stream.count()

    def __getitem__(self, index: int) -> Any:
        """Returns the next batch."""
        with self._lock:
            if self._again:
                return self._again.pop(0)
            if self._iterator is None:
                self._begin()
            batch = next(self._iterator, None)  # type: ignore[arg-type]
            if batch is None:
                self._begin()
                batch = next(self._iterator)  # type: ignore[arg-type]
            self._count += 1
            if self._count <= _PEEKED and not self._peeked:
                self._served.append(batch)
            else:
                self._served = []
            return batch

    def __iter__(self) -> Iterator[Any]:
        with self._lock:
            epoch = self._epoch
            self._epoch += 1
        return self._stream.epoch(epoch)

    def on_epoch_end(self) -> None:
        """Gives back what Keras has read only to build the model."""
        with self._lock:
            stream = self._stream
            over = not stream.endless and self._count >= stream.count()
            if self._served and not over:
                self._again, self._served = self._served, []
                self._peeked = True

    def _begin(self) -> None:
        self._iterator = self._stream.epoch(self._epoch)
        self._epoch += 1
        self._count = 0
        self._peeked = False

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "Batches that are read in order cannot be read by several "
            "processes. Set `use_multiprocessing` and `workers` of the "
            "PyDataset that `full_batches` reads instead."
        )

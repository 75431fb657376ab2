"""A stream as a `PyDataset`, for `fit` on JAX and PyTorch."""

import threading
from collections.abc import Iterator
from typing import Any

import keras

from inbatch_neg.data.stream import Stream

# Keras reads at most this many batches to build a model.
_PEEKED = 2


class StreamBatches(keras.utils.PyDataset):
    """The batches of a `Stream` in order, whatever index is requested.

    At its end, the stream starts anew. If `steps_per_epoch` ends an epoch
    earlier, the next epoch continues there. Only one process may read the
    batches; several threads may, with a lock.

    Args:
        stream: The `Stream`. If its length is unknown, it is read once to
            count the rows, when `fit` or `len` need the number of batches.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._epoch = 0
        self._iterator: Iterator[Any] | None = None
        self._served: list[Any] = []  # the first batches of this pass
        self._again: list[Any] = []  # batches to serve once more
        self._count = 0
        self._peeked = False
        self._lock = threading.Lock()

    @property
    def num_batches(self) -> int | None:
        """The number of batches in an epoch; None if it never ends."""
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
        """Serves batches again that Keras has read only to build the model."""
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
            "Batches of a stream cannot be read by several processes. Instead, "
            "set `use_multiprocessing` and `workers` of the PyDataset that is "
            "passed to `full_batches`."
        )

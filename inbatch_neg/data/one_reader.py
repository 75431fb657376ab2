"""A `PyDataset` that refuses several workers."""

from typing import Any, NoReturn

import keras


class OneReader(keras.utils.PyDataset):
    """Base of the batches that Keras reads itself, on JAX and PyTorch.

    With several workers, Keras 3.15 reads ahead to build the model, and trains
    in the first epoch once more on what it has read, in place of the last
    batches.
    """

    def _refuse(self, name: str, value: Any) -> NoReturn:
        raise ValueError(
            f"`{name}` of the result of `full_batches` cannot be changed: "
            "with several workers, Keras would train twice on some batches "
            "and leave out others. If loading needs them, pass `full_batches` "
            "a PyDataset that has them, or a DataLoader. "
            f"Received: {name}={value!r}"
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

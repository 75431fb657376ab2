"""How replicas exchange tensors; one file per backend implements this."""

import zlib
from collections.abc import Callable, Mapping

import numpy as np

from inbatch_neg.types import Tensor


class Collectives:
    """How the replicas of one training step exchange tensors.

    Attributes:
        count: The number of replicas, an int.
        index: The index of this replica, an int or a scalar tensor.
    """

    count: int
    index: Tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Returns the rows of all replicas, those of the first one first."""
        raise NotImplementedError

    def check_same_shapes(
        self,
        tensors: Mapping[str, Tensor],
        error: Callable[[str], Exception],
    ) -> dict[str, Tensor]:
        """Returns the tensors; raises on every replica if shapes differ.

        Args:
            tensors: Tensors or None, by name.
            error: Makes the exception from a description of the difference.
        """
        return dict(tensors)


class Sharding:
    """How the rows of global tensors are distributed over devices.

    Attributes:
        count: The number of devices that share the rows.
    """

    count: int

    def map(
        self,
        function: Callable[[dict, dict, Collectives], Tensor],
        by_row: dict[str, Tensor],
        replicated: dict[str, Tensor],
    ) -> Tensor:
        """Runs `function` on every device; returns the rows of all of them.

        Args:
            function: Takes this device's part of `by_row`, all of
                `replicated`, and the `Collectives`; returns a tensor with one
                entry per row.
            by_row: Tensors whose rows are distributed over the devices.
            replicated: Tensors that every device gets as a whole.
        """
        raise NotImplementedError


class Replicas:
    """The replicas of the running step; the defaults are those without any."""

    def collectives(self) -> Collectives | None:
        """Returns the collectives of the step, or None without replicas."""
        return None

    def sharding(self, rows: int) -> Sharding | None:
        """Returns how global tensors are sharded, or None if they are not."""
        return None

    def count(self) -> int:
        """Returns how many replicas share a global batch.

        1 if the tensors already are those of the global batch.
        """
        collectives = self.collectives()
        return 1 if collectives is None else collectives.count

    def process(self) -> tuple[int, int]:
        """Returns the index of this process, and how many train together."""
        return 0, 1

    def differing(self, numbers: list[int]) -> tuple[int, list[int]] | None:
        """Returns the first place where the numbers of the processes differ.

        Every process must call it.

        Returns:
            The place, and the number of each process; None if all are equal,
            or where processes cannot ask each other outside of a step.
        """
        return None

    def devices(self) -> int:
        """Returns how many devices must divide the rows given to a model."""
        return 1

    def averages_shapes_of_symbolic_calls(self) -> bool:
        """Returns whether a symbolic call may see floats for integers."""
        return False


def first_difference(gathered: np.ndarray) -> tuple[int, list[int]] | None:
    """Returns the first column whose entries differ, and the entries."""
    differ = np.flatnonzero((gathered != gathered[:1]).any(0))
    if not len(differ):
        return None
    first = int(differ[0])
    return first, gathered[:, first].tolist()


def text_as_number(text: str) -> int:
    """Returns a number of the text that every process computes alike.

    Python's own hash of a string differs between processes.
    """
    return zlib.crc32(text.encode())

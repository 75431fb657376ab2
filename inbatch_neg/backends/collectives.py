"""How replicas exchange tensors: what a backend with replicas implements."""

from collections.abc import Callable, Mapping

from inbatch_neg.backends.types import Tensor


class Collectives:
    """How the replicas of one training step exchange tensors.

    Attributes:
        count: The number of replicas, an int.
        index: The number of this replica, an int or a scalar tensor.
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
        """Returns the tensors, refused on every replica if one's differ.

        Args:
            tensors: Tensors or None by name.
            error: Makes the exception from a description of what came.
        """
        return dict(tensors)


class Sharding:
    """How the rows of global tensors are spread over devices.

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
        """Returns what `function` makes of the rows of each device.

        Args:
            function: Takes this device's part of `by_row`, all of
                `replicated`, and the `Collectives`; returns a tensor with one
                entry per row.
            by_row: Tensors whose rows are spread over the devices.
            replicated: Tensors that every device gets whole.
        """
        raise NotImplementedError

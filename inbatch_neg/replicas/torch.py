"""Replicas on PyTorch: the processes of the default process group."""

from collections.abc import Callable, Mapping

import torch
from torch import distributed

from inbatch_neg.backends import backend
from inbatch_neg.replicas import base
from inbatch_neg.replicas.base import (
    Collectives,
    first_difference,
    text_as_number,
)
from inbatch_neg.types import Tensor

# What the processes compare of each tensor.
_COMPARED = (
    "rank (0: not passed)",
    "rows",
    "size of dimension 1",
    "size of dimension 2",
    "dtype, as a hash,",
)


class Replicas(base.Replicas):
    """The processes of `torch.distributed`."""

    def collectives(self) -> Collectives | None:
        """Returns those of the default process group, if it is set up."""
        return _ProcessGroupCollectives() if self.process()[1] > 1 else None

    def process(self) -> tuple[int, int]:
        """Returns the place in the default process group, if it is set up."""
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1

    def differing(self, numbers: list[int]) -> tuple[int, list[int]] | None:
        """Compares them in the default process group."""
        on_gpu = distributed.get_backend() == "nccl"
        own = torch.tensor(
            [numbers], dtype=torch.int64, device="cuda" if on_gpu else "cpu"
        )
        gathered = _ProcessGroupCollectives().gather_values(own)
        return first_difference(gathered.numpy(force=True))


class _ProcessGroupCollectives(Collectives):
    """`torch.distributed`, in its default process group."""

    def __init__(self) -> None:
        self.count = distributed.get_world_size()
        self.index = distributed.get_rank()

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Gathers with a gradient; int16 as int32, since gloo lacks int16."""
        if tensor.dtype == torch.int16:
            tensor = tensor.int()

        def gather(tensor: Tensor) -> tuple[Tensor, Callable]:
            def gradient(upstream: Tensor) -> list[Tensor]:
                # Each replica receives the parts of the gradient of its own
                # candidates from all replicas, and sums them.
                parts = torch.empty_like(upstream)
                distributed.all_to_all_single(parts, upstream.contiguous())
                shape = (self.count, -1, *upstream.shape[1:])
                return [parts.reshape(shape).sum(0)]

            return self.gather_values(tensor), gradient

        return backend.custom_gradient(gather)(tensor.contiguous())

    def gather_values(self, tensor: Tensor) -> Tensor:
        """Gathers without a gradient."""
        # The name since PyTorch 2.13, and the earlier one.
        gather = getattr(distributed, "all_gather_single", None)
        gather = gather or distributed.all_gather_into_tensor
        shape = (self.count * tensor.shape[0], *tensor.shape[1:])
        gathered = tensor.new_empty(shape)
        gather(gathered, tensor)
        return gathered

    def check_same_shapes(
        self,
        tensors: Mapping[str, Tensor],
        error: Callable[[str], Exception],
    ) -> dict[str, Tensor]:
        """Compares ranks, sizes and dtypes, and raises on every process."""
        # Of the same length on every replica, whatever was passed.
        own: list[int] = []
        for tensor in tensors.values():
            shape = () if tensor is None else tensor.shape
            own += [len(shape), *shape[:3], *[0] * (3 - len(shape))]
            dtype = "" if tensor is None else str(tensor.dtype)
            own.append(text_as_number(dtype))
        device = next(x.device for x in tensors.values() if x is not None)
        gathered = self.gather_values(
            torch.tensor([own], dtype=torch.int64, device=device)
        )
        difference = first_difference(gathered.numpy(force=True))
        if difference is not None:
            place, received = difference
            tensor, what = divmod(place, len(_COMPARED))
            raise error(
                f"{_COMPARED[what]} of `{list(tensors)[tensor]}` by replica: "
                f"{received}"
            )
        return dict(tensors)

"""PyTorch: matrix products, ties, in-place updates."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from keras import ops

from inbatch_neg.backends import base
from inbatch_neg.types import Size, Tensor


class Backend(base.Backend):
    """PyTorch, eager or compiled."""

    name = "torch"
    # PyTorch runs each operation from Python, so the matrix is kept up to a
    # larger size, and chunks of several vectors, which need more operations,
    # are larger. A chunk has at most 16 MB of float32, since glibc returns
    # freed blocks above 32 MB to the system.
    cpu_tuning = base.Tuning(
        max_chunk_scores=2**22, table_scores=2**21, max_dense_scores=2**18
    )

    def is_readable(self, tensor: Tensor) -> bool:
        """True for eager tensors on the CPU; on a GPU it would synchronise.

        The tensors of `torch.func` have no values.
        """
        return (
            isinstance(tensor, torch.Tensor)
            and tensor.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        )

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiplies in the common dtype.

        Keras' own product turns float64 into float32, and autocast rounds to
        bfloat16.
        """
        device = left.device.type
        if not torch.is_autocast_enabled(device):
            return left @ right
        with torch.autocast(device, enabled=False):
            return left @ right

    def matmul_no_grad(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiplies with oneDNN on the CPU, if PyTorch has it.

        PyTorch uses MKL for float32 products, which has half of oneDNN's
        speed on AMD processors.
        """
        if left.dtype in (torch.float16, torch.bfloat16):
            return self.half_matmul(left, right)
        linear = _onednn_linear()
        if linear is None or not _suits_onednn(left, right):
            return self.matmul(left, right)
        _keep_freed_memory()
        # Linear layer without bias, attribute or algorithm.
        return linear(left, right.T, None, "none", [], "")

    def has_half_products(self, tensor: Tensor) -> bool:
        """True on NVIDIA's GPUs with units for the dtype."""
        if tensor.device.type != "cuda" or torch.version.hip is not None:
            return False
        # Since PyTorch 2.8, whose compiler does not know it yet. ROCm has the
        # operation, which fails there.
        compiling = torch.compiler.is_compiling()
        if compiling or not hasattr(torch.ops.aten.mm, "dtype"):
            return False
        oldest = (8, 0)
        if tensor.dtype == torch.float16:
            if _sums_in_float16():
                return False
            oldest = (7, 0)
        return torch.cuda.get_device_capability(tensor.device) >= oldest

    def half_matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """Asks cuBLAS for a product in float32, which other devices lack."""
        device = left.device.type
        with torch.autocast(device, enabled=False):
            if device != "cuda":
                return left.float() @ right.float()
            return torch.mm(left, right, out_dtype=torch.float32)

    def addmm(self, tensor: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Adds in place."""
        return tensor.add_(self.matmul_no_grad(left, right))

    def cross_entropy(self, scores: Tensor) -> Tensor:
        """Uses PyTorch's, which takes fewer operations."""
        labels = torch.arange(scores.shape[0], device=scores.device)
        losses = torch.nn.functional.cross_entropy(
            scores, labels, reduction="none"
        )
        return losses + 0.0  # which turns -0 into 0

    def custom_gradient(self, function: Callable) -> Callable[..., Tensor]:
        """Needs no Keras, whose function `torch.func` cannot differentiate."""

        def call(*args: Tensor) -> Tensor:
            value: Tensor = _CustomGradient.apply(_Gradient(function), *args)
            return value

        return call

    def is_on_gpu(self, tensor: Tensor) -> bool:
        """Asks the tensor."""
        return tensor.device.type not in ("cpu", "meta")

    def update_rows(self, tensor: Tensor, start: Size, rows: Tensor) -> Tensor:
        """Writes in place: a slice update would copy the whole tensor."""
        tensor[start : start + rows.shape[0]] = rows
        return tensor

    def update_diagonal(
        self, table: Tensor, start: Size, values: Tensor
    ) -> Tensor:
        """Writes in place."""
        table.diagonal(start)[: len(values)] = values
        return table

    def add_columns(self, table: Tensor, values: Tensor) -> Tensor:
        """Writes in place."""
        return table.add_(values)

    def fill(self, table: Tensor, places: Tensor, value: Tensor) -> Tensor:
        """Writes in place."""
        return table.masked_fill_(places, value)

    def top_k(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Sorts the scores if more than k are as high as the k-th of a row.

        PyTorch does not define which of equal scores come first.
        """
        best, indices = ops.top_k(scores, k)
        if _is_exporting():  # an export cannot branch on values
            return self._stable_top_k(scores, k)
        has_ties = (scores >= best[:, -1:]).sum(dim=1) > k
        if bool(has_ties.any()):
            return self._stable_top_k(scores, k)
        return best, ops.cast(indices, "int32")

    def _stable_top_k(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        order = scores.sort(dim=1, descending=True, stable=True)
        best, indices = order.values[:, :k], order.indices[:, :k]
        return best, ops.cast(indices, "int32")

    def maximum(self, one: Tensor, other: Tensor) -> Tensor:
        """Keeps float64, which Keras would turn into float32."""
        return torch.maximum(one, other)

    @contextlib.contextmanager
    def full_precision_matmul(self) -> Iterator[None]:
        """Turns off TensorFloat-32, and gradients."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.no_grad():
                yield
        finally:
            torch.set_float32_matmul_precision(before)


def _sums_in_float16() -> bool:
    # With this setting, cuBLAS refuses products in float32.
    setting = torch.backends.cuda.matmul
    return bool(getattr(setting, "allow_fp16_accumulation", False))


def _is_exporting() -> bool:
    # PyTorch before 2.7 does not have this function.
    return getattr(torch.compiler, "is_exporting", bool)()


@functools.cache
def _onednn_linear() -> Callable | None:
    """Returns the linear layer of PyTorch's compiler, or None without it.

    It is a private operation. Without it, the public product is used.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    namespace = getattr(torch.ops, "mkldnn", None)
    return getattr(namespace, "_linear_pointwise", None)


def _suits_onednn(*matrices: Tensor) -> bool:
    """Returns whether oneDNN's linear layer can multiply these matrices now.

    It has no gradient, and refuses empty matrices and rows that share memory.
    """
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and all(
            matrix.device.type == "cpu"
            and matrix.dtype == torch.float32
            and matrix.numel() > 0
            and (_has_separate_rows(matrix) or _has_separate_rows(matrix.T))
            for matrix in matrices
        )
    )


def _has_separate_rows(matrix: Tensor) -> bool:
    stride, step = matrix.stride()
    return step == 1 and stride >= matrix.shape[1]


class _Gradient:
    """A function, and after its call the function of its gradient."""

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.gradient: Callable | None = None


class _CustomGradient(torch.autograd.Function):
    """Calls a function that returns its value and its gradient."""

    @staticmethod
    def forward(rule: _Gradient, *args: Tensor) -> Tensor:
        value, rule.gradient = rule.function(*args)
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.rule, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # PyTorch refuses those changed since then
        return None, *ctx.rule.gradient(*upstream)


@functools.cache
def _keep_freed_memory() -> None:
    """Makes glibc keep the memory of a chunk for the next one.

    Until a larger block has been freed, glibc returns freed memory to the
    system and gets it back page by page, which takes longer than a product.
    Blocks above 32 MB are always returned.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)

"""A tower in chunks of rows, on PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils import checkpoint
from torch.utils.weak import TensorWeakRef

from inbatch_neg import keras_private
from inbatch_neg.chunked_tower.call import TowerCall, Values
from inbatch_neg.types import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Returns whether the tensor can be split by rows."""
    return tensor.layout == torch.strided and not tensor.is_nested


@torch.compiler.disable
def run_in_chunks(
    call: TowerCall, chunk_size: int
) -> tuple[list[Tensor], Values]:
    """Returns the outputs of all rows and the assigned state."""
    if call.rows[0].shape[0] <= chunk_size:
        variables = [*call.trainable, *call.state]
        outputs, new = call([(v, v.value) for v in variables], call.rows)
        return outputs, [(v, new[id(v)]) for v in call.assigned]
    chunks = _Chunks(call, chunk_size)
    outputs = _InChunks.apply(
        chunks, *(value for _, value in chunks.weights), *call.rows
    )
    return list(outputs), chunks.new_state


class _Chunks:
    """The forward and the backward runs of a tower on the chunks of a batch.

    Attributes:
        weights: The trainable variables and their values.
        fixed: The variables that the tower only reads, and their values; set
            by the forward runs.
        new_state: The variables that it assigns, and their values after the
            forward runs.
    """

    def __init__(self, call: TowerCall, chunk_size: int) -> None:
        self._call = call
        self.weights: Values = [(v, v.value) for v in call.trainable]
        self.fixed: Values = []
        self.new_state: Values = []
        # Before each chunk.
        self._states: list[dict[int, Tensor]] = []
        self._contexts: list[_Context] = []
        self._buffers = keras_private.torch_buffers(call.tower)
        # Leaves of the last backward run that are neither weights nor rows.
        self._others: list[TensorWeakRef] = []
        self._is_reentrant = False
        batch = call.rows[0].shape[0]
        self._parts = [
            slice(start, min(start + chunk_size, batch))
            for start in range(0, batch, chunk_size)
        ]

    def run(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Returns the outputs of all rows, and keeps no activation."""
        call = self._call
        new: dict[int, Tensor] = {}
        wholes: list[Tensor] = []
        for part in self._parts:
            self._states.append(dict(new))
            context = _Context(rows[0].device, self._buffers)
            self._contexts.append(context)
            values = [(v, new.get(id(v), v.value)) for v in call.state]
            outputs, assigned = call(
                [*self.weights, *values], [x[part] for x in rows]
            )
            new.update((key, x.detach()) for key, x in assigned.items())
            if not wholes:
                self._buffers = context.keep_changed_buffers()
                count = rows[0].shape[0]
                wholes = [x.new_empty(count, *x.shape[1:]) for x in outputs]
            # Or a dimension of 1 would be broadcast.
            call.refuse_other_sizes(wholes, outputs)
            for whole, output in zip(wholes, outputs):
                whole[part] = output
        self.new_state = [(v, new[id(v)]) for v in call.assigned]
        self.fixed = [
            (v, _snapshot(v.value)) for v in call.state if id(v) not in new
        ]
        # Copies, since the variables will be assigned in place.
        first = {id(v): v.value.detach().clone() for v in call.assigned}
        self._states = [{**first, **state} for state in self._states]
        return wholes

    @torch.compiler.disable
    def gradients(
        self,
        tensors: Sequence[Tensor],
        needed: Sequence[bool],
        upstream: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """Returns the gradients of the weights and of the rows.

        Args:
            tensors: The values of the weights and the rows.
            needed: Which of them need a gradient.
            upstream: The gradients of the outputs of `run`, or None.
        """
        count = len(self.weights)
        rows = tensors[count:]
        places = [i for i, n in enumerate(needed) if n]
        # Allocated before the chunks, whose memory can then be reused.
        sums = {i: torch.zeros_like(tensors[i]) for i in places}
        used = set()
        for number, part in enumerate(self._parts):
            chunk = [
                x[part].detach().requires_grad_(n)
                for x, n in zip(rows, needed[count:])
            ]
            sources = [*tensors[:count], *chunk]
            gradients = self._chunk_gradients(
                number,
                chunk,
                [sources[i] for i in places],
                [None if x is None else x[part] for x in upstream],
            )
            for i, gradient in zip(places, gradients):
                if gradient is not None:
                    used.add(i)
                    whole = sums[i] if i < count else sums[i][part]
                    whole += gradient
            del gradients, gradient  # or they stay while the next chunk runs
        return [sums[i] if i in used else None for i in range(len(needed))]

    def _chunk_gradients(
        self,
        number: int,
        chunk: Sequence[Tensor],
        sources: Sequence[Tensor],
        upstream: Sequence[Tensor | None],
    ) -> Sequence[Tensor | None]:
        """Returns the gradients of `sources` from one chunk."""
        state = self._states[number]
        values = [(v, state[id(v)]) for v in self._call.assigned]
        with torch.enable_grad(), self._contexts[number].restored():
            outputs, _ = self._call(
                [*self.weights, *self.fixed, *values], chunk
            )
            pairs = [
                (output, gradient)
                for output, gradient in zip(outputs, upstream)
                if gradient is not None and output.requires_grad
            ]
            if not pairs:
                return [None] * len(sources)
            outputs, slopes = [list(column) for column in zip(*pairs)]
            if number < 2:
                self._look_at_sources(
                    outputs, [*(x for _, x in self.weights), *chunk]
                )
            if self._is_reentrant:
                return _reentrant_gradients(outputs, sources, slopes)
            return torch.autograd.grad(
                outputs, sources, slopes, allow_unused=True
            )

    def _look_at_sources(
        self, outputs: Sequence[Tensor], known: Sequence[Tensor]
    ) -> None:
        """Refuses weights of others: this backward cannot reach them.

        Another run of the tower uses them, too. A leaf that a run itself has
        made, such as an activation after `requires_grad_()`, is no weight.
        Also finds out whether there are reentrant checkpoints.
        """
        others: list[TensorWeakRef] = []
        known_ids = {id(x) for x in known}
        # A known tensor may itself be computed, such as a cast weight.
        seen = {None, *(x.grad_fn for x in known)}
        rest = list({x.grad_fn for x in outputs} - seen)
        seen |= set(rest)
        while rest:
            node = rest.pop()
            if node.name().startswith("CheckpointFunction"):
                self._is_reentrant = True
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in known_ids:
                if not any(x() is leaf for x in self._others):
                    others.append(TensorWeakRef(leaf))
                    continue
                raise ValueError(
                    "`tower` must own all weights that its outputs depend on, "
                    "or they get no gradient. Fix: make the layer that has "
                    "the weight a part of the tower. Received: "
                    f"tower={self._call.tower.name!r}, which uses a weight of "
                    f"shape {tuple(leaf.shape)} that is not its own"
                )
            new = {x for x, _ in node.next_functions} - seen
            seen |= new
            rest += new
        self._others = others


def _reentrant_gradients(
    outputs: Sequence[Tensor],
    sources: Sequence[Tensor],
    upstream: Sequence[Tensor],
) -> list[Tensor | None]:
    """Returns gradients where `torch.autograd.grad` misses or refuses some.

    A checkpoint with `use_reentrant=True` is not linked to the weights inside
    of it, but adds their gradients to `grad`.
    """
    before = [x.grad for x in sources]
    for source in sources:
        source.grad = None
    try:
        torch.autograd.backward(outputs, upstream)
        return [x.grad for x in sources]
    finally:
        for source, value in zip(sources, before):
            source.grad = value


def _snapshot(value: Tensor) -> Tensor:
    """Returns a copy of a small tensor, and a large one itself.

    Another call may assign a moving average or a seed before the backward
    runs. A large tensor is a frozen weight.
    """
    return value.detach().clone() if value.numel() <= 2**16 else value


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chunks: _Chunks, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        outputs = chunks.run(tensors[len(chunks.weights) :])
        ctx.chunks = chunks
        ctx.count = len(tensors)
        # Also the fixed ones, so that PyTorch detects changes in between.
        ctx.save_for_backward(*tensors, *(x for _, x in chunks.fixed))
        ctx.mark_non_differentiable(
            *(x for x in outputs if not x.is_floating_point())
        )
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, *upstream: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors[: ctx.count]
        return None, *ctx.chunks.gradients(
            tensors, ctx.needs_input_grad[1:], upstream
        )


class _Context:
    """A snapshot of the global state that a run depends on.

    It holds PyTorch's random generators, its autocasting, and the buffers of
    PyTorch modules, which a run changes in place.

    Args:
        device: The device of the tensors of the run.
        buffers: The buffers of PyTorch modules that a run may change.
    """

    def __init__(self, device: torch.device, buffers: Sequence[Tensor]) -> None:
        self._kind = device.type
        self._generator = torch.get_rng_state()
        self._generators = checkpoint.get_device_states(
            torch.empty(0, device=device)
        )
        self._autocast = [
            {
                "device_type": kind,
                "enabled": torch.is_autocast_enabled(kind),
                "dtype": torch.get_autocast_dtype(kind),
            }
            for kind in {"cpu", self._kind}
        ]
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers]

    def keep_changed_buffers(self) -> list[Tensor]:
        """Keeps only the buffers that have changed since, and returns them."""
        self._buffers = [
            (buffer, value)
            for buffer, value in self._buffers
            if not torch.equal(buffer, value)
        ]
        return [buffer for buffer, _ in self._buffers]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """A context in which this state is restored."""
        devices, states = self._generators
        kind = self._kind if devices else "cuda"
        with contextlib.ExitStack() as stack:
            for options in self._autocast:
                stack.enter_context(torch.autocast(**options))
            stack.enter_context(
                torch.random.fork_rng(devices, device_type=kind)
            )
            torch.set_rng_state(self._generator)
            if devices:
                checkpoint.set_device_states(devices, states, device_type=kind)
            now = [buffer.clone() for buffer, _ in self._buffers]
            try:
                for buffer, value in self._buffers:
                    buffer.data.copy_(value)
                yield
            finally:
                for (buffer, _), value in zip(self._buffers, now):
                    buffer.data.copy_(value)

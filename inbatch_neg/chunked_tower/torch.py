"""A tower in chunks of rows, on PyTorch.

Each chunk is a checkpoint of PyTorch, which runs it again in the backward pass
with its random numbers and its autocasting, and sums the gradients. What a
tower changes in place is put back for that run: Keras' variables by their
values before the chunk, the buffers of PyTorch modules by a copy.
"""

import contextlib
import gc
from collections.abc import Iterator, Sequence

import torch
from torch.utils import checkpoint

from inbatch_neg import keras_private
from inbatch_neg.chunked_tower.call import TowerCall, VariableValues
from inbatch_neg.types import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Returns whether the tensor can be split by rows."""
    return tensor.layout == torch.strided and not tensor.is_nested


@torch.compiler.disable
def run_in_chunks(
    call: TowerCall, chunk_size: int
) -> tuple[list[Tensor], VariableValues]:
    """Returns the outputs of all rows and the assigned state."""
    weights = [(v, v.value) for v in call.trainable]
    if call.rows[0].shape[0] <= chunk_size:  # nothing to run again
        state = [(v, v.value) for v in call.state]
        whole, assigned = call([*weights, *state], call.rows)
        return whole, [(v, assigned[id(v)]) for v in call.assigned]
    new: dict[int, Tensor] = {}
    results: list[list[Tensor]] = []
    buffers = keras_private.torch_buffers(call.tower)
    for rows in zip(*(x.split(chunk_size) for x in call.rows)):
        # Copied, since another call may assign them before the backward runs.
        state = [
            (v, new[id(v)] if id(v) in new else _snapshot(v.value))
            for v in call.state
        ]
        before = _Buffers(buffers)
        outputs, assigned = _run(call, [*weights, *state], rows, before)
        if not results:
            if len(call.trainable) > len(weights):
                # A layer was built in this run, although the tower says that
                # it was before. The weights must be arguments of each run.
                before.put_back()
                return run_in_chunks(call, chunk_size)
            buffers = before.keep_changed()
        new.update((key, x.detach()) for key, x in assigned.items())
        results.append(outputs)
        call.refuse_other_sizes(results[0], outputs)
    return (
        [torch.cat(parts) for parts in zip(*results)],
        [(v, new[id(v)]) for v in call.assigned],
    )


def _run(
    call: TowerCall,
    values: VariableValues,
    rows: Sequence[Tensor],
    buffers: "_Buffers",
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Returns the outputs of a chunk and what it assigns, by id."""
    variables = [v for v, _ in values]
    count = len(variables)
    assigned: dict[int, Tensor] = {}
    # Variables of others, found by the first run of the first chunk.
    found: VariableValues = []

    def run(*tensors: Tensor) -> list[Tensor]:
        outputs, new = call(
            [*zip(variables, tensors[:count]), *found], tensors[count:]
        )
        assigned.update(new)
        return outputs

    # Stopped early, the second run would end by an exception, which Keras
    # rewrites. The values are arguments, so that PyTorch detects changes.
    with checkpoint.set_checkpoint_early_stop(False):
        outputs = checkpoint.checkpoint(
            run,
            *(value for _, value in values),
            *rows,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), buffers.restored()),
        )
    known = {id(v) for v in variables}
    found += [
        (v, v.value.detach().clone())
        for v in call.assigned
        if id(v) not in known
    ]
    return outputs, assigned


def _snapshot(value: Tensor) -> Tensor:
    """Returns a copy of a small tensor, and a large one itself.

    Small are moving averages and seeds; a large one is a frozen weight.
    """
    return value.detach().clone() if value.numel() <= 2**16 else value


class _Buffers:
    """Buffers of PyTorch modules, which a run changes in place."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self._values = [(buffer, buffer.clone()) for buffer in buffers]

    def keep_changed(self) -> list[Tensor]:
        """Keeps only the buffers that have changed since, and returns them."""
        self._values = [
            (buffer, value)
            for buffer, value in self._values
            if not torch.equal(buffer, value)
        ]
        return [buffer for buffer, _ in self._values]

    def put_back(self) -> None:
        """Gives them the values that they had."""
        for buffer, value in self._values:
            buffer.data.copy_(value)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """A context in which they have the values that they had."""
        now = [buffer.clone() for buffer, _ in self._values]
        try:
            self.put_back()
            yield
        finally:
            for (buffer, _), value in zip(self._values, now):
                buffer.data.copy_(value)
            gc.collect(1)

"""A tower in chunks of rows, in the loops of a `tf.function`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from inbatch_neg.backends.chunked_tensorflow_gradients import (
    GradientLayout,
    joined,
)
from inbatch_neg.backends.tower_call import TowerCall, Values
from inbatch_neg.backends.types import Tensor


class Chunks:
    """The first and the second runs of a tower on the chunks of a batch.

    Args:
        call: The call of the tower.
        chunk_size: Rows of a chunk.
        given: The trainable variables whose values come as arguments.

    Attributes:
        new_state: The variables that the tower assigns, and their values
            after the first runs.
    """

    def __init__(
        self,
        call: TowerCall,
        chunk_size: int,
        given: Sequence[keras.Variable],
    ) -> None:
        self.new_state: Values = []
        self.call = call
        self.size = chunk_size
        self.given = given

    def slopes(
        self,
        values: Values,
        sources: Sequence[Any],
        rows: Sequence[Tensor],
        floats: Sequence[int],
        upstream: Sequence[Tensor],
    ) -> list[Any]:
        """Returns the gradients of one chunk.

        Args:
            values: Variables and the values that they have in it.
            sources: Variables and weights.
            rows: The rows of the chunk.
            floats: The places of those that are floats.
            upstream: The gradients by its outputs.

        Returns:
            A list, by `sources` and then by the rows that are floats, of
            tensors, `tf.IndexedSlices` or None.
        """
        sources = [*sources, *(rows[place] for place in floats)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            outputs, _ = self.call(values, rows)
        pairs = [
            (output, slope)
            for output, slope in zip(outputs, upstream)
            if output.dtype.is_floating
        ]
        return tape.gradient(
            [output for output, _ in pairs],
            sources,
            [slope for _, slope in pairs],
        )


class GraphChunks(Chunks):
    """The runs inside of a `tf.function`: loops over chunks of one size.

    The tower is traced once for the chunks of the loop and once for the last
    one, if that is smaller. Of an unknown number of rows the last chunk is
    always outside of the loop, since XLA must know the size of the others.
    """

    def run(
        self, weights: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> list[Tensor]:
        """Returns the outputs of all rows."""
        self._measure(rows)
        forward = self._traced_run(weights, rows)

        def step(number: Tensor, carry: list[Tensor]) -> tuple[list, list]:
            outputs, new = forward(
                list(weights), self._with(carry), self._chunk(rows, number)
            )
            return [*outputs, *carry], self._assigned(new)

        first = self._assigned(self._before)
        outputs = list(forward.structured_outputs[0])
        stacked, carry = self._loop(step, [*outputs, *first], first)
        self._by_chunk, self._at_last = stacked[len(outputs) :], carry
        outputs = [self._flat(x) for x in stacked[: len(outputs)]]
        if self._has_last:
            last = self._last(rows)
            arguments = list(weights), self._with(carry), last
            ends, new = _traced(self._run_one, *arguments)(*arguments)
            carry = self._assigned(new)
            outputs = [tf.concat(pair, axis=0) for pair in zip(outputs, ends)]
        outputs = [
            tf.ensure_shape(x, [rows[0].shape[0], *x.shape[1:]])
            for x in outputs
        ]
        self.new_state = list(zip(self._assigned(self._state), carry))
        return outputs

    def gradients(
        self,
        variables: Sequence[tf.Variable],
        weights: Sequence[Tensor],
        rows: Sequence[Tensor],
        floats: Sequence[int],
        upstream: Sequence[Tensor],
    ) -> list[Any]:
        """Returns the gradients by variables, weights and float rows."""
        sources = [*variables, *weights]
        layout = GradientLayout([tuple(x.shape) for x in sources])
        upstream = list(upstream)

        def slopes(weights: list, state: list, rows: list, up: list) -> list:
            values = self._values(weights, state)
            watched = [*variables, *weights]
            return layout.taken_apart(
                self.slopes(values, watched, rows, floats, up)
            )

        def arguments(carry: list, cut: Callable[..., list]) -> tuple:
            return list(weights), self._with(carry), cut(rows), cut(upstream)

        backward = _traced(slopes, *arguments(self._at_last, self._specs))

        def step(number: Tensor, sums: list[Tensor]) -> tuple[list, list]:
            carry = [x[number] for x in self._by_chunk]
            stacked, found = layout.stacked_and_summed(
                backward(*arguments(carry, lambda x: self._chunk(x, number)))
            )
            return stacked, [one + other for one, other in zip(sums, found)]

        likes, sums = layout.stacked_and_summed(backward.structured_outputs)
        stacked, sums = self._loop(
            step, likes, [tf.zeros(x.shape, x.dtype) for x in sums]
        )
        found = layout.put_together([self._flat(x) for x in stacked], sums)
        if not self._has_last:
            return found
        last = arguments(self._at_last, self._last)
        ends = layout.stacked_and_summed(_traced(slopes, *last)(*last))
        return joined([found, layout.put_together(*ends)], len(sources))

    def _measure(self, rows: Sequence[Tensor]) -> None:
        """Finds the number of full chunks, and the size of the last one."""
        batch = rows[0].shape[0]
        if batch is None:
            batch = tf.shape(rows[0])[0]
            self._full = tf.maximum(batch - 1, 0) // self.size
            self._has_last, self._last_size = True, None
        else:
            self._full, self._last_size = divmod(batch, self.size)
            self._has_last = self._last_size > 0

    def _traced_run(
        self, weights: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> Any:
        """Returns the function of one chunk, and learns of the state."""
        self._state: list[keras.Variable] = []
        while True:
            state = self.call.state
            self._before = [tf.convert_to_tensor(v.value) for v in state]
            known = len(state)
            self._state = state
            traced = _traced(
                self._run_one, list(weights), self._before, self._specs(rows)
            )
            # A generator that is not the tower's own shows in its first run.
            if len(self.call.state) == known:
                break
        assigned = {id(v) for v in self.call.assigned}
        self._places = [
            i for i, v in enumerate(self._state) if id(v) in assigned
        ]
        return traced

    def _run_one(
        self, weights: list[Tensor], state: list[Tensor], rows: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        outputs, new = self.call(self._values(weights, state), rows)
        return outputs, [new.get(id(v), x) for v, x in zip(self._state, state)]

    def _values(self, weights: list[Tensor], state: list[Tensor]) -> Values:
        return [*zip(self.given, weights), *zip(self._state, state)]

    def _assigned(self, state: Sequence[Any]) -> list[Any]:
        """Returns those entries of the state that the tower assigns."""
        return [state[place] for place in self._places]

    def _with(self, carry: Sequence[Tensor]) -> list[Tensor]:
        """Returns the whole state, with these values of the assigned ones."""
        state = list(self._before)
        for place, value in zip(self._places, carry):
            state[place] = value
        return state

    def _chunk(self, tensors: Sequence[Tensor], number: Any) -> list[Tensor]:
        """Returns the rows of a full chunk."""
        return [self._cut(x, number * self.size, self.size) for x in tensors]

    def _specs(self, tensors: Sequence[Tensor]) -> list[tf.TensorSpec]:
        """Returns what the rows of a full chunk are like."""
        return [
            tf.TensorSpec([self.size, *x.shape[1:]], x.dtype) for x in tensors
        ]

    def _last(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns the rows of the last chunk."""
        start = self._full * self.size
        return [self._cut(x, start, self._last_size) for x in tensors]

    def _cut(self, tensor: Tensor, start: Any, size: int | None) -> Tensor:
        shape = tf.shape(tensor)
        if tensor.shape[0] is None and size is not None:
            # XLA compiles a loop of no steps, too, and would refuse a slice
            # of more rows than there are.
            places = tf.minimum(start + tf.range(size), shape[0] - 1)
            return tf.gather(tensor, places)
        # XLA takes a start that is not known, if the sizes are.
        sizes = [shape[0] - start if size is None else size] + [
            shape[i] if n is None else n
            for i, n in enumerate(tensor.shape)
            if i > 0
        ]
        begin = [start] + [0] * (len(sizes) - 1)
        part = tf.slice(tensor, begin, tf.stack(sizes))
        return tf.ensure_shape(part, [size, *tensor.shape[1:]])

    def _flat(self, stacked: Tensor) -> Tensor:
        """Returns the rows of stacked chunks (chunks, rows of one, ...)."""
        in_chunk, *rest = stacked.shape[1:]
        rows = None
        if isinstance(self._full, int) and in_chunk is not None:
            rows = self._full * in_chunk
        shape = tf.concat([[-1], tf.shape(stacked)[2:]], axis=0)
        return tf.ensure_shape(tf.reshape(stacked, shape), [rows, *rest])

    def _loop(
        self,
        step: Callable[..., tuple[list, list]],
        likes: Sequence[Any],
        carry: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns what `step(number, carry)` gives, stacked, and its carry."""
        arrays = [
            tf.TensorArray(x.dtype, self._full, element_shape=x.shape)
            for x in likes
        ]

        def body(number: Tensor, arrays: list, carry: list) -> tuple:
            found, carry = step(number, carry)
            arrays = [a.write(number, x) for a, x in zip(arrays, found)]
            return number + 1, arrays, carry

        _, arrays, carry = tf.while_loop(
            lambda number, *_: number < self._full,
            body,
            (tf.constant(0), arrays, list(carry)),
            parallel_iterations=1,  # else chunks would be in memory together
        )
        return [array.stack() for array in arrays], list(carry)


def _traced(function: Callable[..., Any], *arguments: list[Tensor]) -> Any:
    specs = tf.nest.map_structure(
        lambda x: tf.TensorSpec(x.shape, x.dtype), arguments
    )
    traced = tf.function(function, autograph=False)
    return traced.get_concrete_function(*specs)

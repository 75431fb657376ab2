"""A tower in chunks of rows, in the loops of a `tf.function`."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from inbatch_neg.chunked_tower.call import TowerCall, VariableValues
from inbatch_neg.chunked_tower.tensorflow_gradients import (
    joined,
    merged,
    split,
)
from inbatch_neg.chunked_tower.tensorflow_sizes import (
    UnknownSizes,
    dense_rows,
)
from inbatch_neg.types import Tensor


class Chunks:
    """The forward and the backward runs of a tower on the chunks of a batch.

    Args:
        call: The call of the tower.
        chunk_size: Rows of a chunk.
        tensor_weights: The trainable variables whose values are passed as
            tensors.

    Attributes:
        new_state: The variables that the tower assigns, and their values
            after the forward runs.
    """

    def __init__(
        self,
        call: TowerCall,
        chunk_size: int,
        tensor_weights: Sequence[keras.Variable],
    ) -> None:
        self.new_state: VariableValues = []
        self.call = call
        self.size = chunk_size
        self.tensor_weights = tensor_weights

    def read_weights(self) -> VariableValues:
        """Returns the trainable variables that are read in each chunk.

        XLA compiles the body of a loop twice if a result of it has a size that
        was unknown while tracing, and TensorFlow crashes in the second time if
        a function in this body, such as the loop of a recurrent layer, takes a
        `tf.Variable`. So the tower gets tensors.
        """
        tensors = {id(v) for v in self.tensor_weights}
        return [
            (v, tf.convert_to_tensor(v.value))
            for v in self.call.trainable
            if id(v) not in tensors
        ]

    def chunk_gradients(
        self,
        values: VariableValues,
        sources: Sequence[Any],
        rows: Sequence[Tensor],
        floats: Sequence[int],
        upstream: Sequence[Tensor],
    ) -> list[Any]:
        """Returns the gradients of one chunk.

        Args:
            values: Variables and their values in this chunk.
            sources: Variables and weights.
            rows: The rows of the chunk.
            floats: The indices of the float tensors among `rows`.
            upstream: The gradients of the outputs.

        Returns:
            The gradients of `sources`, and then of the float rows: tensors,
            `tf.IndexedSlices` or None.
        """
        sources = [*sources, *(rows[place] for place in floats)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            outputs, _ = self.call([*values, *self.read_weights()], rows)
        pairs = [
            (output, gradient)
            for output, gradient in zip(outputs, upstream)
            if output.dtype.is_floating
        ]
        return tape.gradient(
            [output for output, _ in pairs],
            sources,
            [gradient for _, gradient in pairs],
        )


class GraphChunks(Chunks):
    """Runs inside a `tf.function`: loops over chunks of one size.

    The tower is traced once for the chunks of the loop, and once for the last
    chunk, if that is smaller. If the number of rows is unknown, the last chunk
    is always outside of the loop, since XLA must know the size of the others.
    """

    def run(
        self, weights: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> list[Tensor]:
        """Returns the outputs of all rows."""
        self._set_sizes(rows)
        forward = self._traced_run(weights, rows)

        def step(number: Tensor, carry: list[Tensor]) -> tuple[list, list]:
            sizes, *carry = carry
            outputs, new = forward(
                list(weights), self._with(carry), self._chunk(rows, number)
            )
            outputs, sizes = unknown.compared(outputs, sizes)
            return [*outputs, *carry], [sizes, *self._assigned(new)]

        first = self._assigned(self._before)
        outputs = list(forward.structured_outputs[0])
        unknown = UnknownSizes(self.call, outputs)
        stacked, (sizes, *carry) = self._loop(
            step, [*outputs, *first], [unknown.any, *first]
        )
        self._carries, self._last_carry = stacked[len(outputs) :], carry
        outputs = [self._flat(x) for x in stacked[: len(outputs)]]
        if self._has_last:
            arguments = list(weights), self._with(carry), self._last(rows)
            last = _traced(self._run_one, *arguments)
            ends, new = _in_turn(last, *arguments)
            self.call.refuse_other_sizes(outputs, ends)
            ends, _ = unknown.compared(ends, sizes)
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
        """Returns the gradients of variables, weights and float rows."""
        sources = [*variables, *weights]
        count, shapes = len(sources), [tuple(x.shape) for x in sources]
        upstream = list(upstream)

        def run_back(weights: list, state: list, rows: list, up: list) -> list:
            values = self._values(weights, state)
            watched = [*variables, *weights]
            gradients = self.chunk_gradients(values, watched, rows, floats, up)
            return gradients[:count] + [
                x if x is None else tf.convert_to_tensor(x)
                for x in gradients[count:]
            ]

        def arguments(carry: list, cut: Callable[..., list]) -> tuple:
            return list(weights), self._with(carry), cut(rows), cut(upstream)

        backward = _traced(run_back, *arguments(self._last_carry, self._specs))

        def step(number: Tensor, sums: list[Tensor]) -> tuple[list, list]:
            carry = [x[number] for x in self._carries]
            chunk = arguments(carry, lambda x: self._chunk(x, number))
            stacked, new = split(backward(*chunk), count)
            return stacked, [one + other for one, other in zip(sums, new)]

        like = backward.structured_outputs
        examples, sums = split(like, count)
        stacked, sums = self._loop(
            step, examples, [tf.zeros(x.shape, x.dtype) for x in sums]
        )
        by_rows = [
            x if _varies(example) else self._flat(x)
            for x, example in zip(stacked, examples)
        ]
        of_loop = merged(like, shapes, by_rows, sums)
        if not self._has_last:
            return of_loop
        last = arguments(self._last_carry, self._last)
        run_last = _traced(run_back, *last)
        return joined([of_loop, _in_turn(run_last, *last)], count)

    def _set_sizes(self, rows: Sequence[Tensor]) -> None:
        """Sets the number of full chunks, and the size of the last chunk."""
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
        """Returns the traced run of one chunk; sets `_state` and `_before`."""
        while True:
            self._state = self.call.state
            self._before = [tf.convert_to_tensor(v.value) for v in self._state]
            traced = _traced(
                self._run_one, list(weights), self._before, self._specs(rows)
            )
            # A seed generator outside of the tower is found in the first run.
            if len(self.call.state) == len(self._state):
                break
        assigned = {id(v) for v in self.call.assigned}
        self._places = [
            i for i, v in enumerate(self._state) if id(v) in assigned
        ]
        return traced

    def _run_one(
        self, weights: list[Tensor], state: list[Tensor], rows: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        values = [*self._values(weights, state), *self.read_weights()]
        outputs, new = self.call(values, rows)
        outputs = dense_rows(self.call, outputs, rows[0].shape[0])
        return outputs, [new.get(id(v), x) for v, x in zip(self._state, state)]

    def _values(
        self, weights: list[Tensor], state: list[Tensor]
    ) -> VariableValues:
        return [*zip(self.tensor_weights, weights), *zip(self._state, state)]

    def _assigned(self, state: Sequence[Any]) -> list[Any]:
        """Returns the entries of the state that the tower assigns."""
        return [state[place] for place in self._places]

    def _with(self, carry: Sequence[Tensor]) -> list[Tensor]:
        """Returns the whole state, with these values of assigned variables."""
        state = list(self._before)
        for place, value in zip(self._places, carry):
            state[place] = value
        return state

    def _chunk(self, tensors: Sequence[Tensor], number: Any) -> list[Tensor]:
        """Returns the rows of a full chunk."""
        return [self._cut(x, number * self.size, self.size) for x in tensors]

    def _specs(self, tensors: Sequence[Tensor]) -> list[tf.TensorSpec]:
        """Returns the specs of a full chunk."""
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
            # XLA also compiles a loop without steps, and would refuse a slice
            # with more rows than the tensor has.
            places = tf.minimum(start + tf.range(size), shape[0] - 1)
            return tf.gather(tensor, places)
        # XLA accepts an unknown start if the sizes are known.
        sizes = [shape[0] - start if size is None else size] + [
            shape[i] if n is None else n
            for i, n in enumerate(tensor.shape)
            if i > 0
        ]
        begin = [start] + [0] * (len(sizes) - 1)
        part = tf.slice(tensor, begin, tf.stack(sizes))
        return tf.ensure_shape(part, [size, *tensor.shape[1:]])

    def _flat(self, stacked: Tensor) -> Tensor:
        """Returns the rows of stacked chunks (chunks, rows of each, ...)."""
        in_chunk, *rest = stacked.shape[1:]
        rows = None
        if isinstance(self._full, int) and in_chunk is not None:
            rows = self._full * in_chunk
        shape = tf.concat([[-1], tf.shape(stacked)[2:]], axis=0)
        return tf.ensure_shape(tf.reshape(stacked, shape), [rows, *rest])

    def _loop(
        self,
        step: Callable[..., tuple[list, list]],
        examples: Sequence[Any],
        carry: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the stacked results of `step(number, carry)`, and the carry.

        The results have the dtypes and shapes of `examples`. Those with an
        unknown number of rows, which may vary, are concatenated.
        """
        arrays = [
            tf.TensorArray(
                x.dtype,
                self._full,
                element_shape=x.shape,
                infer_shape=not _varies(x),
            )
            for x in examples
        ]

        def body(number: Tensor, arrays: list, carry: list) -> tuple:
            results, carry = step(number, carry)
            arrays = [a.write(number, x) for a, x in zip(arrays, results)]
            return number + 1, arrays, carry

        def loop(start: Tensor) -> tuple[list, list]:
            _, stacked, end = tf.while_loop(
                lambda number, *_: number < self._full,
                body,
                (start, arrays, list(carry)),
                parallel_iterations=1,  # only one chunk in memory at a time
            )
            return [
                array.concat() if _varies(x) else array.stack()
                for array, x in zip(stacked, examples)
            ], list(end)

        return _in_turn(loop, tf.constant(0))


def _varies(example: Any) -> bool:
    """Returns whether a result may have another number of rows each time.

    Gradients of embeddings have as many as there are lookups in the chunk.
    """
    return bool(example.shape.rank) and example.shape[0] is None


def _in_turn(run: Callable[..., Any], *arguments: Any) -> Any:
    """Returns `run(*arguments)`, computed after earlier chunks of the graph.

    The towers of a model do not depend on each other, so TensorFlow would
    compute a chunk of each at the same time. Replicas have their own devices.
    """
    device = tf.constant(0).device
    graph = tf.compat.v1.get_default_graph()
    chunks = tf.compat.v1.get_collection_ref(f"inbatch_neg chunks {device}")
    # A graph inside another begins with the collections of the outer one.
    earlier = [x for x in chunks if x.graph is graph]
    with tf.control_dependencies(earlier):
        arguments = tf.nest.map_structure(tf.identity, arguments)
    results = run(*arguments)
    # A control dependency on an inlined function does not wait for its outputs.
    results = tf.nest.map_structure(
        lambda x: x if x is None else tf.identity(x), results
    )
    tensors = tf.nest.flatten(results, expand_composites=True)
    chunks[:] = [x for x in tensors if x is not None]
    return results


def _traced(function: Callable[..., Any], *arguments: list[Tensor]) -> Any:
    specs = tf.nest.map_structure(
        lambda x: tf.TensorSpec(x.shape, x.dtype), arguments
    )
    traced = tf.function(function, autograph=False)
    return traced.get_concrete_function(*specs)

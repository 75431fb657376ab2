"""A tower in chunks of rows, on TensorFlow."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from inbatch_neg.chunked_tower.call import TowerCall, VariableValues
from inbatch_neg.chunked_tower.tensorflow_gradients import joined
from inbatch_neg.chunked_tower.tensorflow_loops import Chunks, GraphChunks
from inbatch_neg.types import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Returns whether the tensor can be split by rows."""
    return not isinstance(tensor, (tf.RaggedTensor, tf.SparseTensor))


@tf.autograph.experimental.do_not_convert
def run_in_chunks(
    call: TowerCall, chunk_size: int
) -> tuple[list[Tensor], VariableValues]:
    """Returns the outputs of all rows and the assigned state."""
    # Weights whose values are tensors. The tower reads `tf.Variable`s itself,
    # so that the gradient of an embedding table stays sparse.
    tensor_weights = [
        (variable, variable.value)
        for variable in call.trainable
        if not isinstance(variable.value, tf.Variable)
    ]
    batch = call.rows[0].shape[0]
    if batch is not None and batch <= chunk_size:
        state = [(v, tf.convert_to_tensor(v.value)) for v in call.state]
        outputs, new = call([*tensor_weights, *state], call.rows)
        return outputs, [(v, new[id(v)]) for v in call.assigned]
    is_eager = tf.executing_eagerly()
    kind = EagerChunks if is_eager else GraphChunks
    chunks = kind(call, chunk_size, [v for v, _ in tensor_weights])
    floats = [i for i, x in enumerate(call.rows) if x.dtype.is_floating]

    @tf.custom_gradient
    def run(*sources: Tensor) -> tuple[list[Tensor], Callable[..., Any]]:
        count = len(tensor_weights)
        weights, inputs = sources[:count], sources[count:]
        rows = list(call.rows)
        for place, value in zip(floats, inputs):
            rows[place] = value
        # An eager tape would keep the activations of every chunk. This scope
        # pauses it.
        with tf.init_scope() if is_eager else contextlib.nullcontext():
            outputs = chunks.run(weights, rows)

        def gradients(
            *upstream: Tensor, variables: Sequence[tf.Variable] | None = None
        ) -> Any:
            results = chunks.gradients(
                list(variables or ()), weights, rows, floats, upstream
            )
            if variables is None:
                return results
            # `results` begins with the gradients of the variables.
            return results[len(variables) :], results[: len(variables)]

        return outputs, gradients

    inputs = [call.rows[place] for place in floats]
    outputs = run(*(value for _, value in tensor_weights), *inputs)
    return list(outputs), chunks.new_state


class EagerChunks(Chunks):
    """Runs outside of a `tf.function`."""

    def run(
        self, weights: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> list[Tensor]:
        """Returns the outputs of all rows."""
        new: dict[int, Tensor] = {}
        results = []
        self._states: list[dict[int, Tensor]] = []
        for part in self._parts(rows):
            self._states.append(dict(new))
            self._read_state()
            outputs, assigned = self.call(
                self._values(weights, new), [x[part] for x in rows]
            )
            new.update(assigned)
            results.append(outputs)
            self.call.refuse_other_sizes(results[0], outputs)
        self._read_state()
        self.new_state = [(v, new[id(v)]) for v in self.call.assigned]
        return [tf.concat(column, axis=0) for column in zip(*results)]

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
        by_chunk = [
            self.chunk_gradients(
                self._values(weights, state),
                sources,
                [x[part] for x in rows],
                floats,
                [x[part] for x in upstream],
            )
            for part, state in zip(self._parts(rows), self._states)
        ]
        return joined(by_chunk, len(sources))

    def _parts(self, rows: Sequence[Tensor]) -> list[slice]:
        batch = rows[0].shape[0]
        return [
            slice(start, min(start + self.size, batch))
            for start in range(0, batch, self.size)
        ]

    def _read_state(self) -> None:
        # These tensors do not change when the variables are assigned.
        self._before = {
            id(v): tf.convert_to_tensor(v.value) for v in self.call.state
        }

    def _values(
        self, weights: Sequence[Tensor], state: dict[int, Tensor]
    ) -> VariableValues:
        state = {**self._before, **state}
        return [
            *zip(self.tensor_weights, weights),
            *((v, state[id(v)]) for v in self.call.state),
        ]

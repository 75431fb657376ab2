"""A tower in chunks of rows, on TensorFlow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from inbatch_neg.backends.chunked_tensorflow_gradients import joined
from inbatch_neg.backends.chunked_tensorflow_loops import Chunks, GraphChunks
from inbatch_neg.backends.tower_call import TowerCall, Values
from inbatch_neg.backends.types import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether rows can be cut from it."""
    return not isinstance(tensor, (tf.RaggedTensor, tf.SparseTensor))


@tf.autograph.experimental.do_not_convert
def run_in_chunks(
    call: TowerCall, chunk_size: int
) -> tuple[list[Tensor], Values]:
    """Returns the outputs of all rows and the assigned state."""
    # Weights that come as tensors. The tower reads its variables itself, so
    # that the gradient of an embedding table stays sparse.
    given = [
        (variable, variable.value)
        for variable in call.trainable
        if not isinstance(variable.value, tf.Variable)
    ]
    batch = call.rows[0].shape[0]
    if batch is not None and batch <= chunk_size:
        state = [(v, tf.convert_to_tensor(v.value)) for v in call.state]
        outputs, new = call([*given, *state], call.rows)
        return outputs, [(v, new[id(v)]) for v in call.assigned]
    is_eager = tf.executing_eagerly()
    kind = EagerChunks if is_eager else GraphChunks
    chunks = kind(call, chunk_size, [variable for variable, _ in given])
    floats = [i for i, x in enumerate(call.rows) if x.dtype.is_floating]

    @tf.custom_gradient
    def run(*sources: Tensor) -> tuple[list[Tensor], Callable[..., Any]]:
        weights, inputs = sources[: len(given)], sources[len(given) :]
        rows = list(call.rows)
        for place, value in zip(floats, inputs):
            rows[place] = value
        # An eager tape would keep the activations of every chunk. Inside of
        # this scope it pauses.
        with tf.init_scope() if is_eager else contextlib.nullcontext():
            outputs = chunks.run(weights, rows)

        def gradients(
            *upstream: Tensor, variables: Sequence[tf.Variable] | None = None
        ) -> Any:
            # The ones by the variables first, those by the rows last.
            slopes = chunks.gradients(
                list(variables or ()), weights, rows, floats, upstream
            )
            count = len(slopes) - len(sources)
            if variables is None:
                return slopes
            return slopes[count:], slopes[:count]

        return outputs, gradients

    inputs = [call.rows[place] for place in floats]
    outputs = run(*(value for _, value in given), *inputs)
    return list(outputs), chunks.new_state


class EagerChunks(Chunks):
    """The runs outside of a `tf.function`."""

    def run(
        self, weights: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> list[Tensor]:
        """Returns the outputs of all rows."""
        new: dict[int, Tensor] = {}
        found = []
        self._states: list[dict[int, Tensor]] = []
        for part in self._parts(rows):
            self._states.append(dict(new))
            self._read_state()
            outputs, assigned = self.call(
                self._values(weights, new), [x[part] for x in rows]
            )
            new.update(assigned)
            found.append(outputs)
        self._read_state()
        self.new_state = [(v, new[id(v)]) for v in self.call.assigned]
        return [tf.concat(column, axis=0) for column in zip(*found)]

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
        every = [
            self.slopes(
                self._values(weights, state),
                sources,
                [x[part] for x in rows],
                floats,
                [x[part] for x in upstream],
            )
            for part, state in zip(self._parts(rows), self._states)
        ]
        return joined(every, len(sources))

    def _parts(self, rows: Sequence[Tensor]) -> list[slice]:
        batch = rows[0].shape[0]
        return [
            slice(start, min(start + self.size, batch))
            for start in range(0, batch, self.size)
        ]

    def _read_state(self) -> None:
        # These tensors stay as they are when the variables are assigned.
        self._before = {
            id(v): tf.convert_to_tensor(v.value) for v in self.call.state
        }

    def _values(
        self, weights: Sequence[Tensor], state: dict[int, Tensor]
    ) -> Values:
        state = {**self._before, **state}
        return [
            *zip(self.given, weights),
            *((v, state[id(v)]) for v in self.call.state),
        ]

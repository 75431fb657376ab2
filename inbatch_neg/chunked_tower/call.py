"""A tower as a pure function of rows, weights and state.

The file of each backend runs it, in `run_in_chunks(call, chunk_size)`. This
keeps only the activations of one chunk; the gradient runs each chunk again,
with the state that the tower had before it. It returns the outputs, and the
variables that the tower assigns, with their new values, which are not assigned
yet.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import keras
from keras import tree

from inbatch_neg import keras_private
from inbatch_neg.arguments import sizes_differ
from inbatch_neg.types import Tensor

# Variables and the values that they have, or get.
VariableValues: TypeAlias = "list[tuple[keras.Variable, Tensor]]"


class TowerCall:
    """One call of a tower, which can be run repeatedly on parts of its rows.

    A run assigns no variable: it takes the values of the variables, and
    returns the values that the tower has assigned.

    Args:
        tower: A Keras layer.
        inputs: Nest of tensors with one entry per row.
        training: Passed to the tower.
        keywords: The other arguments of the tower by name: nests of tensors
            with one entry per row, or anything else, which is passed as it is.

    Attributes:
        tower: The layer.
        assigned: The variables that the runs so far have assigned.
    """

    def __init__(
        self,
        tower: keras.Layer,
        inputs: Any,
        training: Any,
        keywords: dict[str, Any],
    ) -> None:
        cut = {k: v for k, v in keywords.items() if has_tensors(v)}
        leaves = tree.flatten((inputs, cut))
        self._tensors = [x for x in leaves if x is not None]
        self.assigned: list[keras.Variable] = []
        self._is_tensor = [x is not None for x in leaves]
        self._structure = tree.map_structure(lambda x: 0, (inputs, cut))
        self._training = training
        self._others = {k: v for k, v in keywords.items() if k not in cut}
        self.tower = tower
        self._result: Any = None  # structures of the outputs and their masks

    @functools.cached_property
    def rows(self) -> list[Tensor]:
        """The tensors of the arguments, and the masks attached to them."""
        return [*self._tensors, *(x for x in self._masks if x is not None)]

    @functools.cached_property
    def _masks(self) -> list[Any]:
        return keras_private.masks_of(self._tensors)

    @property
    def trainable(self) -> list[keras.Variable]:
        """The trainable variables of the tower."""
        return [v for v in self.tower.variables if v.trainable]

    @property
    def state(self) -> list[keras.Variable]:
        """The other variables, and foreign ones that the tower assigns."""
        own = [v for v in self.tower.variables if not v.trainable]
        known = {id(v) for v in self.tower.variables}
        return own + [v for v in self.assigned if id(v) not in known]

    def __call__(
        self,
        values: Iterable[tuple[keras.Variable, Tensor]],
        rows: Sequence[Tensor],
    ) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Returns the outputs, and the assigned values by id of the variable.

        Args:
            values: Variables and their values. Other variables keep their
                own value.
            rows: The rows to run on, for each tensor in `self.rows`.
        """
        count = len(self._tensors)
        masks = _placed(rows[count:], [x is not None for x in self._masks])
        results: list[Any] = []

        def run(tensors: list[Tensor], training: Any) -> None:
            keras_private.attach_masks(tensors, masks)
            leaves = _placed(tensors, self._is_tensor)
            inputs, cut = tree.pack_sequence_as(self._structure, leaves)
            outputs = self.tower(
                inputs, training=training, **cut, **self._others
            )
            results.extend((outputs, keras_private.masks_of(outputs)))

        with _Scope(values) as scope:
            _CallContext(run)(list(rows[:count]), training=self._training)
        outputs, masks = results
        # The context is part of a cycle of references, which would keep the
        # activations that the outputs refer to.
        results.clear()
        self._refuse_losses(scope.losses)
        self._refuse_assigned_weights(scope.assigned)
        known = {id(v) for v in self.assigned}
        self.assigned += [
            v for k, v in scope.assigned.items() if k not in known
        ]
        leaves = tree.flatten((outputs, masks))
        self._refuse_other_rows(leaves, rows)
        self._result = (
            tree.map_structure(lambda x: 0, (outputs, masks)),
            [x is not None for x in leaves],
        )
        new = {key: scope.state_mapping[key] for key in scope.assigned}
        return [x for x in leaves if x is not None], new

    def pack(self, results: Sequence[Tensor]) -> Any:
        """Returns the nest of the outputs, with their masks attached."""
        structure, is_tensor = self._result
        outputs, masks = tree.pack_sequence_as(
            structure, _placed(results, is_tensor)
        )
        keras_private.attach_masks(outputs, masks)
        return outputs

    def refuse_other_sizes(
        self, outputs: Sequence[Tensor], others: Sequence[Tensor]
    ) -> None:
        """Refuses outputs of two chunks that differ in more than their rows."""
        for one, other in zip(outputs, others):
            if len(one.shape) != len(other.shape) or any(
                map(sizes_differ, one.shape[1:], other.shape[1:])
            ):
                shapes = f"shapes {tuple(one.shape)} and {tuple(other.shape)}"
                raise ValueError(self.other_sizes(shapes))

    def other_sizes(self, received: str) -> str:
        """Returns the message about outputs whose sizes vary by chunk."""
        return (
            "`tower` must return outputs of one size in all chunks, but for "
            "their rows. Fix: pad them to one length in the tower, or pool "
            f"them to one vector a row. Received: tower={self.tower.name!r}, "
            f"which returned {received}"
        )

    def refuse_overwritten_weights(self) -> None:
        """Refuses weights whose gradient is their next value."""
        for variable in self.trainable:
            if variable.overwrite_with_gradient:
                raise ValueError(
                    "`tower` must not have weights that a step overwrites: "
                    "their chunks cannot be added up. Fix: call a "
                    "`SparseEmbedding` before the `ChunkedTower`, and pass it "
                    "the vectors. Received: "
                    f"tower={self.tower.name!r} with {variable.path!r}"
                )

    def _refuse_losses(self, losses: list[Tensor]) -> None:
        if losses:
            raise ValueError(
                "`tower` must not call `add_loss` or have an "
                "`activity_regularizer`: each loss would be that of a chunk. "
                "Fix: apply the loss to the outputs of the `ChunkedTower`. "
                f"Received: tower={self.tower.name!r} with {len(losses)} losses"
            )

    def _refuse_assigned_weights(
        self, assigned: dict[int, keras.Variable]
    ) -> None:
        for variable in assigned.values():
            if variable.trainable:
                raise ValueError(
                    "`tower` must not assign a trainable weight in its call: "
                    "each chunk would use a different one. Train it without "
                    f"`ChunkedTower`. Received: tower={self.tower.name!r}, "
                    f"which assigned {variable.path!r}"
                )

    def _refuse_other_rows(
        self, results: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> None:
        expected = rows[0].shape[0]
        for result in results:
            if result is None:
                continue
            shape = tuple(result.shape)
            if sizes_differ(shape[0] if shape else 0, expected):
                raise ValueError(
                    "`tower` must return tensors with one entry per row of "
                    f"its inputs. Received: tower={self.tower.name!r}, which "
                    f"returned shape {shape} for {expected} rows"
                )


class _Scope(keras.StatelessScope):
    """Collects assignments and losses instead of applying them.

    Attributes:
        assigned: The assigned variables, by their ids.
    """

    def __init__(self, values: Iterable[tuple[keras.Variable, Tensor]]) -> None:
        super().__init__(list(values), collect_losses=True)
        self.assigned: dict[int, keras.Variable] = {}

    def get_current_value(self, variable: keras.Variable) -> Tensor:
        """Returns the value; of other weights, that of the scope around."""
        value = super().get_current_value(variable)
        if value is None:
            value = keras_private.value_in_outer_scope(self, variable)
        return value

    def add_update(self, update: tuple[keras.Variable, Tensor]) -> None:
        super().add_update(update)
        self.assigned[id(update[0])] = update[0]


class _CallContext(keras_private.NoNameScope, keras.layers.Layer):
    """An outer layer for each run of a tower, as inside a model.

    A layer gets `training` and autocasting from the layer that calls it. In a
    backward pass there is none, so each run uses this one. Its mixed policy
    opens an autocast scope, which the tower replaces with its own.
    """

    def __init__(self, run: Callable[[Any, Any], None]) -> None:
        super().__init__(name="chunk", dtype="mixed_float16", autocast=False)
        self.supports_masking = True
        self._run = run

    def call(self, inputs: Any, training: Any = None) -> Any:
        self._run(inputs, training)
        return inputs

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None


def has_tensors(nest: Any) -> bool:
    """Returns whether a keyword argument is a tensor or a nest of tensors."""
    return any(
        keras.ops.is_tensor(x) or keras.backend.is_keras_tensor(x)
        for x in tree.flatten(nest)
    )


def _placed(values: Sequence[Tensor], present: Sequence[bool]) -> list[Any]:
    """Returns the values at the places where they are present, else None."""
    rest = iter(values)
    return [next(rest) if one else None for one in present]

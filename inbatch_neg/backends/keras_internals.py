"""Everything that relies on how Keras is written inside.

Read in Keras 3.5.0 and 3.15.1. The tests run on both, so a change in Keras
fails there first:

- whether Keras traces shapes alone (`SymbolicScope.original_scope`);
- how an error passes Keras and AutoGraph unchanged (two attributes);
- which local variable of a JAX step holds the weights (`state`);
- the device mesh of a distribution (`device_mesh.backend_mesh`);
- how a layer enters the paths of its weights (`_open_name_scope`).
"""

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import keras


def in_symbolic_call() -> bool:
    """Whether Keras is tracing shapes alone, so that there is no batch yet."""
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None


class UnchangedMessage:
    """For errors whose message crosses layers and compiled functions as it is.

    Keras and AutoGraph rewrite the message of an error that crosses them,
    which would bury the remedy; AutoGraph makes an error of its own of it.
    They leave one with these attributes alone.
    """

    _keras_call_info_injected = True
    ag_pass_through = True


class NoNameScope:
    """For a layer around another one, whose weights keep their paths."""

    def _open_name_scope(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()


def mesh_of_rows(distribution: Any, rows: int) -> tuple[Any, tuple[str, ...]]:
    """Returns the device mesh and the axes that share the rows of a batch.

    The devices along a model axis would repeat the same work: they share the
    rows where these can be divided.
    """
    mesh = distribution.device_mesh.backend_mesh
    axes = (distribution.get_data_layout((rows,)).axes[0],)
    if rows % mesh.size == 0:
        axes = tuple(mesh.axis_names)
    return mesh, axes


@contextlib.contextmanager
def restore_model_state() -> Iterator[None]:
    """Assigns a model's weights again when an error leaves a JAX step.

    While `fit`, `evaluate` and `predict` run on JAX, Keras empties the model
    and keeps the weights in a local variable, `state`. An exception from
    `evaluate`, `predict` or the first step of `fit` loses that variable, and
    with it the trained model. Nothing else refers to the weights: the model's
    variables are empty, and the step's own arguments are tracers. So the
    variable is looked up on the stack.
    """
    try:
        yield
    except Exception:
        _restore()
        raise


_VARIABLES_IN_STATE = {
    "fit": ("trainable", "non_trainable", "optimizer", "metrics"),
    "train_on_batch": ("trainable", "non_trainable", "optimizer", "metrics"),
    "evaluate": ("trainable", "non_trainable", "metrics"),
    "test_on_batch": ("trainable", "non_trainable", "metrics"),
    "predict": ("trainable", "non_trainable"),
    "predict_on_batch": ("trainable", "non_trainable"),
}


def _restore() -> None:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        names = _VARIABLES_IN_STATE.get(frame.f_code.co_name)
        model = frame.f_locals.get("self")
        state = frame.f_locals.get("state")
        if (
            names
            and isinstance(model, keras.Model)
            and isinstance(state, tuple)
        ):
            # The scope of the stateless step and the trace are local to the
            # thread, hence a thread of its own.
            thread = threading.Thread(
                target=_assign, args=(model, names, state)
            )
            thread.start()
            thread.join()
            return
        frame = frame.f_back


def _assign(
    model: keras.Model, names: Sequence[str], state: tuple[Any, ...]
) -> None:
    # A model that was never compiled has no optimizer.
    optimizer = getattr(model, "optimizer", None)
    variables = {
        "trainable": model.trainable_variables,
        "non_trainable": model.non_trainable_variables,
        "optimizer": optimizer.variables if optimizer else [],
        "metrics": model.metrics_variables,
    }
    for name, values in zip(names, state):
        for variable, value in zip(variables[name], values):
            variable.assign(value)

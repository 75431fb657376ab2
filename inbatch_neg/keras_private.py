"""Everything that relies on private parts of Keras.

Written for Keras 3.5.0 and 3.15.1. The tests run on both, so that a change in
Keras makes a test fail:

- whether Keras only traces shapes (`SymbolicScope.original_scope`), and which
  scope is around another (`StatelessScope.original_scope`);
- the package that exports models (`keras.src.export`);
- how an error passes through Keras and AutoGraph unchanged (two attributes);
- which local variable of a JAX step holds the weights (`state`), in which
  module, whether the model already has them (`_jax_state_synced`), and that
  its variables are empty during the step (`_value`);
- which attribute of a model holds its compiled step (`train_function`, ...);
- the device mesh of a distribution (`device_mesh.backend_mesh`);
- how a layer enters the paths of its weights (`_open_name_scope`), and where
  it is rematerialised (`rematerialized_call`, since Keras 3.9);
- how to list the layers inside a layer (`_flatten_layers`);
- what registers the weights of a layer with its PyTorch module (`_post_build`);
- where Keras keeps the objects that several layers share, while it loads
  (`get_shared_object`, `record_object_after_deserialization`) and while it
  clones (`wrapped_clone_function`, `cache`);
- where a tensor carries its mask (`set_keras_mask` and `get_keras_mask`; before
  Keras 3.10, the attribute `_keras_mask`);
- that an optimizer asks a variable for `overwrite_with_gradient` before it does
  anything else, and then assigns its gradient; which variables it decays
  (`_use_weight_decay`), and whether loss scaling leaves these gradients alone
  (`_overwrite_variable_with_gradient`, which Keras 3.5 lacks);
- by which signature a layer binds its arguments (`_call_signature`), and that
  it binds them all by name to trace `call`, `**kwargs` included.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType, TracebackType
from typing import Any

import keras
from keras.src import backend as keras_backend
from keras.src.saving import serialization_lib

from inbatch_neg.backends import backend
from inbatch_neg.types import Tensor


def in_symbolic_call() -> bool:
    """Returns whether Keras only traces shapes, without a real batch."""
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None


def value_in_outer_scope(
    scope: keras.StatelessScope, variable: keras.Variable
) -> Tensor:
    """Returns the value of a variable in the scope around `scope`, or None."""
    outer = scope.original_scope
    return None if outer is None else outer.get_current_value(variable)


def in_export() -> bool:
    """Returns whether `model.export` is tracing the model."""
    return any(
        frame.f_globals.get("__name__", "").startswith("keras.src.export")
        for frame in _frames()
    )


class NoNameScope:
    """For a layer around another one whose weights keep their paths.

    A `keras.RematScope` concerns the inner layer alone: what these layers pass
    on by their attributes would be lost in a second run.
    """

    def _open_name_scope(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def rematerialized_call(
        self, layer_call: Callable, *args: Any, **kwargs: Any
    ) -> Callable:
        """Returns the call itself; called by Keras in a `RematScope`."""
        return layer_call


def set_built(layer: keras.Layer, owner: type[keras.Layer]) -> None:
    """Marks a layer as built that has all its weights from the constructor.

    On PyTorch it also registers them with the module of the layer, which
    Keras would do in the first call: until then an optimizer that is made of
    the parameters, or a state that is loaded, would lack them. The layer can
    still get weights, in the constructor of a subclass.

    Args:
        layer: The layer, at the end of its constructor.
        owner: The class of that constructor. A subclass with a `build` of its
            own is built by the first call.
    """
    if type(layer).build is owner.build:
        layer.built = True
    layer._post_build()


def shared_object(identity: int | None, make: Callable[[], Any]) -> Any:
    """Returns the new object that stands for an object of a saved model.

    The same one for all layers that are loaded, or cloned, in one call.

    Args:
        identity: The `id` of the original object, from the config; None if
            the config does not have it.
        make: Makes the new object.
    """
    if identity is None:
        return make()
    for frame in _frames():
        if (
            frame.f_globals.get("__name__") == "keras.src.models.cloning"
            and frame.f_code.co_name == "wrapped_clone_function"
        ):
            # By the `id` of the original layers, which still exist.
            cache = frame.f_locals["cache"]
            if identity not in cache:
                cache[identity] = make()
            return cache[identity]
    found = serialization_lib.get_shared_object(identity)
    if found is None:
        found = make()
        serialization_lib.record_object_after_deserialization(found, identity)
    return found


def variable_config(value: Any) -> Any:
    """Returns a form of a scalar variable for a config; others unchanged."""
    if not isinstance(value, keras.Variable):
        return value
    return {
        # The weights file holds the value too, and takes precedence.
        "initializer": float(keras.ops.convert_to_numpy(value)),
        "trainable": value.trainable,
        "dtype": value.dtype,
        "name": value.name,
        # Other layers may have the same one.
        "shared_object_id": id(value),
    }


def variable_from_config(config: Any) -> Any:
    """Returns what `variable_config` was given, as a new variable."""
    if not isinstance(config, dict):
        return config
    options = dict(config)
    # Versions before 0.2.1 did not save it.
    identity = options.pop("shared_object_id", None)
    return shared_object(identity, lambda: keras.Variable(**options))


class CallArguments:
    """The arguments of a layer's `call` that follow the first one.

    Args:
        layer: The layer.

    Attributes:
        names: Their names, as `call` has them.
    """

    def __init__(self, layer: keras.Layer) -> None:
        parameters = list(inspect.signature(layer.call).parameters.values())
        if parameters and parameters[0].kind != inspect.Parameter.VAR_KEYWORD:
            del parameters[0]
        self._named: list[inspect.Parameter] = []
        self._rest: inspect.Parameter | None = None
        for parameter in parameters:
            if parameter.kind == inspect.Parameter.VAR_KEYWORD:
                # Keras' own models ignore what they do not know.
                module = getattr(layer.call, "__module__", None) or ""
                if not module.startswith("keras.src.models"):
                    self._rest = parameter
            elif parameter.kind != inspect.Parameter.VAR_POSITIONAL:
                self._named.append(
                    parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
                )
        self.names = [x.name for x in self._named]
        if self._rest is not None:
            self.names.append(f"**{self._rest.name}")

    def takes(self, name: str) -> bool:
        """Returns whether `call` takes an argument of this name."""
        return name in self.names or self._rest is not None

    def describe(self, wrapper: keras.Layer) -> None:
        """Lets Keras bind the arguments of a wrapper as those of the layer.

        By its own signature, `call(inputs, *, mask, training, **keywords)`,
        Keras would take the keywords for one nest, and refuse tensors beside
        others.
        """
        own = [
            parameter
            for parameter in wrapper._call_signature.parameters.values()
            if parameter.kind != inspect.Parameter.VAR_KEYWORD
        ]
        known = {x.name for x in own}
        others = [x for x in self._named if x.name not in known]
        rest = [] if self._rest is None else [self._rest]
        wrapper._call_signature = inspect.Signature([*own, *others, *rest])

    def unpacked(self, keywords: dict[str, Any]) -> dict[str, Any]:
        """Returns the keywords, with those in a nest of `**kwargs` beside."""
        if self._rest is None or self._rest.name not in keywords:
            return dict(keywords)
        keywords = dict(keywords)
        return {**keywords.pop(self._rest.name), **keywords}


# Before Keras 3.10 it is an attribute without functions.
_get_mask = getattr(
    keras_backend,
    "get_keras_mask",
    lambda tensor: getattr(tensor, "_keras_mask", None),
)
_set_mask = getattr(
    keras_backend,
    "set_keras_mask",
    lambda tensor, mask: setattr(tensor, "_keras_mask", mask),
)


def masks_of(tensors: Any) -> Any:
    """Returns the nest of the masks that tensors carry, None without one."""
    return keras.tree.map_structure(_get_mask, tensors)


def attach_masks(tensors: Any, masks: Any) -> None:
    """Lets tensors carry the masks of a nest, where these are not None."""
    for x, mask in zip(keras.tree.flatten(tensors), keras.tree.flatten(masks)):
        if mask is not None:
            _set_mask(x, mask)


def torch_buffers(layer: keras.Layer) -> list[Any]:
    """Returns the buffers of the PyTorch modules inside a layer."""
    return [
        buffer
        for inner in layer._flatten_layers()
        if isinstance(inner, keras.layers.TorchModuleWrapper)
        for buffer in inner.module.buffers()
    ]


def calling_optimizer() -> Any:
    """Returns the optimizer of Keras that is running, or None."""
    for frame in _frames():
        found = frame.f_locals.get("self")
        if isinstance(found, keras.optimizers.Optimizer):
            return found
    return None


def training_optimizer() -> Any:
    """Returns the optimizer of the model that trains, or None."""
    for frame in _frames():
        if frame.f_code.co_name == "train_step":
            return getattr(frame.f_locals.get("self"), "optimizer", None)
    return None


def decays(optimizer: Any, variable: keras.Variable) -> bool:
    """Returns whether the weight decay of an optimizer is for a variable."""
    decay = getattr(optimizer, "weight_decay", None)
    return bool(decay) and optimizer._use_weight_decay(variable)


def scales_loss(optimizer: Any) -> bool:
    """Returns whether an optimizer, around another, scales the loss."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def scales_overwritten() -> bool:
    """Returns whether loss scaling changes what overwrites a variable.

    In the step that runs. Keras 3.5 divides it by the scale.
    """
    if hasattr(keras.optimizers.Optimizer, "_overwrite_variable_with_gradient"):
        return False
    return any(scales_loss(x.f_locals.get("self")) for x in _frames())


def mesh_of_rows(distribution: Any, rows: int) -> tuple[Any, tuple[str, ...]]:
    """Returns the device mesh and the axes that share the rows of a batch.

    Devices along a model axis would repeat the same work. They share the rows
    instead, if the number of rows can be divided by their number.
    """
    mesh = distribution.device_mesh.backend_mesh
    axes = (distribution.get_data_layout((rows,)).axes[0],)
    if rows % mesh.size == 0:
        axes = tuple(mesh.axis_names)
    return mesh, axes


class _RestoreModelState(contextlib.ContextDecorator):
    """Restores a model's weights when an error leaves a JAX step.

    Every public layer, loss, metric and function raises inside it. So it also
    lets the message and the type of an error of ours be. Keras would append
    the arguments of the call, so that the fix would not be in the last lines,
    and AutoGraph would make another error of it.

    While `fit`, `evaluate` and `predict` run on JAX, Keras empties the model
    and keeps the weights in a local variable, `state`. An exception loses
    that variable, and with it the trained model. Nothing else refers to the
    weights: the model's variables are empty, and the arguments of the step are
    tracers. So the variable is looked up on the stack.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            if _raised_in(trace).startswith("inbatch_neg."):
                error._keras_call_info_injected = True  # type: ignore
                error.ag_pass_through = True  # type: ignore
            _restore()


def _raised_in(trace: TracebackType | None) -> str:
    """Returns the name of the module in which an error was raised."""
    module = ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return module


# A decorator, and a context.
restore_model_state = _RestoreModelState()


@contextlib.contextmanager
def keep_weights(model: keras.Model) -> Iterator[None]:
    """Restores a model's weights when `predict` raises on JAX.

    For errors from Keras and from the data, which do not pass through
    `restore_model_state`.

    Raises:
        RuntimeError: if the weights are not in the model.
    """
    if not hasattr(model, "jax_state_sync"):  # on other backends
        yield
        return
    if any(is_taken_out(variable) for variable in model.variables):
        raise RuntimeError(
            f"`{model.name}` has no weights here: on this backend Keras has "
            "taken them out of the model that trains, for the epoch. Fix: "
            "evaluate in `on_epoch_end`, or call `model.jax_state_sync()` of "
            "the model that trains first."
        )
    before = [(v, v.value) for v in model.variables]
    if model.steps_per_execution > 1:
        # The first of several steps takes over the memory, and if the second
        # one fails, the result is lost. With a single step, Keras keeps it.
        before = [(v, keras.ops.copy(value)) for v, value in before]
    try:
        yield
    except BaseException:
        if not all(backend.has_value(value) for _, value in before):
            model.jax_state_sync()
        for variable, value in before:
            if is_taken_out(variable):
                variable.assign(value)
        model._jax_state = None
        model._jax_state_synced = True
        raise


def is_taken_out(variable: keras.Variable) -> bool:
    """Returns whether a JAX step has taken out the value of a weight."""
    return getattr(variable, "_value", variable) is None


# What a function of a model runs: `train_function` and so on.
_STEPS = {
    "fit": "train",
    "train_on_batch": "train",
    "evaluate": "test",
    "test_on_batch": "test",
    "predict": "predict",
    "predict_on_batch": "predict",
}

_VARIABLES_IN_STATE = {
    "train": ("trainable", "non_trainable", "optimizer", "metrics"),
    "test": ("trainable", "non_trainable", "metrics"),
    "predict": ("trainable", "non_trainable"),
}

# The module of `fit` and the others, and of the functions that they call.
_TRAINER = "keras.src.backend.jax.trainer"


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _restore() -> None:
    newest = None
    for frame in _frames():
        if frame.f_globals.get("__name__") != _TRAINER:
            continue
        state = frame.f_locals.get("state")
        # With `steps_per_execution`, the first of several steps takes over the
        # memory of the outer `state`, and an inner `state` is newer.
        if newest is None and _is_state(state):
            newest = state
        step = _STEPS.get(frame.f_code.co_name)
        if step:
            model = frame.f_locals["self"]
            # If it is synced, the model has its weights, maybe newer ones.
            if newest is not None and not model._jax_state_synced:
                _assign_in_a_thread(model, _VARIABLES_IN_STATE[step], newest)
            return


def _is_state(state: Any) -> bool:
    return isinstance(state, tuple) and all(
        backend.has_value(value) for value in keras.tree.flatten(state)
    )


def _assign_in_a_thread(
    model: keras.Model, names: Sequence[str], state: tuple[Any, ...]
) -> None:
    # The scope of the stateless step and the trace belong to the current
    # thread, so the weights are assigned in another one.
    with ThreadPoolExecutor(1) as executor:
        executor.submit(_assign, model, names, state).result()
    # Otherwise `fit` would assign the state of an earlier step at its end.
    model._jax_state = None
    model._jax_state_synced = True


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


class _TranslatedStep:
    """The compiled step of a model, with translated errors.

    Attributes:
        translations: The exceptions to raise instead of an error, by a part
            of its message.
    """

    def __init__(self, step: Callable[..., Any]) -> None:
        self.step = step
        self.translations: dict[str, Callable[[], Exception]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.step(*args, **kwargs)
        except Exception as error:
            message = str(error)
            for part, translated in self.translations.items():
                if part in message:
                    raise translated() from None
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)


def translate_step_error(
    part: str, translated: Callable[[], Exception]
) -> None:
    """Translates an error of the step that is being traced, from now on.

    An exception cannot leave a compiled step: a failed assertion raises the
    backend's own error. The model whose step is traced is looked up on the
    stack, and its step is wrapped. A call that is already running keeps its
    own error.

    Args:
        part: A text in the message of the error.
        translated: Makes the exception to raise instead.
    """
    for frame in _frames():
        kind = _STEPS.get(frame.f_code.co_name)
        model = frame.f_locals.get("self")
        if kind and isinstance(model, keras.Model):
            name = f"{kind}_function"
            step = getattr(model, name, None)
            if step is None:
                return
            if not isinstance(step, _TranslatedStep):
                step = _TranslatedStep(step)
                setattr(model, name, step)
            step.translations[part] = translated
            return

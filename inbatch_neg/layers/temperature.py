"""The temperature of a softmax layer: a number, a variable, or learned."""

import math
from typing import Any

import keras
from keras import ops

from inbatch_neg import keras_private
from inbatch_neg.arguments import check_positive_number
from inbatch_neg.types import Tensor

LEARNED = "learned"

# The scale is 1 / temperature. Radford et al. 2021 begin at 1 / 0.07 and
# clip at 100.
_INITIAL_LOG_SCALE = math.log(1.0 / 0.07)
_MAX_LOG_SCALE = math.log(100.0)


class Temperature:
    """The number that divides the scores.

    Args:
        layer: The layer, which tracks and saves the learned weight.
        value: A number above 0; a scalar `keras.Variable`; or `"learned"`, a
            weight that is stored as the logarithm of its inverse.
        dtype: Dtype of the learned weight, and of what a variable gives.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        value: float | str | keras.Variable,
        dtype: str,
    ) -> None:
        self._dtype = dtype
        self._number: float | None = None
        self._log_scale = None
        self.variable = None
        if isinstance(value, str) and value == LEARNED:
            self._log_scale = layer.add_weight(
                name="log_scale",
                shape=(),
                dtype=dtype,
                initializer=keras.initializers.Constant(_INITIAL_LOG_SCALE),
                constraint=_MaxLogScale(),
                autocast=False,  # also outside of a model
            )
        elif isinstance(value, keras.Variable):
            self.variable = _checked(value)
        else:
            self._number = _number(value)

    def __call__(self) -> float | Tensor:
        """Returns a float, or a scalar tensor that can change.

        A learned temperature is 0.01 or above. The limit is straight-through:
        a weight beyond it still has a gradient, and can return.
        """
        if self._number is not None:
            return self._number
        if self.variable is not None:
            return ops.cast(self.variable, self._dtype)
        log_scale = ops.convert_to_tensor(self._log_scale)
        beyond = ops.maximum(log_scale - _MAX_LOG_SCALE, 0)
        return ops.exp(ops.stop_gradient(beyond) - log_scale)

    def set(self, value: float) -> None:
        """Sets the variable, from the next step on."""
        value = _number(value)
        if self.variable is None:
            raise ValueError(
                "`temperature` cannot be set, since a compiled step would "
                "ignore it. Fix: construct the layer with "
                "`temperature=keras.Variable(0.2, trainable=False)`. "
                f"Received: temperature={value!r}"
            )
        if keras_private.is_taken_out(self.variable):
            raise RuntimeError(
                "`temperature` cannot be set here: Keras has taken the weights "
                "out of the model for the epoch. Fix: set it in "
                "`on_epoch_begin`, or call `model.jax_state_sync()` first. "
                f"Received: temperature={value!r}"
            )
        self.variable.assign(value)

    def get_config(self) -> float | str | dict[str, Any]:
        """Returns a form of the argument that `from_config` reads."""
        if self._log_scale is not None:
            return LEARNED
        return keras_private.variable_config(self._number or self.variable)


def _checked(variable: keras.Variable) -> keras.Variable:
    """Returns the variable; refuses one that is not a temperature."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if tuple(variable.shape) != () or "float" not in dtype:
        raise ValueError(
            "`temperature` must be a scalar float variable. Received: "
            f"temperature.shape={tuple(variable.shape)}, dtype={dtype}"
        )
    _number(float(ops.convert_to_numpy(variable)))
    return variable


def _number(value: Any) -> float:
    try:
        return check_positive_number("temperature", value)
    except TypeError as error:
        raise TypeError(
            f'{error}. Fix: pass `temperature="learned"` for a weight that '
            "trains, or a `keras.Variable` for one that you set."
        ) from None


class _MaxLogScale(keras.constraints.Constraint):
    """Keeps a learned temperature at 0.01 or above."""

    def __call__(self, value: Tensor) -> Tensor:
        return ops.minimum(value, _MAX_LOG_SCALE)

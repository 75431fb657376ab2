"""The temperature as a weight: the logarithm of its inverse."""

import math

import keras
from keras import ops

from inbatch_neg.backends import Tensor

LEARNED = "learned"

# The scale is 1 / temperature. Radford et al. 2021 begin at 1 / 0.07 and
# clip at 100.
INITIAL_LOG_SCALE = math.log(1.0 / 0.07)
MAX_LOG_SCALE = math.log(100.0)


class MaxLogScale(keras.constraints.Constraint):
    """Keeps the temperature at 0.01 or above."""

    def __call__(self, value: Tensor) -> Tensor:
        """Returns the clipped weight."""
        return ops.minimum(value, MAX_LOG_SCALE)


def from_log_scale(log_scale: Tensor) -> Tensor:
    """Returns the temperature, 0.01 or above, with a gradient everywhere.

    Straight through: a weight beyond the limit still has a gradient, and can
    come back.
    """
    log_scale = ops.convert_to_tensor(log_scale)
    beyond = ops.stop_gradient(ops.maximum(log_scale - MAX_LOG_SCALE, 0))
    return ops.exp(beyond - log_scale)

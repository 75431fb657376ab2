"""The table of a `SparseEmbedding`, and the state of its updates."""

import importlib
import math
import warnings
from typing import Any

import keras
from keras import ops

from inbatch_neg import keras_private
from inbatch_neg.backends import backend
from inbatch_neg.types import Tensor

# From this many numbers on, a copy of a table is worth a warning: 64 MB.
LARGE_TABLE = 2**24


class RowwiseAdagrad(keras.layers.Layer):
    """One accumulator for each row, and the numbers of the update.

    A layer of its own, so that the weights of the layer around it are those
    of `keras.layers.Embedding`.

    Args:
        rows: The number of rows.
        learning_rate: Number, or scalar `keras.Variable`.
        initial_accumulator: What the accumulators start with.
        epsilon: Is added to their square roots.
    """

    def __init__(
        self,
        rows: int,
        learning_rate: float | keras.Variable,
        initial_accumulator: float,
        epsilon: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rows = rows
        self.learning_rate = learning_rate
        self.initial_accumulator = initial_accumulator
        self.epsilon = epsilon

    def build(self, input_shape: Any = None) -> None:
        """Creates the accumulators."""
        # A plain variable is assigned by the table. Another kind is assigned by
        # the optimizer, which has to know it.
        kind = engine().Accumulators
        self.accumulators = kind(
            keras.initializers.Constant(self.initial_accumulator),
            shape=(self.rows,),
            # A sum of many small squares.
            dtype=keras.backend.result_type(self.variable_dtype, "float32"),
            trainable=kind is not keras.Variable,
            autocast=False,
            name="accumulators",
        )
        if not self.trainable:
            self.accumulators.trainable = False
        self.built = True

    def rate(self) -> Tensor:
        """Returns the learning rate of this step."""
        return ops.cast(self.learning_rate, self.accumulators.dtype)

    def load_own_variables(self, store: Any) -> None:
        """Loads the state, unless `keras.layers.Embedding` wrote the file."""
        if len(store.keys()):
            super().load_own_variables(store)


class Table(keras.Variable):
    """A weight that an optimizer passes its gradient, instead of a step.

    Args:
        adagrad: The state of the updates.
        **kwargs: Of `keras.Variable`.
    """

    def __init__(self, adagrad: RowwiseAdagrad, **kwargs: Any) -> None:
        self.adagrad = adagrad
        self._has_warned = False
        super().__init__(autocast=False, **kwargs)

    @property
    def overwrite_with_gradient(self) -> bool:
        """True; refuses an optimizer whose options do not reach the table.

        An optimizer asks for it before it does anything else.
        """
        optimizer = keras_private.calling_optimizer()
        if optimizer is not None:
            self.check_optimizer(optimizer)
        return True

    @keras_private.restore_model_state
    def check_optimizer(self, optimizer: Any) -> None:
        """Refuses an optimizer whose options do not reach the table."""
        _refuse_options(optimizer, self)

    def refuse_dense(self, gradient: Any) -> None:
        """Refuses a gradient of all rows, which would replace them."""
        if keras_private.calling_optimizer() is None:
            return
        with keras_private.restore_model_state:
            raise ValueError(
                f"{DENSE} Received: a gradient of shape "
                f"{tuple(gradient.shape)} for {self.path!r}"
            )

    def warn_of_copy(self, cause: str) -> None:
        """Warns once, of a large table."""
        if math.prod(self.shape) < LARGE_TABLE or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"{cause} copies the whole table {self.path!r} in every step. "
            "Fix: train in float32 or bfloat16, by `fit` with `jit_compile`.",
            stacklevel=2,
        )


DENSE = (
    "`SparseEmbedding.embeddings` has a gradient only through the layer's own "
    "call. Fix: look all rows up by their ids, or use "
    "`keras.layers.Embedding`, whose table other layers and losses can read."
)


def engine() -> Any:
    """Returns the module of the backend."""
    return importlib.import_module(f"{__package__}.{backend.name}")


_OPTIONS = (
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "gradient_accumulation_steps",
)


def _refuse_options(optimizer: Any, table: keras.Variable) -> None:
    for name in _OPTIONS:
        value = getattr(optimizer, name, None)
        if value:
            raise ValueError(
                f"`{name}` of the optimizer does not reach a "
                "`SparseEmbedding`, which updates its own rows. Fix: leave it "
                f"out, or use `keras.layers.Embedding`. Received: {name}="
                f"{value!r}"
            )
    if keras_private.decays(optimizer, table):
        raise ValueError(
            "`weight_decay` of the optimizer does not reach a "
            "`SparseEmbedding`. Fix: before training, call `optimizer."
            "exclude_from_weight_decay(var_names=['embeddings'])`. Received: "
            f"weight_decay={optimizer.weight_decay!r}"
        )
    if keras_private.scales_overwritten():
        raise ValueError(
            "`LossScaleOptimizer` of this version of Keras scales what "
            "replaces a `SparseEmbedding`. Fix: update Keras, or train in "
            f"float32 or bfloat16. Received: keras {keras.__version__}"
        )

"""The table of a `SparseEmbedding`, and the state of its updates.

The file of each backend has `Table`, which a step of an optimizer updates, the
kind of its `Accumulators`, and `lookup(table, ids)`.
"""

from typing import Any, NoReturn

import keras
from keras import ops

from inbatch_neg import keras_private
from inbatch_neg.arguments import check_positive_number, check_rank
from inbatch_neg.backends import engine
from inbatch_neg.types import Tensor


class RowwiseAdagrad(keras.layers.Layer):
    """One accumulator for each row, and the numbers of the update.

    A layer of its own, so that the weights of the layer around it are those
    of `keras.layers.Embedding`.

    Args:
        learning_rate: Number above 0, or scalar `keras.Variable`.
        initial_accumulator: What the accumulators start with.
        epsilon: Is added to their square roots.
    """

    def __init__(
        self,
        learning_rate: float | keras.Variable,
        initial_accumulator: float,
        epsilon: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(learning_rate, keras.Variable):
            check_rank("learning_rate", learning_rate, 0, "()")
        else:
            check_positive_number("learning_rate", learning_rate)
        self.learning_rate = learning_rate
        self.initial_accumulator = check_positive_number(
            "initial_accumulator", initial_accumulator
        )
        self.epsilon = check_positive_number("epsilon", epsilon)

    def build(self, input_shape: tuple[int]) -> None:
        """Creates the accumulators, in this shape."""
        # A plain variable is assigned by the table. Another kind is assigned by
        # the optimizer, which has to know it.
        kind = engine(__package__).Accumulators
        self.accumulators = kind(
            keras.initializers.Constant(self.initial_accumulator),
            shape=input_shape,
            # A sum of many small squares.
            dtype=keras.backend.result_type(self.variable_dtype, "float32"),
            trainable=kind is not keras.Variable,
            autocast=False,
            name="accumulators",
        )
        self.accumulators.trainable &= self.trainable
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
        for name in _OPTIONS:
            value = getattr(optimizer, name, None)
            if value:
                raise ValueError(
                    f"`{name}` of the optimizer does not reach a "
                    "`SparseEmbedding`, which updates its own rows. Fix: leave "
                    "it out, or use `keras.layers.Embedding`. Received: "
                    f"{name}={value!r}"
                )
        if keras_private.decays(optimizer, self):
            raise ValueError(
                "`weight_decay` of the optimizer does not reach a "
                "`SparseEmbedding`. Fix: before training, call `optimizer."
                "exclude_from_weight_decay(var_names=['embeddings'])`. "
                f"Received: weight_decay={optimizer.weight_decay!r}"
            )
        if keras_private.scales_overwritten():
            raise ValueError(
                "`LossScaleOptimizer` of this version of Keras scales what "
                "replaces a `SparseEmbedding`. Fix: update Keras, or train in "
                f"float32 or bfloat16. Received: keras {keras.__version__}"
            )

    @keras_private.restore_model_state
    def refuse_dense(self, gradient: Tensor) -> NoReturn:
        """Refuses a gradient of all rows, which would replace them."""
        raise ValueError(
            "`SparseEmbedding.embeddings` has a gradient only through the "
            "layer's own call. Fix: look all rows up by their ids, or use "
            "`keras.layers.Embedding`, whose table other layers and losses can "
            f"read. Received: a gradient of shape {tuple(gradient.shape)} for "
            f"{self.path!r}"
        )


_OPTIONS = (
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "gradient_accumulation_steps",
)

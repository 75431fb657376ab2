"""An embedding table that trains the rows of the batch alone."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops, tree

from inbatch_neg import keras_private
from inbatch_neg.arguments import check_flag, check_integer
from inbatch_neg.backends import backend, engine
from inbatch_neg.replicas.current import replicas
from inbatch_neg.sparse_embedding.table import RowwiseAdagrad
from inbatch_neg.types import Tensor


@keras.saving.register_keras_serializable(
    package="inbatch_neg", name="SparseEmbedding"
)
class SparseEmbedding(keras.layers.Layer):
    """An embedding whose training step costs what the batch costs.

    ```
    G_r    = sum of the gradients of row r over the batch
    acc_r <- acc_r + mean(G_r ** 2)
    row_r <- row_r - learning_rate * G_r / (sqrt(acc_r) + epsilon)
    ```

    In place of `keras.layers.Embedding` for a table of 100,000 rows and more,
    where the gradient of all rows and the optimizer's walk over them take
    longer than the rest of the step. Only rows in the batch change. The layer
    updates its table itself, by row-wise Adagrad, when the optimizer of `fit`
    or of your loop makes its step; the other weights train as before.

    The optimizer's learning rate, clipping, weight decay and moving average do
    not reach the table. Keras' optimizers with the last three, or with
    gradient accumulation, are refused; `exclude_from_weight_decay` lets
    `AdamW` train the other weights. PyTorch's own optimizers, if they have
    the table among their parameters, update it by the rule above.

    Args:
        input_dim: Integer of 1 or more, the number of rows: the largest id
            plus 1.
        output_dim: Integer of 1 or more, the length of a vector.
        embeddings_initializer: Initializer of the table. Defaults to
            `"uniform"`.
        learning_rate: Number above 0, or a scalar `keras.Variable` that does
            not train, which can be set between steps, in `fit` on JAX between
            epochs. Choose it by validation. Defaults to 0.05.
        initial_accumulator: Number above 0 that each accumulator starts with.
            Defaults to 0.1.
        epsilon: Number above 0. Defaults to 1e-7.
        mask_zero: Whether id 0 is padding, masked in the layers that follow.
            Defaults to False.

    Attributes:
        embeddings: The table, a variable (input_dim, output_dim).

    Raises:
        ValueError, TypeError: for an argument outside of the above; in the
            call, for ids that are not integers. In training, on JAX for a
            second call in a step; on PyTorch for a `LossScaleOptimizer` and
            for several processes; for a loss or layer that reads `embeddings`
            itself; for an optimizer whose options do not reach the table; in
            a `ChunkedTower`; in a `keras.distribution.ModelParallel`.

    Example:
    >>> import numpy as np
    >>> embedding = SparseEmbedding(1_000_000, 8)
    >>> item, history = np.array([3, 7]), np.array([[1, 2, 9], [4, 0, 0]])
    >>> vectors = embedding({"item": item, "history": history})
    >>> print(tuple(vectors["history"].shape))
    (2, 3, 8)

    References: Mudigere et al. 2022, "Software-hardware co-design for fast
    and scalable training of deep learning recommendation models" (arXiv
    2104.05158), which has row-wise Adagrad; Duchi et al. 2011, "Adaptive
    subgradient methods for online learning and stochastic optimization" (JMLR
    12).

    Differs from: `keras.layers.Embedding`, whose rows all change in each step
    of Adam; `keras_rs.layers.DistributedEmbedding`, which needs a TPU.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "uniform",
        *,
        learning_rate: float | keras.Variable = 0.05,
        initial_accumulator: float = 0.1,
        epsilon: float = 1e-7,
        mask_zero: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.input_dim = check_integer("input_dim", input_dim, minimum=1)
        self.output_dim = check_integer("output_dim", output_dim, minimum=1)
        self.embeddings_initializer = keras.initializers.get(
            embeddings_initializer
        )
        self.mask_zero = check_flag("mask_zero", mask_zero)
        self.supports_masking = mask_zero
        self._adagrad = RowwiseAdagrad(
            learning_rate,
            initial_accumulator,
            epsilon,
            dtype=self.dtype_policy,
            name="adagrad",
        )

    @keras_private.restore_model_state
    def build(self, input_shape: Any = None) -> None:
        """Creates the table and its accumulators."""
        distribution = keras.distribution.distribution()
        if isinstance(distribution, keras.distribution.ModelParallel):
            raise ValueError(
                "`SparseEmbedding` cannot be sharded. Fix: use "
                "`keras.distribution.DataParallel`, or "
                "`keras.layers.Embedding`. Received: a `ModelParallel` "
                "distribution"
            )
        self.embeddings = engine(__package__).Table(
            self._adagrad,
            initializer=self.embeddings_initializer,
            shape=(self.input_dim, self.output_dim),
            dtype=self.variable_dtype,
            name="embeddings",
        )
        # Not earlier, or Keras would not let it train with the layer later.
        self.embeddings.trainable = self.trainable
        self._adagrad.build((self.input_dim,))
        self.built = True

    @property
    def learning_rate(self) -> float | keras.Variable:
        """The learning rate of the table; assign a variable to change it."""
        return self._adagrad.learning_rate

    @keras_private.restore_model_state
    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the vectors of the ids.

        Args:
            inputs: Integers of any shape, or a nest (dict, list, tuple) of
                them; on JAX all ids of a step that train. Each in [0,
                input_dim). Another id trains no row. Its vector is NaN on
                JAX; on PyTorch, and on TensorFlow without XLA on a CPU, it is
                an error; under XLA, TensorFlow takes the nearest row.
            training: Whether the loss may be scaled, as `fit` does for a
                float16 policy. `fit` sets it. A loop of your own that scales
                the loss has to add `model.losses` to it.

        Returns:
            The same nest of (..., output_dim) vectors, in the compute dtype.
        """
        symbolic = keras_private.in_symbolic_call()
        if not (symbolic and replicas.averages_shapes_of_symbolic_calls()):
            tree.map_structure(_check_ids, inputs)
        leaves = [ops.convert_to_tensor(ids) for ids in tree.flatten(inputs)]
        # All in one lookup, since JAX cannot add up two. Narrow integers may
        # not hold the number of rows.
        dtypes = {keras.backend.standardize_dtype(ids.dtype) for ids in leaves}
        is_wide = dtypes & {"uint32", "int64", "uint64"}
        dtype = backend.widest_integer() if is_wide else "int32"
        ids = ops.concatenate(
            [ops.reshape(ops.cast(ids, dtype), (-1,)) for ids in leaves]
        )
        if symbolic:
            vectors = ops.zeros((ops.shape(ids)[0], self.output_dim))
        else:
            vectors = engine(__package__).lookup(self.embeddings, ids)
            if training:
                vectors, zero = backend.custom_gradient(_unscaled)(vectors)
                # Its gradient is the scale of the loss, whose dtype it needs.
                self.add_loss(ops.cast(zero, keras.config.floatx()))
        vectors = ops.cast(vectors, self.compute_dtype)
        results, end = [], 0
        for ids in leaves:
            shape = ops.shape(ids)
            start, end = end, end + math.prod(shape)
            own = vectors if len(leaves) == 1 else vectors[start:end]
            results.append(ops.reshape(own, (*shape, self.output_dim)))
        return tree.pack_sequence_as(inputs, results)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """Returns which ids are not 0, with `mask_zero`."""
        if not self.mask_zero:
            return None
        return tree.map_structure(lambda ids: ops.not_equal(ids, 0), inputs)

    def compute_output_spec(self, inputs: Any, **kwargs: Any) -> Any:
        """Returns the symbolic vectors."""

        def vectors(ids: keras.KerasTensor) -> keras.KerasTensor:
            _check_ids(ids)
            shape = (*ids.shape, self.output_dim)
            return keras.KerasTensor(shape, dtype=self.compute_dtype)

        return tree.map_structure(vectors, inputs)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "input_dim": self.input_dim,
            "output_dim": self.output_dim,
            "embeddings_initializer": keras.initializers.serialize(
                self.embeddings_initializer
            ),
            "learning_rate": keras_private.variable_config(self.learning_rate),
            "initial_accumulator": self._adagrad.initial_accumulator,
            "epsilon": self._adagrad.epsilon,
            "mask_zero": self.mask_zero,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SparseEmbedding":
        """Returns the layer, with a new learning rate variable."""
        rate = keras_private.variable_from_config(config["learning_rate"])
        return cls(**{**config, "learning_rate": rate})


def _unscaled(vectors: Tensor) -> tuple[tuple[Tensor, Tensor], Callable]:
    """Returns the vectors, whose gradient is not scaled, and a zero."""

    def gradient(*upstream: Tensor) -> list[Tensor]:
        d_vectors, scale = tree.flatten(upstream)
        scale = scale * replicas.count()  # by which Keras divides each loss
        return [d_vectors / ops.where(scale == 0.0, 1.0, scale)]

    return (ops.copy(vectors), ops.zeros((), vectors.dtype)), gradient


def _check_ids(ids: Any) -> None:
    dtype = keras.backend.standardize_dtype(getattr(ids, "dtype", type(ids)))
    if dtype not in backend.id_dtypes or dtype == "string":
        raise TypeError(
            "`inputs` must be integers, since floats of 32 bits merge ids "
            "above 2^24. Fix: `keras.Input(..., dtype='int32')`, in a "
            "`keras.Sequential` as its first layer, which else makes floats of "
            f"them. Received: dtype={dtype}"
        )


# By these names the files of models know it, in a list of layers for example:
# weights that `keras.layers.Embedding` wrote are found, and the other way
# round. The second one is for a file that is read before the class is known.
SparseEmbedding.__name__ = "Embedding"
Embedding = SparseEmbedding

"""A tower that processes its rows in chunks."""

from collections.abc import Iterator
from typing import Any

import keras
from keras import tree

from inbatch_neg import keras_private
from inbatch_neg.arguments import check_integer, refuse_keras_2
from inbatch_neg.backends import backend, engine
from inbatch_neg.chunked_tower.call import TowerCall, has_tensors
from inbatch_neg.types import Tensor


@keras.saving.register_keras_serializable(package="inbatch_neg")
class ChunkedTower(keras_private.NoNameScope, keras.layers.Layer):
    """Runs a tower with the activations of `chunk_size` rows in memory.

    ```
    outputs = concatenate(tower(inputs[0:c]), tower(inputs[c:2c]), ...)
    ```

    Outputs and gradients are those of `tower` on the whole batch. Only the
    outputs are kept; the backward pass runs the tower again, chunk by chunk.
    Use it when the activations of a tower, not the scores, limit the batch
    size: `item_vec = ChunkedTower(item_tower, chunk_size=256)(item_features)`.
    The layer may be called more than once, for example as a shared encoder.
    Other arguments of the tower are passed by keyword:
    `chunked(ids, attention_mask=attention_mask)`.

    The tower must treat each row independently. It keeps its weights and
    their paths, so `tower.save_weights`, `tower.export` and `tower(...)` work
    as they do without this layer.

    State is passed from chunk to chunk, in order. A random layer draws anew
    for each chunk, and draws the same when the chunk is run again.
    `BatchNormalization` uses the statistics of a chunk and updates its moving
    averages once per chunk. Random numbers must come from `keras.random` (or
    from `torch`, on PyTorch).

    Args:
        tower: A Keras layer or model. Its inputs, a tensor or a nest (dict,
            list, tuple), its outputs, and the tensors among its keyword
            arguments have one entry per row.
        chunk_size: Integer of 1 or more, the number of rows that are run at a
            time; with several devices, on each of them. The last chunk may be
            smaller. Defaults to 256.

    Raises:
        TypeError: for a `tower` that is not a Keras layer, a `chunk_size`
            that is not an integer, or a `dtype`, which belongs to the tower;
            in the call, for ragged or sparse inputs, a second positional
            argument, or a `mask` that the tower does not take.
        ValueError: for a `chunk_size` below 1; in the call, for tensors
            with another number of rows, and for a tower that calls
            `add_loss`, has an `activity_regularizer`, assigns a trainable
            weight or has a `SparseEmbedding`.

    Example:
    >>> import keras, numpy as np
    >>> tower = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> rows = np.random.default_rng(0).normal(size=(10, 3)).astype("float32")
    >>> chunked = ChunkedTower(tower, chunk_size=4)
    >>> bool(keras.ops.all(keras.ops.isclose(chunked(rows), tower(rows))))
    True

    References: Gao et al. 2021, "Scaling deep contrastive learning batch size
    under memory limited setup" (arXiv 2101.06983); Chen et al. 2016,
    "Training deep nets with sublinear memory cost" (arXiv 1604.06174).

    Differs from: `keras.RematScope`, which recomputes each layer on the whole
    batch; `CachedMultipleNegativesRankingLoss` of sentence-transformers, which
    has the tower inside the loss and runs on PyTorch only.
    """

    def __init__(
        self, tower: keras.Layer, chunk_size: int = 256, **kwargs: Any
    ) -> None:
        refuse_keras_2("tower", tower)
        if not isinstance(tower, keras.Layer):
            raise TypeError(
                "`tower` must be a Keras layer or model. "
                f"Received: tower={tower!r}"
            )
        if "dtype" in kwargs:
            raise TypeError(
                "`dtype` must be passed to the tower: this layer itself "
                f"computes nothing. Received: dtype={kwargs['dtype']!r}"
            )
        # The tower casts its inputs and weights by its own policy.
        super().__init__(autocast=False, dtype="float32", **kwargs)
        self.tower = tower
        self.chunk_size = check_integer("chunk_size", chunk_size, minimum=1)
        self.supports_masking = True
        self._call_arguments = keras_private.CallArguments(tower)
        self._call_arguments.describe(self)
        self._has_recorded_mask = False
        if tower.built:
            keras_private.set_built(self, ChunkedTower)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses arguments that would not reach the tower as they are."""
        self._refuse_arguments(args, kwargs)
        return super().__call__(*args, **kwargs)

    @keras_private.restore_model_state
    def call(
        self,
        inputs: Any,
        *,
        mask: Any = None,
        training: bool | None = None,
        **keywords: Any,
    ) -> Any:
        """Returns the outputs of the tower.

        Args:
            inputs: Nest of tensors (B, ...), as the tower takes it.
            mask: Nest of the masks of `inputs`, if the `call` of the tower
                takes it. Masks that are attached to tensors stay attached.
            training: Passed to the tower.
            **keywords: The other arguments of the `call` of the tower. Nests
                of tensors (B, ...) are cut with the rows; anything else is
                passed as it is.
        """
        keywords = self._call_arguments.unpacked(keywords)
        self._check_rows({"inputs": inputs, "mask": mask, **keywords})
        if mask is not None and self._call_arguments.takes("mask"):
            keywords["mask"] = mask
        elif mask is not None:  # the attached one
            keras_private.attach_masks(inputs, mask)
        call = TowerCall(self.tower, inputs, training, keywords)
        if keras_private.in_symbolic_call():
            outputs = call((), call.rows)[0]
            call.refuse_overwritten_weights()
            return call.pack(outputs)
        if not self.tower.built:
            # As in inference, where one row changes no moving average.
            first = TowerCall(self.tower, inputs, False, keywords)
            first((), [x[:1] for x in first.rows])
        call.refuse_overwritten_weights()
        outputs, state = engine(__package__).run_in_chunks(
            call, self.chunk_size
        )
        with backend.after(call.rows):
            for variable, value in state:
                variable.assign(value)
        return call.pack(outputs)

    def compute_output_spec(self, inputs: Any, **keywords: Any) -> Any:
        """Returns the symbolic outputs."""
        rows = self._check_rows({"inputs": inputs, **keywords})
        if not _is_empty(keywords.get("mask")):
            self._has_recorded_mask = True
        size = self.chunk_size if rows is None else min(rows, self.chunk_size)

        def chunk(x: Any) -> Any:
            if not has_tensors(x):
                return x
            dtype = keras.backend.standardize_dtype(x.dtype)
            return keras.KerasTensor((size, *x.shape[1:]), dtype=dtype)

        # With a known number of rows, to detect outputs with another number.
        # Not that of `Layer`, which would ask `compute_output_shape`.
        inputs, keywords = tree.map_structure(chunk, (inputs, keywords))
        outputs = keras.Operation.compute_output_spec(self, inputs, **keywords)
        return tree.map_structure(
            lambda x: keras.KerasTensor((rows, *x.shape[1:]), dtype=x.dtype),
            outputs,
        )

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns that of the tower, for `TimeDistributed` and the like."""
        return self.tower.compute_output_shape(input_shape)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Returns None: the outputs already carry the masks of the tower."""
        return None

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        config = super().get_config()
        del config["dtype"]
        tower = keras.saving.serialize_keras_object(self.tower)
        # If two such layers share a tower, Keras would only mark it as shared
        # in the second one, and load two towers.
        tower["shared_object_id"] = id(self.tower)
        config.update(tower=tower, chunk_size=self.chunk_size)
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> "ChunkedTower":
        """Returns the layer, with a new tower.

        Layers that share a tower still do after `load_model` and
        `clone_model`.
        """
        saved = config["tower"]
        tower = keras_private.shared_object(
            saved.get("shared_object_id"),
            lambda: keras.saving.deserialize_keras_object(
                saved, custom_objects=custom_objects
            ),
        )
        return cls(**{**config, "tower": tower})

    @keras_private.restore_model_state
    def _refuse_arguments(self, args: Any, kwargs: Any) -> None:
        of_tower = self._call_arguments
        names = ", ".join(of_tower.names) or "no other argument"
        received = f"tower={self.tower.name!r}, whose `call` takes {names}"
        if len(args) > 1:
            raise TypeError(
                "`inputs` must be the only positional argument. Fix: pass the "
                "others by their names in the `call` of the tower. Received: "
                f"{len(args)} positional arguments for {received}"
            )
        if of_tower.takes("mask") or _is_empty(kwargs.get("mask")):
            return
        # Keras itself passes the mask that is attached to the inputs, also in
        # a functional model, where an old Keras has lost the attached one.
        inputs = args[0] if args else kwargs.get("inputs")
        if not self._has_recorded_mask and _is_empty(
            keras_private.masks_of(inputs)
        ):
            raise TypeError(
                "`mask` must be an argument of the tower's `call`. Fix: pass "
                f"it by its name there. Received: mask for {received}"
            )

    def _check_rows(self, arguments: dict[str, Any]) -> int | None:
        """Returns the number of rows, None if unknown; refuses bad ones."""
        known = {}
        tensors = [
            (argument, name, x)
            for argument, nest in arguments.items()
            if argument == "inputs" or has_tensors(nest)
            for name, x in _named(argument, nest)
        ]
        for argument, name, x in tensors:
            received = f"Received: {name} of shape {tuple(x.shape)}"
            is_symbolic = keras.backend.is_keras_tensor(x)
            if is_symbolic:
                dense = not (x.sparse or getattr(x, "ragged", False))
            else:
                dense = engine(__package__).is_dense(x)
            if not dense:
                raise TypeError(
                    f"`{argument}` must be dense tensors, which can be split "
                    "by rows. Fix: pad ragged ones, or make them dense. "
                    f"Received: {name}, which is sparse or ragged"
                )
            if len(x.shape) == 0:
                raise ValueError(
                    f"`{argument}` must have one entry per row. {received}"
                )
            if isinstance(x.shape[0], int):
                known[name] = x.shape[0]
        if len(set(known.values())) > 1:
            raise ValueError(
                "`inputs` and the tensors among the keyword arguments must "
                "have the same number of rows. Received: "
                + ", ".join(f"{k}: {v} rows" for k, v in known.items())
            )
        return next(iter(known.values()), None)


def _is_empty(masks: Any) -> bool:
    return all(x is None for x in tree.flatten(masks))


def _named(name: str, nest: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields the names and the tensors of a nest."""
    if isinstance(nest, dict):
        nest = nest.items()
    elif isinstance(nest, (list, tuple)):
        nest = enumerate(nest)
    else:
        if nest is not None:
            yield name, nest
        return
    for key, value in nest:
        yield from _named(f"{name}[{key!r}]", value)

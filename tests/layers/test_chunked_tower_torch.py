"""Towers of PyTorch modules in chunks: the leaves of autograd in them."""

import keras
import numpy as np
import pytest
from keras import layers

from inbatch_neg import ChunkedTower
from tests.helpers import assert_close, to_numpy

pytestmark = pytest.mark.backends("torch")


def adapted(kind, reentrant=False, foreign=None):
    """Returns a module with frozen lower layers and a low-rank adapter.

    Args:
        kind: How its activations get to need a gradient: "hook", as PEFT's
            `enable_input_require_grads()`; "detached"; "kept", which also
            keeps them in the module; "trained", from trained words; or
            "none".
        reentrant: Whether its checkpoint is of the older kind.
        foreign: A tensor that is no parameter of the module, or None.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    class Adapted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(11, 4)
            self.base = torch.nn.Linear(4, 4)
            for parameter in self.parameters():
                parameter.requires_grad = False
            self.words.weight.requires_grad = kind == "trained"
            self.down = torch.nn.Linear(4, 2, bias=False)
            self.up = torch.nn.Linear(2, 4, bias=False)
            self.scale = lambda: foreign
            if kind == "hook":
                self.words.register_forward_hook(
                    lambda module, args, output: output.requires_grad_(True)
                )

        def upper(self, x):
            return torch.tanh(self.base(x) + self.up(self.down(x)))

        def forward(self, ids):
            x = self.words(ids)
            if kind in ("detached", "kept"):
                x = x.detach().requires_grad_()
            if kind == "kept":
                self.last = x
            x = checkpoint(self.upper, x, use_reentrant=reentrant)
            x = self.upper(x).mean(1)
            return x if foreign is None else x * foreign

    torch.manual_seed(0)
    return Adapted()


# Kinds, and whether their checkpoint is reentrant: that needs a gradient.
CASES = [
    ("none", False),
    *((k, r) for k in ("hook", "detached", "kept") for r in (False, True)),
    ("trained", True),
]


def gradients(tower, ids):
    """Returns the gradients of the weights, added up over two steps."""
    for _ in range(2):
        outputs = tower(ids, training=True)
        weights = np.cos(np.arange(outputs.numel())).reshape(outputs.shape)
        weights = keras.ops.convert_to_tensor(weights, outputs.dtype)
        keras.ops.sum(outputs * weights).backward()
    return [to_numpy(v.value.grad) for v in tower.trainable_variables]


@pytest.mark.parametrize("kind, reentrant", CASES)
@pytest.mark.parametrize("rows", [3, 8, 10])
def test_leaves_made_in_the_run_are_no_weights(kind, reentrant, rows):
    ids = np.random.default_rng(0).integers(0, 11, (rows, 3)).astype("int32")
    expected, found = (
        gradients(wrap(layers.TorchModuleWrapper(adapted(kind, again))), ids)
        for wrap, again in (
            (lambda tower: tower, False),
            (lambda tower: ChunkedTower(tower, 4), reentrant),
        )
    )
    assert len(expected) == len(found) == (3 if kind == "trained" else 2)
    for one, other in zip(expected, found):
        assert np.abs(one).max() > 1e-3
        assert_close(other, one, 1e-5)


class Shared(keras.Model):
    """Calls one tower for queries and for items."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def call(self, inputs):
        return self.tower(inputs["query"]) - self.tower(inputs["item"])


@pytest.mark.parametrize("kind, reentrant", CASES)
def test_training(kind, reentrant):
    rng = np.random.default_rng(0)
    data = {
        side: rng.integers(0, 11, (20, 3)).astype("int32")
        for side in ("query", "item")
    }
    found = []
    for wrap in (lambda tower: tower, lambda tower: ChunkedTower(tower, 4)):
        module = layers.TorchModuleWrapper(adapted(kind, reentrant))
        model = Shared(wrap(module))
        model.compile(keras.optimizers.SGD(0.5), "mse")
        y = np.ones((20, 4))
        model.fit(data, y, batch_size=10, shuffle=False, verbose=0)
        found.append(model.get_weights())
    for one, other in zip(*found):
        assert_close(other, one, 1e-5)


@pytest.mark.parametrize("kind, reentrant", CASES)
def test_weights_of_others_get_their_gradients(kind, reentrant):
    import torch

    ids = np.random.default_rng(0).integers(0, 11, (10, 3)).astype("int32")
    found = []
    for wrap in (lambda tower: tower, lambda tower: ChunkedTower(tower, 4)):
        foreign = torch.ones(4, device=keras.ops.ones(1).device)
        foreign.requires_grad_()
        module = adapted(kind, reentrant, foreign)
        own = gradients(wrap(layers.TorchModuleWrapper(module)), ids)
        found.append([to_numpy(foreign.grad), *own])
    assert np.abs(found[0][0]).max() > 1e-3
    for one, other in zip(*found):
        assert_close(other, one, 1e-5)


@pytest.mark.parametrize("rows, runs", [(3, 1), (4, 1), (10, 6)])
def test_a_batch_of_one_chunk_is_run_once(rows, runs):
    class Counted(layers.Dense):
        calls = 0

        def call(self, x):
            self.calls += 1
            return super().call(x)

    tower = Counted(2)
    tower.build((None, 3))
    found = ChunkedTower(tower, 4)(keras.ops.ones((rows, 3)), training=True)
    keras.ops.sum(found).backward()
    assert tower.calls == runs

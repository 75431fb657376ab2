"""The examples of the docstrings run."""

import doctest
import importlib
import pkgutil

import keras
import pytest

import inbatch_neg

MODULES = [
    module.name
    for module in pkgutil.walk_packages(inbatch_neg.__path__, "inbatch_neg.")
    # These import what is not installed everywhere, and have no examples.
    if module.name.rpartition(".")[2]
    not in ("grain", "jax", "tensorflow", "torch")
    and "tensorflow_" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert not failed


def test_the_layers_are_among_them():
    assert "inbatch_neg.layers.cross_batch_memory" in MODULES


def test_every_public_name_has_an_example():
    for name in inbatch_neg.__all__:
        thing = getattr(inbatch_neg, name)
        if name not in ("ops", "PartialBatchError"):
            assert ">>> " in thing.__doc__, name
        if isinstance(thing, type) and issubclass(thing, keras.metrics.Metric):
            assert "model.compile(" in thing.__doc__, name

"""Weights that exist from the constructor count before the first call."""

import copy

import keras
import numpy as np
import pytest

from inbatch_neg import (
    ChunkedTower,
    CrossBatchMemory,
    InBatchNegativeSoftmax,
    StreamingSamplingProbability,
)
from tests.helpers import assert_all_equal, assert_close, to_numpy

ROWS = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
IDS = np.arange(4, dtype="int32")


def tower():
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(3, name="dense"),
            keras.layers.Dropout(0.5, seed=1),
        ],
        name="tower",
    )


def variable(trainable=True):
    return keras.Variable(0.5, trainable=trainable, name="mine")


# Each with what it is called with.
LAYERS = {
    "number": (lambda: InBatchNegativeSoftmax(temperature=0.5), (ROWS, ROWS)),
    "learned": (
        lambda: InBatchNegativeSoftmax(temperature="learned", name="softmax"),
        (ROWS, ROWS),
    ),
    "variable": (
        lambda: InBatchNegativeSoftmax(temperature=variable(), name="softmax"),
        (ROWS, ROWS),
    ),
    "variable to set": (
        lambda: InBatchNegativeSoftmax(
            temperature=variable(trainable=False), name="softmax"
        ),
        (ROWS, ROWS),
    ),
    "rotation": (
        lambda: InBatchNegativeSoftmax(2, seed=3, name="softmax"),
        (ROWS, ROWS),
    ),
    "estimate": (
        lambda: StreamingSamplingProbability(5, num_hashes=2, name="estimate"),
        (IDS,),
    ),
    "chunked": (lambda: ChunkedTower(tower(), 3, name="chunked"), (ROWS,)),
    "chunked twice": (
        lambda: ChunkedTower(ChunkedTower(tower(), 2), 3, name="chunked"),
        (ROWS,),
    ),
}


@pytest.fixture(params=LAYERS)
def made(request):
    make, arguments = LAYERS[request.param]
    return make, arguments


def test_the_layer_is_built_and_the_first_call_changes_no_weight(made):
    make, arguments = made
    layer = make()
    assert layer.built
    before = [(v, v.path) for v in layer.variables]
    layer(*arguments, training=True)
    after = [(v, v.path) for v in layer.variables]
    assert len(before) == len(after)
    for one, other in zip(before, after):
        assert one[0] is other[0]
        assert one[1] == other[1]


def test_paths_of_the_weights():
    paths = {
        name: [v.path for v in LAYERS[name][0]().weights]
        for name in ("learned", "variable", "rotation", "estimate", "chunked")
    }
    assert paths == {
        "learned": ["softmax/log_scale"],
        "variable": ["mine"],
        "rotation": [],
        "estimate": [
            f"estimate/{name}"
            for name in ("clock", "last", "interval", "weight")
        ],
        "chunked": ["tower/dense/kernel", "tower/dense/bias"],
    }


class Owner(keras.Model):
    """A model that Keras has not built yet."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.built = True

    def call(self, arguments, training=None):
        return self.layer(*arguments, training=training)


def test_weights_are_loaded_before_the_first_call(made, tmp_path):
    make, arguments = made
    first, second = Owner(make()), Owner(make())
    for _ in range(2):
        first(arguments, training=True)
    first.save_weights(tmp_path / "layer.weights.h5")
    second.load_weights(tmp_path / "layer.weights.h5")
    assert_all_equal(second.get_weights(), first.get_weights())


def test_configs_and_calls_of_build(made):
    make, arguments = made
    layer = make()
    again = type(layer).from_config(layer.get_config())
    again.build_from_config({"input_shape": (None, 3)})  # of a saved model
    again.build((None, 3))  # as in a loop of one's own
    names = [v.name for v in layer.variables]
    assert [v.name for v in again.variables] == names
    again(*arguments, training=True)
    assert [v.name for v in again.variables] == names


def test_what_depends_on_the_batch_waits_for_it():
    unbuilt = keras.layers.Dense(2)
    assert not ChunkedTower(unbuilt).built
    memory = CrossBatchMemory(8)
    assert not memory.built
    memory.build((None, 3), candidate_ids_shape=(None,))
    before = [v.path for v in memory.variables]
    memory(ROWS, candidate_ids=IDS, training=True)
    assert [v.path for v in memory.variables] == before


class OwnBuild(InBatchNegativeSoftmax):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bias = self.add_weight(name="bias", shape=(), initializer="ones")

    def build(self, input_shape):
        super().build(input_shape)
        self.scale = self.add_weight(
            name="scale", shape=(input_shape[-1],), initializer="ones"
        )

    def call(self, query, candidate):
        return super().call(query * self.scale, candidate) + self.bias


class OwnWeight(StreamingSamplingProbability):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.power = self.add_weight(name="power", shape=(), initializer="ones")
        self.dense = keras.layers.Dense(1)

    def call(self, candidate_ids, training=None):
        estimate = super().call(candidate_ids, training) ** self.power
        return self.dense(estimate[:, None])


def test_a_subclass_with_weights_and_a_build_of_its_own():
    layer = OwnBuild(temperature="learned")
    assert not layer.built
    layer(ROWS, ROWS)
    assert [v.name for v in layer.weights] == ["log_scale", "bias", "scale"]
    layer = OwnWeight(8)
    layer(IDS, training=True)
    assert len(layer.weights) == 7


# In a plain module of PyTorch.


def module_of(**layers):
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

    return Module()


def in_torch(arguments):
    import torch

    return [torch.as_tensor(x) for x in arguments]


@pytest.mark.backends("torch")
def test_the_keys_and_the_parameters_are_there_from_the_start(made):
    make, arguments = made
    module = module_of(layer=make())
    before = dict(module.named_parameters())
    keys = list(module.state_dict())
    assert len(before) == len({id(v) for v in module.layer.variables})
    module.layer(*in_torch(arguments), training=True)
    assert list(module.state_dict()) == keys
    after = dict(module.named_parameters())
    assert list(after) == list(before)
    for name, parameter in before.items():
        assert after[name] is parameter
    trainable = {id(v.value) for v in module.layer.trainable_variables}
    needs = {id(p) for p in before.values() if p.requires_grad}
    assert needs == trainable
    assert list(module.buffers()) == []


@pytest.mark.backends("torch")
def test_the_state_goes_into_a_module_that_was_never_called(made):
    make, arguments = made
    first, second = (module_of(layer=make()) for _ in range(2))
    keys = [  # the generators of random numbers are numbered in a process
        [key for key in module.state_dict() if "seed_generator" not in key]
        for module in (first, second)
    ]
    assert keys[0] == keys[1]
    assert len(first.state_dict()) == len(second.state_dict())
    for _ in range(3):
        first.layer(*in_torch(arguments), training=True)
    state = dict(zip(second.state_dict(), first.state_dict().values()))
    assert second.load_state_dict(state, strict=True)
    one, other = (
        to_numpy(module.layer(*in_torch(arguments), training=True))
        for module in (first, second)
    )
    assert_all_equal([one], [other])


@pytest.mark.backends("torch")
@pytest.mark.parametrize("name", ["learned", "variable"])
def test_an_optimizer_from_before_the_first_batch_trains_the_temperature(name):
    import torch

    found = []
    for called_before in (True, False):
        module = module_of(softmax=LAYERS[name][0]())
        rows = torch.as_tensor(ROWS)
        if called_before:
            module.softmax(rows, rows)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        start = float(to_numpy(module.softmax.temperature))
        for _ in range(2):
            optimizer.zero_grad()
            module.softmax(rows, rows, training=True).sum().backward()
            optimizer.step()
        found.append(float(to_numpy(module.softmax.temperature)))
        assert found[-1] != start
    assert found[0] == found[1]


@pytest.mark.backends("torch")
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_keras_layer_around_it_keeps_the_parameter(policy):
    import torch

    class Outer(keras.layers.Layer):
        def __init__(self, softmax, **kwargs):
            super().__init__(**kwargs)
            self.softmax = softmax

        def call(self, rows):
            return self.softmax(rows, rows)

    own = variable()
    module = module_of(
        outer=Outer(InBatchNegativeSoftmax(temperature=own), dtype=policy)
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.outer(torch.as_tensor(ROWS)).sum().backward()
    optimizer.step()
    assert float(to_numpy(own)) != 0.5
    assert any(p is own.value for p in module.outer.softmax.parameters())


@pytest.mark.backends("torch")
def test_moved_and_cast_as_other_modules(made):
    import torch

    make, arguments = made
    module = module_of(layer=make(), linear=torch.nn.Linear(3, 3))
    expected = to_numpy(module.layer(*in_torch(arguments)))
    module = module_of(layer=make(), linear=torch.nn.Linear(3, 3))
    state = [to_numpy(v) for v in module.layer.variables]
    before = list(module.parameters())
    assert module.to("cpu").train().eval() is module
    assert all(p is q for p, q in zip(before, module.parameters()))
    assert_all_equal([to_numpy(v) for v in module.layer.variables], state)
    if not module.layer.trainable_weights:
        found = to_numpy(module.layer(*in_torch(arguments)))
        assert_all_equal([found], [expected])
    module.requires_grad_(False)
    assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.backends("torch")
def test_copied(made):
    make, arguments = made
    module = module_of(layer=make())
    copied = copy.deepcopy(module)
    assert len(list(copied.parameters())) == len(list(module.parameters()))
    assert all(
        one is not other
        for one, other in zip(module.parameters(), copied.parameters())
    )
    one, other = (
        to_numpy(m.layer(*in_torch(arguments))) for m in (module, copied)
    )
    assert_close(one, other, 1e-6)

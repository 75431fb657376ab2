"""Files: of this layer, of `keras.layers.Embedding`, and exports."""

import keras
import numpy as np
import pytest

import inbatch_neg
from tests.helpers import BACKEND, assert_all_equal, to_numpy, weights_of
from tests.sparse_embedding import test_exact as exact


def test_training_goes_on_as_if_uninterrupted(tmp_path):
    rate = keras.Variable(0.3, trainable=False)
    model, layer = exact.model_of(epsilon=0.1, learning_rate=rate)
    model.compile(keras.optimizers.Adam(), "mse")
    rows = 2 * exact.BATCH
    inputs = {k: v[:rows] for k, v in exact.DATA.items()}
    data = {"x": inputs, "y": exact.TARGET[:rows], "batch_size": exact.BATCH}
    model.fit(**data, shuffle=False, verbose=0)
    rate.assign(0.1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    (copy,) = (x for x in loaded.layers if x.name == layer.name)
    assert isinstance(copy, inbatch_neg.SparseEmbedding)
    assert float(copy.learning_rate.numpy()) == np.float32(0.1)
    assert {**copy.get_config(), "learning_rate": 0} == {
        **layer.get_config(),
        "learning_rate": 0,
    }
    for one in (model, loaded):
        one.fit(**data, shuffle=False, verbose=0)
    assert_all_equal(weights_of(loaded), weights_of(model))
    assert_all_equal(
        [to_numpy(v) for v in loaded.optimizer.variables],
        [to_numpy(v) for v in model.optimizer.variables],
    )


def in_a_model(make, kind):
    """Returns a model of two layers: in a list, or functional."""
    if kind == "functional":
        ids = keras.Input((), dtype="int32")
        return keras.Model(ids, keras.layers.add([make()(ids), make()(ids)]))

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = make()
            self.others = [make()]

        def call(self, ids):
            return self.first(ids) + self.others[0](ids)

    model = Model()
    model(np.arange(3, dtype="int32"))
    return model


@pytest.mark.parametrize("kind", ["functional", "subclassed"])
def test_weights_of_keras_embedding_and_the_other_way_round(kind, tmp_path):
    path = str(tmp_path / "model.weights.h5")
    ids = np.arange(9, dtype="int32")

    def makers(seed):
        initializer = keras.initializers.RandomUniform(seed=seed)
        for kind in (inbatch_neg.SparseEmbedding, keras.layers.Embedding):
            yield lambda kind=kind: kind(9, 4, initializer)

    for here, there in (makers(1), reversed(list(makers(2)))):
        written, read = in_a_model(here, kind), in_a_model(there, kind)
        before = to_numpy(written(ids))
        for weight in read.weights:
            if weight.name == "embeddings":
                weight.assign(np.zeros(weight.shape))
        written.save_weights(path)
        read.load_weights(path)
        assert_all_equal([to_numpy(read(ids))], [before])
    accumulators = [w for w in read.weights if w.name == "accumulators"]
    for weight in accumulators:
        assert np.all(to_numpy(weight) == np.float32(0.1))


@pytest.mark.keras_at_least("3.15")
def test_an_exported_tower(tmp_path):
    model, layer = exact.model_of()
    ids = keras.Input((), dtype="int32")
    tower = keras.Model(ids, layer(ids))
    path, rows = str(tmp_path / "tower.pt2"), np.arange(8, dtype="int32")
    if BACKEND == "torch":
        import torch

        spec = keras.InputSpec(shape=(8,), dtype="int32")
        tower.export(path, format="torch", input_signature=[spec])
        exported = torch.export.load(path).module()
        found = exported(torch.as_tensor(rows))
    else:
        import tensorflow as tf

        tower.export(path, verbose=False)
        exported = tf.saved_model.load(path)
        found = exported.serve(rows)
    assert_all_equal([to_numpy(found)], [to_numpy(tower(rows))])


def test_masks_of_padding():
    layer = inbatch_neg.SparseEmbedding(9, 4, mask_zero=True)
    ids = {"a": np.array([0, 1]), "b": np.array([[0, 2], [3, 0]])}
    vectors = layer(ids)
    for name, value in ids.items():
        mask = to_numpy(vectors[name]._keras_mask)
        assert np.array_equal(mask, value != 0)

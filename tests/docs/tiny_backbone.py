"""Stands for KerasHub, which is too large to be installed for the tests."""

import sys
import types

import keras
from keras import layers


@keras.saving.register_keras_serializable(package="tiny_backbone")
class Backbone(layers.Layer):
    """Takes and returns what a `BertBackbone` does; its weights are random."""

    rank = 0  # of LoRA

    def build(self, shape):
        lora = self.rank > 0
        self.table = self.add_weight(
            shape=(200, 8), trainable=not lora, name="table"
        )
        if lora:
            self.down = self.add_weight(shape=(200, self.rank), name="down")
            self.up = self.add_weight(
                shape=(self.rank, 8), initializer="zeros", name="up"
            )

    def enable_lora(self, rank):
        self.rank = rank

    def call(self, inputs):
        assert set(inputs) == {"token_ids", "segment_ids", "padding_mask"}
        table = self.table
        if self.rank:
            table = table + self.down @ self.up
        states = keras.ops.take(table, inputs["token_ids"], axis=0)
        return {"sequence_output": states}

    def compute_output_spec(self, inputs):
        shape = (*inputs["token_ids"].shape, 8)
        return {"sequence_output": keras.KerasTensor(shape)}


def install(monkeypatch):
    """Puts it in the place of `keras_hub`; returns the folders it is asked."""
    folders = []

    def from_preset(folder):
        folders.append(folder)
        return Backbone()

    backbone = types.SimpleNamespace(from_preset=from_preset)
    models = types.SimpleNamespace(BertBackbone=backbone)
    stand_in = types.SimpleNamespace(models=models)
    monkeypatch.setitem(sys.modules, "keras_hub", stand_in)
    return folders


def write_tokenizer(path, words):
    """Writes the `tokenizer.json` of some words; [PAD] is 0, [UNK] is 1."""
    import tokenizers

    known = {word: n for n, word in enumerate(["[PAD]", "[UNK]", *words])}
    model = tokenizers.models.WordLevel(known, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    # As in the published file, which pads to a length of its own.
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(path))

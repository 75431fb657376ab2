"""`shard`: several processes share the rows; here, one after the other."""

import functools
import json
import logging

import numpy as np
import pytest
import tensorflow as tf
import torch
from torch.utils import data as torch_data

from inbatch_neg import full_batches
from inbatch_neg.data import options
from inbatch_neg.replicas.current import replicas
from tests.data import reading
from tests.data.reading import BACKEND, column, epoch
from tests.data.test_first_epoch import ROWS, SOURCES, Batches, function

# Besides: what `first_epoch` does not apply to.
OTHERS = {
    "tf.data": lambda folder: tf.data.Dataset.from_tensor_slices(ROWS),
    "tf.data batches": lambda folder: OTHERS["tf.data"](folder).batch(3),
    "unknown size": lambda folder: OTHERS["tf.data"](folder).filter(
        lambda row: True
    ),
    "iterator": lambda folder: function(),
}
ALL = {**SOURCES, **OTHERS}
BATCHED = ("PyDataset", "function", "tf.data batches", "iterator")


def shards(kind, folder, count, size, **arguments):
    """Returns the datasets of all processes."""
    return [
        full_batches(
            ALL[kind](folder),
            size,
            batched=kind in BATCHED,
            shard=(index, count),
            **arguments,
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", ALL)
def test_each_row_once(kind, shuffle, tmp_path):
    datasets = shards(kind, tmp_path, 3, 3, shuffle=shuffle, seed=1)
    epochs = []
    for _ in range(1 if kind == "iterator" else 2):
        parts = [epoch(dataset) for dataset in datasets]
        if BACKEND == "tensorflow":
            reading.assert_static(datasets[0], 3)
        found = [column(part, "user") for part in parts]
        # The PyDataset has five batches of four rows: one for each process.
        batches = 1 if kind == "PyDataset" else 2
        assert [len(part) for part in found] == [3 * batches] * 3
        for part in parts:
            users, items = column(part, "user"), column(part, "item")
            np.testing.assert_array_equal(items, 19 - users)
        rows = np.concatenate(found).tolist()
        assert len(set(rows)) == len(rows)
        epochs.append(rows)
    if shuffle and kind != "iterator":
        assert epochs[0] != epochs[1]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", ["arrays", "parquet", "torch"])
def test_the_global_batch_is_that_of_one_process(kind, shuffle, tmp_path):
    arguments = {"shuffle": shuffle, "seed": 1}
    (whole,) = shards(kind, tmp_path, 1, 6, **arguments)
    whole = [batch["user"] for batch in map(_x, epoch(whole))]
    parts = [epoch(d) for d in shards(kind, tmp_path, 2, 3, **arguments)]
    for expected, *batch in zip(whole, *parts, strict=True):
        found = [_x(part)["user"] for part in batch]
        np.testing.assert_array_equal(np.concatenate(found), expected)


def _x(batch):
    return batch[0] if isinstance(batch, tuple) else batch


@pytest.mark.parametrize(
    "kind, shuffle",
    [
        *[(kind, True) for kind in ALL if kind != "iterator"],
        ("arrays", False),
        ("tf.data", False),
        ("function", False),
    ],
)
def test_padded(kind, shuffle, tmp_path):
    """20 rows on three processes of 6: the last one has copies alone."""
    datasets = shards(
        kind, tmp_path, 3, 6, shuffle=shuffle, seed=1, remainder="pad"
    )
    found = []
    for index, dataset in enumerate(datasets):
        batches = epoch(dataset)
        assert len(batches) == 2
        for x, _, weight in batches:
            assert x["user"].shape == (6,)
            np.testing.assert_array_equal(x["candidate_mask"], weight == 1)
            found += x["user"][weight == 1].tolist()
        assert batches[1][2].sum() == (2 if index == 0 else 0)
    assert sorted(found) == list(range(20))


def test_fit():
    data = full_batches(ROWS, 8, shard=(1, 2))
    reading.check_fit(data, batches=1)
    assert column(epoch(data), "user").tolist() == list(range(8, 16))


@pytest.mark.once
def test_what_is_left_out_is_logged_once(caplog, tmp_path):
    for kind, size, text in (
        ("arrays", 3, "2 of 20 rows"),
        ("parquet", 3, "2 of 20 rows"),
        ("function", 3, "2 of 20 rows"),
        ("PyDataset", 3, "11 of 20 rows"),
        ("unknown size", 3, "2 of 20 rows"),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, "inbatch_neg"):
            for dataset in shards(kind, tmp_path, 3, size, shuffle=False):
                epoch(dataset), epoch(dataset)
        (message,) = [r.getMessage() for r in caplog.records]
        assert text in message


class Unequal(Batches):
    def __getitem__(self, index):
        rows = super().__getitem__(index)
        return {n: v[: 4 - (index == 2)] for n, v in rows.items()}


@pytest.mark.once
def test_refused():
    def refused(error, words, data=ROWS, size=4, **arguments):
        with pytest.raises(error, match=words):
            epoch(full_batches(data, size, **arguments))

    pair = "`shard` must be None.*pair.*Received: shard="
    for shard in ((2, 2), (-1, 2), (0, 0), "all"):
        refused(ValueError, pair, shard=shard)
    for shard in (1, (1,), (0, 1, 2), (0, 2.0), True, {"a": 1}):
        refused(TypeError, pair, shard=shard)
    refused(ValueError, "needs a `seed`", shard=(0, 2), shuffle=True)
    refused(ValueError, "11 x 2.*Received: 20", size=11, shard=(0, 2))
    # TensorFlow's error, where it is read there, has the words of ours.
    refused(
        (ValueError, tf.errors.InvalidArgumentError),
        "PyDataset.*Received: 4 and 3",
        Unequal(),
        2,
        shard=(0, 2),
        batched=True,
    )
    loader = torch_data.DataLoader(range(20), 4, drop_last=True)
    for batched in (False, True):
        refused(
            ValueError,
            "`shard`.*DistributedSampler",
            loader,
            batched=batched,
            shard=(0, 2),
        )


def test_auto_without_other_processes(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    (one,) = epoch(full_batches(ROWS, 16, shard="auto"))
    assert _x(one)["user"].tolist() == list(range(16))


def in_a_cluster(monkeypatch, index, count):
    """Makes the library that trains tell of other processes."""
    if BACKEND == "tensorflow":
        hosts = [f"localhost:{port}" for port in range(count)]
        cluster = {"chief": hosts[:1], "worker": hosts[1:]}
        task = {"type": "worker", "index": index - 1}
        if index == 0:
            task = {"type": "chief", "index": 0}
        config = json.dumps({"cluster": cluster, "task": task})
        monkeypatch.setenv("TF_CONFIG", config)
    elif BACKEND == "jax":
        import jax

        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(jax, "process_count", lambda: count)
    else:
        group = torch.distributed
        monkeypatch.setattr(group, "is_initialized", lambda: True)
        monkeypatch.setattr(group, "get_rank", lambda: index)
        monkeypatch.setattr(group, "get_world_size", lambda: count)
    # What they say to each other: tests/replicas.
    monkeypatch.setattr(type(replicas), "differing", lambda *_: None)


@pytest.mark.parametrize("index", [0, 2])
def test_auto(monkeypatch, index):
    in_a_cluster(monkeypatch, index, 3)
    assert replicas.process() == (index, 3)
    (batch,) = epoch(full_batches(ROWS, 6, shard="auto"))
    expected = list(range(6 * index, 6 * index + 6))
    assert _x(batch)["user"].tolist() == expected


@pytest.mark.backends("jax", "torch")
def test_a_warning_that_all_processes_read_all_rows(monkeypatch, caplog):
    warn = functools.cache(options.warn_of_same_rows.__wrapped__)
    monkeypatch.setattr(options, "warn_of_same_rows", warn)
    in_a_cluster(monkeypatch, 0, 2)
    rows = torch.arange(20)
    sampler = torch_data.DistributedSampler(rows, 2, 0, drop_last=True)
    full_batches(ROWS, 4, shard="auto")
    full_batches(
        torch_data.DataLoader(rows, 4, sampler=sampler, drop_last=True), 4
    )
    assert "processes" not in caplog.text
    for _ in range(2):
        full_batches(torch_data.DataLoader(rows, 4, drop_last=True), 4)
        full_batches(ROWS, 4)
    assert caplog.text.count("each of the 2 processes") == 1

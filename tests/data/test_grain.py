"""grain's datasets."""

import logging

import grain
import keras
import numpy as np
import pytest

import inbatch_neg
from inbatch_neg import full_batches
from inbatch_neg.data import stream as buffered
from tests.data import reading
from tests.data.reading import BACKEND, column, epoch

ROWS = [{"user": i, "item": 19 - i} for i in range(20)]


def rows():
    return grain.MapDataset.source(ROWS)


def stream():
    return rows().to_iter_dataset()


DATASETS = {"map": rows, "iter": stream}


@pytest.mark.parametrize("kind", DATASETS)
def test_datasets(kind):
    dataset = full_batches(DATASETS[kind](), 8)
    for _ in range(2):
        batches = epoch(dataset)
        assert column(batches, "user").tolist() == list(range(16))
        assert column(batches, "item").tolist() == list(range(19, 3, -1))
    if BACKEND == "tensorflow":
        reading.assert_static(dataset, 8)
    else:
        assert isinstance(dataset, grain.IterDataset)
    if kind == "map":
        assert len(dataset) == 2


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", DATASETS)
def test_fit(kind, shuffle):
    dataset = full_batches(DATASETS[kind](), 8, shuffle=shuffle, seed=1)
    reading.check_fit(dataset, batches=2)


@pytest.mark.parametrize("kind", DATASETS)
def test_shuffled_with_the_seed(kind, monkeypatch):
    monkeypatch.setattr(buffered, "SHUFFLE_BUFFER", 7)

    def epochs(seed):
        dataset = full_batches(DATASETS[kind](), 4, shuffle=True, seed=seed)
        orders = [column(epoch(dataset), "user").tolist() for _ in range(2)]
        for order in orders:
            assert sorted(order) == list(range(20))
        return orders

    first = epochs(1)
    assert first[0] != first[1]
    assert first == epochs(1)
    assert first != epochs(2)


def test_too_few_rows():
    with pytest.raises(ValueError, match="`batch_size`.*24.*: 20 rows"):
        full_batches(rows(), 24)
    with pytest.raises(ValueError, match="batch of 4 rows.*`batched=True`"):
        full_batches(rows().batch(4), 24)
    with pytest.raises(ValueError, match="`batch_size`.*24.*: 20 rows"):
        epoch(full_batches(stream(), 24))


@pytest.mark.parametrize("kind", DATASETS)
def test_it_logs_once_what_is_left_out(kind, caplog):
    with caplog.at_level(logging.INFO, "inbatch_neg"):
        dataset = full_batches(DATASETS[kind](), 8)
        for _ in range(2):
            epoch(dataset)
    (message,) = caplog.messages
    assert "last 4 of 20 rows" in message


@pytest.mark.parametrize("kind", DATASETS)
def test_columns(kind):
    batches = epoch(full_batches(DATASETS[kind](), 8, columns=["item"]))
    assert [list(batch) for batch in batches] == [["item"]] * 2


def test_batches_are_regrouped():
    batches = epoch(full_batches(rows().batch(3), 8, batched=True))
    assert column(batches, "user").tolist() == list(range(16))


@pytest.mark.backends("jax", "torch")
@pytest.mark.parametrize("kind", DATASETS)
def test_a_position_is_kept(kind):
    dataset = full_batches(DATASETS[kind](), 4, shuffle=True, seed=1)
    iter(dataset)  # the position is one of the second epoch
    iterator = iter(dataset)
    next(iterator)
    state = iterator.get_state()
    after = epoch(iterator)
    assert len(after) == 4
    # Also in another process, which begins with the first epoch.
    again = full_batches(DATASETS[kind](), 4, shuffle=True, seed=1)
    for iterator in (iter(dataset), iter(again)):
        iterator.set_state(state)
        found = epoch(iterator)
        np.testing.assert_array_equal(
            column(found, "user"), column(after, "user")
        )


@pytest.mark.parametrize("kind", DATASETS)
def test_padded(kind):
    dataset = full_batches(DATASETS[kind](), 8, remainder="pad")
    batches = epoch(dataset)
    assert len(batches) == 3
    x, y, weight = batches[2]
    assert x["user"].tolist() == [16, 17, 18, 19, 19, 19, 19, 19]
    assert y is None and weight.tolist() == [1] * 4 + [0] * 4
    assert x["candidate_mask"].tolist() == [True] * 4 + [False] * 4
    model = reading.two_towers(mask=True)
    assert model.evaluate(dataset, verbose=0) > 0


class _Batches(grain.transforms.Map):
    def map(self, index):
        return {"user": np.arange(5) + index, "item": np.arange(5) + index}


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("batched", [False, True])
def test_states_wait_for_a_batch_of_a_loader(batched):
    """Its length is unknown, so that Keras runs one more step."""
    loader = grain.DataLoader(
        data_source=grain.sources.RangeDataSource(0, 4, 1),
        sampler=grain.samplers.SequentialSampler(
            4, grain.sharding.NoSharding()
        ),
        operations=[_Batches()],
    )
    estimate = inbatch_neg.StreamingSamplingProbability(1000)
    ids = keras.Input((), dtype="int32", name="item")
    users = keras.Input((), dtype="int32", name="user")
    vectors = keras.layers.Embedding(20, 4)
    losses = inbatch_neg.InBatchNegativeSoftmax(batch_size=5)(
        vectors(users),
        vectors(ids),
        candidate_sampling_probability=estimate(ids),
    )
    model = keras.Model({"user": users, "item": ids}, losses)
    model.compile("sgd", loss=inbatch_neg.InBatchNegativeLoss())
    data = full_batches(loader, 5, batched=True) if batched else loader
    model.fit(data, epochs=3, shuffle=False, verbose=0)
    never_seen = reading.to_numpy(estimate(np.array([999], "int32")))
    np.testing.assert_allclose(1.0 / never_seen, [3 * 20 + 1])


def test_no_log_of_the_rows_of_endless_data(caplog):
    rows = grain.MapDataset.range(20).repeat()
    dataset = full_batches(rows, 16)
    assert np.asarray(next(iter(dataset))).size == 16
    assert not caplog.messages

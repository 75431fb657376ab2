"""Columns and tables of polars, Arrow, Hugging Face, JAX and PyTorch."""

import datasets
import jax.experimental.sparse
import numpy as np
import pandas
import polars
import pyarrow
import pytest
import torch

from inbatch_neg import full_batches
from tests.data import reading
from tests.data.reading import epoch

pytestmark = pytest.mark.once

NUMBERS = np.arange(10)
PAIRS = {"user": np.arange(20), "item": np.arange(20)[::-1].copy()}
DAYS = np.arange(10).astype("datetime64[D]")
RAGGED = [[1], [2, 3]] * 5
NAMES = ["a", None] * 5
LARGE = 2**53 + 1

ONE_COLUMN = {
    "polars": polars.Series(NUMBERS),
    "arrow": pyarrow.array(NUMBERS),
    "chunks": pyarrow.chunked_array([NUMBERS[:3], NUMBERS[3:]]),
    "no chunks": pyarrow.chunked_array([NUMBERS]),
    "arrow dtype": pandas.Series(NUMBERS, dtype="int64[pyarrow]"),
    "torch": torch.arange(10),
    "jax": jax.numpy.arange(10),
}


@pytest.mark.parametrize("kind", ONE_COLUMN)
def test_one_column(kind):
    batches = epoch(full_batches(ONE_COLUMN[kind], 4))
    np.testing.assert_array_equal(batches, [[0, 1, 2, 3], [4, 5, 6, 7]])
    assert batches[0].dtype.kind == "i"


def test_no_rows():
    empty = pyarrow.chunked_array([], pyarrow.int64())
    with pytest.raises(ValueError, match="`batch_size`.*0 rows"):
        full_batches({"a": empty}, 4)


TABLES = {
    "polars": polars.DataFrame(PAIRS),
    "arrow": pyarrow.table(PAIRS),
    "record batch": pyarrow.RecordBatch.from_pydict(
        {name: pyarrow.array(values) for name, values in PAIRS.items()}
    ),
    "hugging face": datasets.Dataset.from_dict(PAIRS),
    "selected rows": datasets.Dataset.from_dict(
        {name: np.repeat(values, 2) for name, values in PAIRS.items()}
    ).select(range(0, 40, 2)),
    "numpy format": datasets.Dataset.from_dict(PAIRS).with_format("numpy"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables(kind):
    batches = epoch(full_batches(TABLES[kind], 8))
    assert list(batches[0]) == ["user", "item"]
    assert reading.column(batches, "user").tolist() == list(range(16))
    assert reading.column(batches, "item").tolist() == list(range(19, 3, -1))
    ((x, y),) = epoch(
        full_batches((TABLES[kind], PAIRS["user"]), 20, columns=["user"])
    )
    assert list(x) == ["user"]
    np.testing.assert_array_equal(x["user"], y)
    one, other = (
        epoch(full_batches(data, 8, shuffle=True, seed=4))
        for data in (TABLES[kind], PAIRS)
    )
    np.testing.assert_equal(one, other)


@pytest.mark.parametrize("kind", ["polars", "arrow", "hugging face"])
def test_fit(kind):
    reading.check_fit(full_batches(TABLES[kind], 8, shuffle=True, seed=1), 2)


def test_a_split_must_be_chosen():
    both = datasets.DatasetDict(train=TABLES["hugging face"])
    with pytest.raises(TypeError, match=r"`data\['train'\]`.*DatasetDict"):
        full_batches(both, 8)


def test_the_format_of_hugging_face():
    rows = TABLES["hugging face"].add_column("text", ["a"] * 20)
    chosen = rows.with_format("numpy", columns=["item", "user"])
    for batch in epoch(full_batches(chosen, 8)):
        assert sorted(batch) == ["item", "user"]
    every = rows.with_format("numpy", columns=["item"], output_all_columns=True)
    batches = epoch(full_batches(every, 8, columns=["user"]))
    assert list(batches[0]) == ["user"]
    with pytest.raises(TypeError, match=r"transform.*`data.*\.map\("):
        full_batches(rows.with_transform(lambda batch: batch), 8)


def test_columns_of_hugging_face():
    rows = TABLES["hugging face"]
    data = ({"user": rows["user"]}, rows["item"])
    for x, y in epoch(full_batches(data, 8)):
        np.testing.assert_array_equal(x["user"], 19 - y)


def test_columns_of_one_name():
    with pytest.raises(ValueError, match="different names.*'item'"):
        full_batches(pyarrow.table([NUMBERS] * 3, ["user", "item", "item"]), 4)


def test_streamed_hugging_face():
    rows = TABLES["hugging face"].to_iterable_dataset()
    with pytest.raises(TypeError, match="`batched=True`"):
        full_batches(rows, 8)
    dataset = full_batches(rows.batch(3), 8, batched=True)
    assert reading.column(epoch(dataset), "user").tolist() == list(range(16))


def test_lists_of_one_length():
    rows = np.arange(12.0).reshape(4, 3)
    fixed = pyarrow.FixedSizeListArray.from_arrays(rows.ravel(), 3)
    for column in (
        fixed,
        fixed[1:],
        pyarrow.chunked_array([fixed, fixed]),
        polars.Series(rows),
    ):
        length = len(column)
        (batch,) = epoch(full_batches({"v": column}, length))
        expected = np.tile(rows, (2, 1))[:length]
        if length == 3:
            expected = rows[1:]
        np.testing.assert_array_equal(batch["v"], expected)


COLUMNS = {
    "arrow dtype days": (
        pandas.Series(DAYS).astype("timestamp[s][pyarrow]"),
        "dates",
        "Encode",
    ),
    "polars days": (polars.Series(DAYS), "dates", "Encode"),
    "arrow days": (pyarrow.array(DAYS), "dates", "Encode"),
    "polars lists": (polars.Series(RAGGED), "lists", "Pad"),
    "arrow lists": (pyarrow.array(RAGGED), "lists", "Pad"),
    "polars strings": (polars.Series(NAMES), "missing", "Fill"),
    "arrow strings": (pyarrow.array(NAMES), "missing", "Fill"),
    "polars ints": (polars.Series([1, None] * 5), "missing", "Fill"),
    "arrow ints": (pyarrow.array([1, None] * 5), "missing", "Fill"),
    "jax": (
        jax.experimental.sparse.BCOO.fromdense(np.eye(10)),
        "sparse",
        "todense",
    ),
    "torch": (torch.eye(10).to_sparse(), "sparse", "to_dense"),
    "nested": (
        torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
        "nested",
        "Pad",
    ),
    "decimals": (
        pyarrow.array([1] * 10).cast(pyarrow.decimal128(20)),
        "decimal",
        "Encode",
    ),
    "structs": (pyarrow.array([{"a": 1}] * 10), "struct", "Encode"),
    "gaps": (
        pyarrow.array([[1, None]] * 10, pyarrow.list_(pyarrow.int64(), 2)),
        "missing",
        "Fill",
    ),
    "bfloat16": (torch.ones(10).bfloat16(), "bfloat16", "float"),
    "gaps of a dictionary": (
        pyarrow.DictionaryArray.from_arrays(
            pyarrow.array([0, 1] * 5), pyarrow.array([LARGE, None])
        ),
        "missing",
        "Fill",
    ),
    "polars gaps": (
        polars.Series([[LARGE, None]] * 10, dtype=polars.Array(int, 2)),
        "missing",
        "Fill",
    ),
    "polars structs": (polars.Series([{"a": 1}] * 10), "Struct", "unnest"),
    "polars Int128": (
        polars.Series([1] * 10, dtype=polars.Int128),
        "Int128",
        "64 bits",
    ),
    "polars arrays of days": (
        polars.Series(
            [[day] for day in DAYS.tolist()], dtype=polars.Array(polars.Date, 1)
        ),
        "dates",
        "Encode",
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_that_no_batch_can_hold(kind):
    reading.check_refused(*COLUMNS[kind])


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize(
    "names",
    [
        polars.Series(["a", "bc"] * 2),
        polars.Series(["a", "bc"] * 2, dtype=polars.Categorical),
        pyarrow.array(["a", "bc"] * 2),
        pyarrow.array(["a", "bc"] * 2).dictionary_encode(),
        pandas.Series(["a", "bc"] * 2, dtype="string[pyarrow]"),
    ],
)
def test_strings(names):
    (batch,) = epoch(full_batches({"name": names}, 4))
    assert batch["name"].tolist() == [b"a", b"bc", b"a", b"bc"]

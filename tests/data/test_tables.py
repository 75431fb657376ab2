"""Columns and tables of polars, Arrow, Hugging Face, JAX and PyTorch."""

import collections
import pathlib
import re

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


TOKENS = np.arange(12).reshape(4, 3)
LISTS = TOKENS.tolist()
FIXED = pyarrow.FixedSizeListArray.from_arrays(TOKENS.ravel(), 3)


def arrow_lists(make, values=LISTS):
    return pyarrow.array(values, make(pyarrow.int64()))


# Columns of lists that all have one length, as tokenizers pad them.
LISTS_OF_ONE_LENGTH = {
    "fixed": FIXED,
    "fixed chunks": pyarrow.chunked_array([FIXED[:1], FIXED[1:]]),
    "lists": arrow_lists(pyarrow.list_),
    "large lists": arrow_lists(pyarrow.large_list),
    "list views": arrow_lists(pyarrow.list_view),
    "sliced": arrow_lists(pyarrow.list_, [[7], [8, 9], *LISTS])[2:],
    "chunks": pyarrow.chunked_array([LISTS[:1], [], LISTS[1:]]),
    "arrow tensors": pyarrow.FixedShapeTensorArray.from_numpy_ndarray(TOKENS),
    "polars": polars.Series(LISTS),
    "polars arrays": polars.Series(TOKENS),
    "pandas": pandas.Series(LISTS),
    "pandas arrays": pandas.Series(list(TOKENS)),
    "pandas tuples": pandas.Series([tuple(one) for one in LISTS]),
    "pandas of arrow": pandas.Series(
        arrow_lists(pyarrow.list_),
        dtype=pandas.ArrowDtype(pyarrow.list_(pyarrow.int64())),
    ),
    "objects": pandas.Series(LISTS).to_numpy(),
    "hugging face": datasets.Dataset.from_dict({"t": LISTS})["t"],
}


@pytest.mark.parametrize("kind", LISTS_OF_ONE_LENGTH)
def test_lists_of_one_length(kind):
    (batch,) = epoch(full_batches({"t": LISTS_OF_ONE_LENGTH[kind]}, 4))
    np.testing.assert_array_equal(batch["t"], TOKENS)
    assert batch["t"].dtype.kind == "i"


MATRICES = np.arange(24.0).reshape(4, 2, 3)


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array(MATRICES.tolist()),
        polars.Series(MATRICES.tolist()),
        pandas.Series(MATRICES.tolist()),
        pyarrow.array(MATRICES.tolist()).to_pandas(),
        pyarrow.FixedShapeTensorArray.from_numpy_ndarray(MATRICES),
    ],
)
def test_lists_of_lists_of_one_length(column):
    (batch,) = epoch(full_batches({"m": column}, 4))
    np.testing.assert_array_equal(batch["m"], MATRICES)


def test_padded_tokens_of_hugging_face():
    rows = datasets.Dataset.from_dict({"id": [0, 1, 2, 3], "t": LISTS})
    kinds = [rows, *map(rows.with_format, ["numpy", "torch", "pandas"])]
    for data in [*kinds, rows.select([3, 2, 1, 0]).select([3, 2, 1, 0])]:
        (batch,) = epoch(full_batches(data, 4))
        np.testing.assert_array_equal(batch["t"], TOKENS)


def test_batches_of_lists_of_one_length():
    """Also with batches of no row, whose lists have no length."""
    table = pyarrow.table({"t": arrow_lists(pyarrow.list_)})

    def batches():
        yield from table[:0].to_batches()
        yield table[:1].combine_chunks().to_batches()[0]
        yield pyarrow.RecordBatch.from_pydict(
            {"t": pyarrow.array([], table.schema.field("t").type)}
        )
        yield table[1:].combine_chunks().to_batches()[0]

    (batch,) = epoch(full_batches(batches, 4, batched=True))
    np.testing.assert_array_equal(batch["t"], TOKENS)
    with pytest.raises(Exception, match=r"data\['t'\].*Pad"):
        ragged = pyarrow.record_batch({"t": pyarrow.array([[1], [2, 3]])})
        epoch(full_batches([ragged], 2, batched=True))


def reader():
    table = pyarrow.table(PAIRS)
    return pyarrow.RecordBatchReader.from_batches(
        table.schema, table.to_batches(max_chunksize=6)
    )


def test_a_reader_of_record_batches():
    """What DuckDB's `.arrow()` returns."""
    for data in (reader(), (reader(), None)):
        dataset = full_batches(data, 8)
        for _ in range(2):
            batches = epoch(dataset)
            assert reading.column(batches, "user").tolist() == [*range(16)]
    batches = epoch(full_batches(reader(), 8, batched=True))
    assert reading.column(batches, "user").tolist() == [*range(16)]


class Encoding(collections.UserDict):
    """A mapping that is no dict, as `transformers.BatchEncoding`."""


def test_any_mapping():
    pairs = Encoding(PAIRS)
    for data in (pairs, (pairs, PAIRS["user"]), ({"a": pairs}, None)):
        batches = epoch(full_batches(data, 8))
        for batch in batches:
            x = batch[0] if isinstance(batch, tuple) else batch
            x = x.get("a", x)
            np.testing.assert_array_equal(x["user"], 19 - x["item"])
    for data in (
        [pairs],
        lambda: iter([pairs]),
        torch.utils.data.DataLoader([pairs], batch_size=None),
    ):
        batches = epoch(full_batches(data, 8, batched=True, columns=["user"]))
        assert reading.column(batches, "user").tolist() == [*range(16)]
    with pytest.raises(TypeError, match="list of dicts"):
        full_batches([Encoding(user=1)] * 8, 4)
    with pytest.raises(TypeError, match="`batched=True` needs"):
        full_batches(pairs, 4, batched=True)


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def test_rows_that_are_mappings():
    rows = Rows([Encoding(user=i, item=19 - i) for i in range(20)])
    batches = epoch(full_batches(rows, 8))
    assert reading.column(batches, "user").tolist() == [*range(16)]


Pair = collections.namedtuple("Pair", ["user", "item"])
NAMED = r"named tuple.*_asdict\(\).*tuple\(.*Pair\(user, item\)"


@pytest.mark.parametrize("place", ["data", "x", "batch", "PyTorch", "tf.data"])
def test_named_tuples_are_refused(place):
    pair = Pair(*PAIRS.values())
    data, batched = pair, False
    if place == "x":
        data = (pair, PAIRS["user"])
    if place == "batch":
        data, batched = [pair], True
    if place == "PyTorch":
        data = Rows([Pair(i, i) for i in range(20)])
    if place == "tf.data":
        import tensorflow as tf

        data = tf.data.Dataset.from_tensor_slices(pair)
    with pytest.raises(Exception, match=NAMED):
        epoch(full_batches(data, 8, batched=batched))


FLOATS = [1.0, float("nan"), 2.0, 3.0]
NAN = {
    "list": FLOATS,
    "array": np.array(FLOATS),
    "pandas": pandas.Series(FLOATS),
    "pandas objects": pandas.Series(FLOATS, dtype=object),
    "polars": polars.Series(FLOATS),
    "arrow": pyarrow.array(FLOATS),
    "arrow lists": pyarrow.array([[one] for one in FLOATS]),
    "hugging face": datasets.Dataset.from_dict({"age": FLOATS})["age"],
    "torch": torch.tensor(FLOATS),
}
NULLS = [1.0, None, 2.0, 3.0]
NULL = {
    "list": NULLS,
    "masked": np.ma.masked_invalid(FLOATS),
    "pandas": pandas.Series(NULLS, dtype="Float64"),
    "pandas of arrow": pandas.Series(NULLS, dtype="double[pyarrow]"),
    "pandas objects": pandas.Series(NULLS, dtype=object),
    "polars": polars.Series(NULLS),
    "arrow": pyarrow.array(NULLS),
    "arrow lists": pyarrow.array([[one] for one in NULLS]),
    "hugging face": datasets.Dataset.from_dict({"age": NULLS})["age"],
}


@pytest.mark.parametrize("kind", NAN)
def test_nan_is_a_value(kind):
    (batch,) = epoch(full_batches({"age": NAN[kind]}, 4))
    np.testing.assert_array_equal(np.ravel(batch["age"]), FLOATS)


@pytest.mark.parametrize("kind", NULL)
def test_a_null_is_a_missing_value(kind):
    with pytest.raises(ValueError, match="missing.*floats with NaN"):
        full_batches({"age": NULL[kind]}, 4)


PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"
FILLED = dict(
    re.findall(
        r"^\| (.*?) \| `(column.*?)` \|",
        PAGE.read_text(encoding="utf-8").split("\n### Missing values\n")[1],
        re.M,
    )
)


@pytest.mark.parametrize("kind", FILLED)
def test_the_remedy_for_missing_values(kind):
    names = {"masked array": "masked"}
    column = NULL[names.get(kind, kind.lower())]
    filled = eval(FILLED[kind], {"column": column})
    (batch,) = epoch(full_batches({"age": filled}, 4))
    assert batch["age"].tolist() == [1.0, 0.0, 2.0, 3.0]


def test_bfloat16_of_torch():
    (batch,) = epoch(full_batches({"v": torch.ones(4).bfloat16()}, 4))
    assert batch["v"].dtype == "float32" and batch["v"].tolist() == [1.0] * 4


COLUMNS = {
    "arrow dtype days": (
        pandas.Series(DAYS).astype("timestamp[s][pyarrow]"),
        "dates",
        "Encode",
    ),
    "polars days": (polars.Series(DAYS), "dates", "Encode"),
    "arrow days": (pyarrow.array(DAYS), "dates", "Encode"),
    "polars lists": (polars.Series(RAGGED), "unequal length", "Pad"),
    "arrow lists": (pyarrow.array(RAGGED), "unequal length", "Pad"),
    "arrow lists of lists": (
        pyarrow.array([[[1]], [[2, 3]]] * 5),
        "unequal length",
        "Pad",
    ),
    "maps": (
        pyarrow.array(
            [[(1, 2)]] * 10, pyarrow.map_(pyarrow.int64(), pyarrow.int64())
        ),
        "map",
        "Encode",
    ),
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

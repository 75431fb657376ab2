"""What `full_batches` refuses, and in which words."""

import datetime

import numpy as np
import pandas
import pytest
import scipy.sparse
import tensorflow as tf

from inbatch_neg import full_batches
from tests.data import reading
from tests.data.reading import epoch

pytestmark = pytest.mark.once

NUMBERS = np.arange(10)
DAYS = np.arange(10).astype("datetime64[D]")
RAGGED = [[1], [2, 3]] * 5
NAMES = ["a", None] * 5


@pytest.mark.parametrize("size", [0, -1, 1])
def test_batch_size_too_small(size):
    with pytest.raises(ValueError, match=f"`batch_size`.*Received.*{size}"):
        full_batches(NUMBERS, size)


@pytest.mark.parametrize("size", [2.5, 2.0, True, "4", None])
def test_batch_size_of_a_wrong_type(size):
    with pytest.raises(TypeError, match="`batch_size`.*Received"):
        full_batches(NUMBERS, size)


def test_numpy_integers():
    batches = epoch(full_batches(NUMBERS, np.int64(4), seed=np.int32(1)))
    assert [batch.shape for batch in batches] == [(4,), (4,)]


@pytest.mark.parametrize(
    "argument",
    [
        {"shuffle": 1},
        {"batched": "no"},
        {"seed": 1.5},
        {"columns": "user"},
        {"columns": [1]},
        {"columns": {"user"}},
    ],
)
def test_arguments_of_a_wrong_type(argument):
    (name,) = argument
    with pytest.raises(TypeError, match=f"`{name}`.*Received"):
        full_batches(NUMBERS, 4, **argument)


@pytest.mark.parametrize(
    "argument",
    [
        {"seed": -1},
        {"seed": 2**63},
        {"columns": []},
        {"columns": ["a", "a"]},
        {"remainder": "keep"},
        {"remainder": None},
    ],
)
def test_arguments_of_a_wrong_value(argument):
    (name,) = argument
    with pytest.raises(ValueError, match=f"`{name}`.*Received"):
        full_batches({"a": NUMBERS}, 4, **argument)


@pytest.mark.parametrize(
    "data", ["abc", 3, None, object(), {"a": 3}, (x for x in "ab"), {1, 2}, {}]
)
def test_data_of_a_wrong_type(data):
    with pytest.raises((TypeError, ValueError), match="`data`"):
        full_batches(data, 4)


def test_a_scalar():
    with pytest.raises(ValueError, match="`data`.*scalar"):
        full_batches(np.array(3), 4)


@pytest.mark.parametrize(
    "data", [NUMBERS, {"a": NUMBERS}, (NUMBERS, NUMBERS), "a.parquet", 3]
)
def test_rows_are_not_batches(data):
    with pytest.raises(TypeError, match="`batched=True`.*Received"):
        full_batches(data, 4, batched=True)


# What a column holds, the words about it, and the words of the remedy.
COLUMNS = {
    "days": (DAYS, "dates", "Encode"),
    "spans": (DAYS - DAYS[0], "dates", "Encode"),
    "date objects": ([datetime.date(2020, 1, 1)] * 10, "dates", "Encode"),
    "pandas days": (pandas.Series(DAYS), "dates", "Encode"),
    "zones": (pandas.Series(DAYS).dt.tz_localize("UTC"), "dates", "Encode"),
    "lists": (pandas.Series(RAGGED), "unequal length", "Pad"),
    "sets": (pandas.Series([{1, 2}] * 10), "lists or arrays", "Pad"),
    "lists and numbers": (
        pandas.Series([[1], 2] * 5),
        "lists or arrays",
        "Pad",
    ),
    "gaps in lists": (pandas.Series([[1, None]] * 10), "missing", "Fill"),
    "unequal rows": (RAGGED, "unequal length", "Pad"),
    "missing strings": (NAMES, "missing values", "Fill"),
    "NaN strings": (["a", float("nan")] * 5, "missing values", "Fill"),
    "pandas strings": (pandas.Series(NAMES), "missing values", "Fill"),
    "string dtype": (pandas.Series(NAMES, dtype="string"), "missing", "Fill"),
    "Int64": (
        pandas.Series([2**53 + 1, None] * 5, dtype="Int64"),
        r"missing values \(Int64\)",
        "Fill",
    ),
    "boolean": (
        pandas.Series([True, None] * 5, dtype="boolean"),
        "missing",
        "Fill",
    ),
    "int objects": ([1, None] * 5, "missing", "Fill"),
    "mixed": ([1, "a"] * 5, "strings and", "all of them"),
    "huge": ([2**70] * 10, "objects of type int", "Encode"),
    "ints and floats": (
        np.array([2**53 + 1, 0.5] * 5, object),
        "objects of type float, int",
        "Encode",
    ),
    "ragged": (tf.ragged.constant(RAGGED), "ragged", "to_tensor"),
    "sparse": (tf.sparse.from_dense(np.eye(10)), "sparse", "to_dense"),
    "scipy matrix": (scipy.sparse.csr_matrix(np.eye(10)), "sparse", "toarray"),
    "scipy array": (scipy.sparse.coo_array(np.eye(10)), "sparse", "toarray"),
    "complex": (np.ones(10, complex), "complex128", "Encode"),
    "records": (np.ones(10, [("a", "int32")]), "'a'", "Encode"),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_that_no_batch_can_hold(kind):
    reading.check_refused(*COLUMNS[kind])


def test_a_column_without_a_name():
    with pytest.raises(TypeError, match=r"`data\[0\]\['x'\]\[1\]` holds dates"):
        full_batches(({"x": (NUMBERS, DAYS)}, NUMBERS), 4)


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize(
    "names",
    [
        np.array(["a", "bc"] * 2),
        np.array([b"a", b"bc"] * 2, object),
        ["a", "bc"] * 2,
        pandas.Series(["a", "bc"] * 2),
        pandas.Series(["a", "bc"] * 2, dtype="category"),
        pandas.Series(["a", "bc"] * 2, dtype="string"),
    ],
)
def test_strings(names):
    dataset = full_batches({"name": names}, 4)
    assert dataset.element_spec["name"].dtype == tf.string
    (batch,) = epoch(dataset)
    assert batch["name"].tolist() == [b"a", b"bc", b"a", b"bc"]


@pytest.mark.backends("jax", "torch")
def test_strings_are_for_tensorflow():
    with pytest.raises(TypeError, match=r"'name'.*strings.*StringLookup"):
        full_batches({"name": ["a", "b"]}, 2)


def test_columns():
    a = np.arange(8)
    frame = pandas.DataFrame({"user": a, "age": 2 * a, "item": 3 * a})
    (batch,) = epoch(full_batches(frame, 8, columns=["item", "user"]))
    assert list(batch) == ["item", "user"]
    np.testing.assert_array_equal(batch["item"], 3 * batch["user"])
    ((x, y),) = epoch(full_batches((frame, a), 8, columns=("user",)))
    assert list(x) == ["user"] and len(y) == 8


def test_unknown_columns():
    frame = pandas.DataFrame({"user": NUMBERS, "item": NUMBERS})
    with pytest.raises(ValueError, match=r"\['user', 'item'\].*\['itm'\]"):
        full_batches(frame, 4, columns=["user", "itm"])
    with pytest.raises(TypeError, match="`columns`.*ndarray"):
        full_batches(NUMBERS, 4, columns=["user"])

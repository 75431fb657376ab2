"""Parquet files, larger than memory."""

import glob
import pathlib

import numpy as np
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet
import pytest

from inbatch_neg import full_batches
from inbatch_neg.data import parquet, stream
from tests.data import reading
from tests.data.reading import column, epoch

pytestmark = pytest.mark.once

ROWS = 60


@pytest.fixture
def folder(tmp_path):
    """Three files of 20 rows, in row groups of 5."""
    for number in range(3):
        ids = np.arange(20 * number, 20 * number + 20)
        pyarrow.parquet.write_table(
            pyarrow.table(
                {
                    "user": ids,
                    "item": ROWS - 1 - ids,
                    "day": ids.astype("datetime64[D]"),
                }
            ),
            tmp_path / f"part-{number}.parquet",
            row_group_size=5,
        )
    return tmp_path


COLUMNS = ["user", "item"]
FORMS = {
    "path": lambda folder: folder,
    "string": str,
    "paths": lambda folder: sorted(folder.iterdir()),
    "strings": lambda folder: sorted(map(str, folder.iterdir())),
    "dataset": lambda folder: pyarrow.dataset.dataset(folder),
    "in memory": lambda folder: pyarrow.dataset.dataset(
        pyarrow.dataset.dataset(folder).to_table()
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_in_order(form, folder):
    dataset = full_batches(FORMS[form](folder), 16, columns=COLUMNS)
    assert len(dataset) == 3
    for _ in range(2):
        batches = epoch(dataset)
        assert list(batches[0]) == COLUMNS
        assert column(batches, "user").tolist() == list(range(48))
        assert column(batches, "item").tolist() == list(range(59, 11, -1))


@pytest.mark.parametrize("form", ["path", "in memory"])
@pytest.mark.parametrize("buffer", [7, 1000])
def test_shuffled(form, buffer, folder, monkeypatch):
    monkeypatch.setattr(stream, "SHUFFLE_BUFFER", buffer)
    monkeypatch.setattr(parquet, "_CHUNK", 9)

    def epochs(seed):
        dataset = full_batches(
            FORMS[form](folder), 4, shuffle=True, seed=seed, columns=COLUMNS
        )
        orders = []
        for _ in range(2):
            batches = epoch(dataset)
            users = column(batches, "user")
            np.testing.assert_array_equal(
                column(batches, "item"), ROWS - 1 - users
            )
            assert sorted(users) == list(range(ROWS))
            orders.append(users.tolist())
        return orders

    first = epochs(1)
    assert first[0] != first[1]
    assert first == epochs(1)
    assert first != epochs(2)
    if form == "path":
        # Rows of the last file come first, though the buffer is small.
        assert any(epochs(seed)[0][0] >= 40 for seed in range(4))


def test_one_file(folder):
    dataset = full_batches(folder / "part-1.parquet", 16, columns=["user"])
    assert column(epoch(dataset), "user").tolist() == list(range(20, 36))


def test_fit(folder):
    dataset = full_batches(folder, 8, shuffle=True, seed=1, columns=COLUMNS)
    reading.check_fit(dataset, 7)


def test_what_is_refused(folder):
    with pytest.raises(TypeError, match=r"data\['day'\].*dates"):
        full_batches(folder, 16)
    with pytest.raises(ValueError, match=r"'day'\].*\['itm'\]"):
        full_batches(folder, 16, columns=["itm"])
    with pytest.raises(ValueError, match="`batch_size`.*: 60 rows"):
        full_batches(folder, 64, columns=COLUMNS)
    with pytest.raises(ValueError, match="`data`.*does not exist"):
        full_batches(folder / "none.parquet", 16)
    with pytest.raises(ValueError, match="`data`.*does not exist"):
        full_batches([str(pathlib.Path("none.parquet"))], 16)
    with pytest.raises(TypeError, match="`batched=True`"):
        full_batches(folder, 16, batched=True)


def test_missing_values(tmp_path):
    """They are named without a count, which would be that of a chunk."""
    write(tmp_path, a={"user": [1, 2, None, 4], "age": [0.5, 1.5, 2.5, None]})
    for name in ("user", "age"):
        with pytest.raises(ValueError, match="missing") as caught:
            epoch(full_batches(tmp_path, 2, columns=[name]))
        assert f"`data['{name}']` holds missing values (" in str(caught.value)
        assert "docs/data.md#missing-values" in str(caught.value)
    rows = pyarrow.dataset.dataset(tmp_path)
    field = pyarrow.dataset.field
    filled = rows.scanner(
        {
            "user": pyarrow.compute.coalesce(field("user"), 0),
            "age": pyarrow.compute.coalesce(field("age"), float("nan")),
        }
    )
    for shuffle in (False, True):
        dataset = full_batches(filled, 4, shuffle=shuffle, seed=1)
        assert len(dataset) == 1
        for _ in range(2):
            (batch,) = epoch(dataset)
            order = np.argsort(batch["user"])
            assert batch["user"][order].tolist() == [0, 1, 2, 4]
            age = [2.5, 0.5, 1.5, np.nan]
            np.testing.assert_array_equal(batch["age"][order], age)
    (batch,) = epoch(full_batches(filled, 4, columns=["user"]))
    assert list(batch) == ["user"]
    valid = rows.filter(field("user").is_valid() & field("age").is_valid())
    (batch,) = epoch(full_batches(valid, 2))
    assert batch["user"].tolist() == [1, 2]


def test_nan_is_a_value(tmp_path):
    ages = [1.0, float("nan")]
    write(tmp_path, a={"age": ages})
    (batch,) = epoch(full_batches(tmp_path, 2))
    np.testing.assert_array_equal(batch["age"], ages)


@pytest.mark.parametrize("filtered", [False, True])
def test_lists_of_one_length(filtered, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_CHUNK", 2)
    tokens = np.arange(24).reshape(8, 3)
    write(tmp_path, a={"id": np.arange(8), "t": tokens.tolist()})
    rows, expected = tmp_path, tokens
    if filtered:  # its first batches have no rows
        least = pyarrow.dataset.field("id") >= 4
        rows, expected = pyarrow.dataset.dataset(rows).filter(least), tokens[4:]
    (batch,) = epoch(full_batches(rows, len(expected)))
    np.testing.assert_array_equal(batch["t"], expected)
    write(tmp_path, a={"t": [[1], [2, 3]]})
    with pytest.raises(ValueError, match=r"data\['t'\].*unequal.*Pad"):
        epoch(full_batches(tmp_path, 2))


def test_other_files(tmp_path):
    """The error says what works, and it does."""
    path = tmp_path / "pairs.csv"
    path.write_text("user,age\n" + "".join(f"{i},{i}.5\n" for i in range(8)))
    for data in (path, str(path), f"{tmp_path}/*.csv", "s3://bucket/pairs"):
        with pytest.raises(ValueError, match="`data`.*parquet") as caught:
            full_batches(data, 4)
        for call in ("`glob.glob(pattern)`", 'dataset(path, format="csv")`'):
            assert call in str(caught.value)
    rows = pyarrow.dataset.dataset(path, format="csv")
    for shuffle in (False, True):
        (batch,) = epoch(full_batches(rows, 8, shuffle=shuffle))
        assert sorted(batch["user"]) == list(range(8))
    write(tmp_path, a={"user": np.arange(4)}, b={"user": np.arange(4)})
    dataset = full_batches(glob.glob(f"{tmp_path}/*.parquet"), 8)
    assert column(epoch(dataset), "user").size == 8


def test_the_names_of_folders_are_columns(tmp_path):
    ids = np.arange(12)
    pyarrow.parquet.write_to_dataset(
        pyarrow.table({"user": ids, "country": ids % 3}),
        tmp_path,
        partition_cols=["country"],
    )
    files = sorted(map(str, tmp_path.rglob("*.parquet")))
    for data in (tmp_path, files):
        for shuffle in (False, True):
            for batch in epoch(full_batches(data, 4, shuffle=shuffle)):
                assert sorted(batch) == ["country", "user"]
                np.testing.assert_array_equal(
                    batch["country"], batch["user"] % 3
                )
    batches = epoch(full_batches(tmp_path, 4, columns=["country"]))
    assert column(batches, "country").tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_filtered_dataset_is_shuffled(folder):
    rows = pyarrow.dataset.dataset(folder).filter(
        pyarrow.dataset.field("user") < 40
    )
    dataset = full_batches(rows, 8, shuffle=True, seed=1, columns=COLUMNS)
    assert len(dataset) == 5
    for _ in range(2):
        users = column(epoch(dataset), "user").tolist()
        assert sorted(users) == list(range(40)) != users


def write(folder, **columns):
    for name, values in columns.items():
        pyarrow.parquet.write_table(
            pyarrow.table(values), folder / f"{name}.parquet"
        )


@pytest.mark.parametrize("name", ["README", "x.csv"])
def test_a_file_that_is_not_parquet(name, tmp_path):
    write(tmp_path, part={"user": np.arange(8)})
    (tmp_path / name).write_text("user")
    for data in (tmp_path, tmp_path / name):
        with pytest.raises(
            ValueError, match=f"must be parquet.*{name}', another"
        ):
            full_batches(data, 4)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="without parquet files"):
        full_batches(tmp_path, 4)


def test_files_whose_columns_differ(tmp_path):
    ids = np.arange(8)
    write(
        tmp_path,
        a={"user": ids, "item": ids.astype("int32"), "age": ids},
        b={"user": ids, "item": ids},
    )
    with pytest.raises(
        ValueError, match=r"data\['item'\].*int32.*a\.parq.*int64.*b\.parq"
    ):
        full_batches(tmp_path, 4)
    with pytest.raises(
        ValueError, match=r"data\['age'\].*of .*a\.parquet.*not of .*b\.parq"
    ):
        full_batches(tmp_path, 4, columns=["user", "age"])
    dataset = full_batches(tmp_path, 8, columns=["user"])
    assert column(epoch(dataset), "user").tolist() == [*ids, *ids]

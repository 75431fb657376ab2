"""Columns of dates and times: refused, and the casts in the docs work."""

import datetime
import pathlib
import re

import numpy
import pandas
import polars
import pyarrow
import pytest

from inbatch_neg import full_batches
from tests.data import reading

pytestmark = pytest.mark.once

DATE = datetime.date(2020, 1, 2)
MOMENT = datetime.datetime(2020, 1, 2)
UTC = MOMENT.replace(tzinfo=datetime.timezone.utc)
SPAN = datetime.timedelta(minutes=2)
TIME = datetime.time(0, 2)
DAYS = 18263
SECONDS = DAYS * 86400


def arrow_backed(value, kind):
    return pandas.Series([value] * 4, dtype=pandas.ArrowDtype(kind))


PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"
SECTION = PAGE.read_text(encoding="utf-8").split("\n### Dates and times\n")[1]
SECTION = SECTION.split("\n### ")[0]
# The kinds of columns in the table of the docs, and the cast of each.
CASTS = dict(
    re.findall(r"^\| (.*?) \| `(.*?)` \|", SECTION.split("\n## ")[0], re.M)
)
DATES = "array or list of dates, objects in pandas"
SPANS = "array or list of time spans"
PANDAS, ZONED = "pandas, dates", "pandas, with a time zone"
ARROW32, ARROW64 = "Arrow, `date32` and `time32`", "Arrow, any other"

# The columns, the kind in the docs, and what its cast makes of each value.
COLUMNS = {
    "array": (DATES, numpy.array([MOMENT] * 4, "datetime64[us]"), SECONDS),
    "array of spans": (SPANS, numpy.array([SPAN] * 4, "timedelta64[us]"), 120),
    "list of dates": (DATES, [DATE] * 4, SECONDS),
    "list of moments": (DATES, [MOMENT] * 4, SECONDS),
    "list with time zone": ("list with a time zone", [UTC] * 4, SECONDS),
    "list of times": ("list of times of day", [TIME] * 4, 120),
    "list of spans": (SPANS, [SPAN] * 4, 120),
    "list of NumPy's": (DATES, [numpy.datetime64(DATE)] * 4, SECONDS),
    "list of pandas'": (DATES, [pandas.Timestamp(MOMENT)] * 4, SECONDS),
    "objects": (DATES, pandas.Series([DATE] * 4, dtype=object), SECONDS),
    "series": (PANDAS, pandas.Series([MOMENT] * 4), SECONDS),
    "time zone": (
        ZONED,
        pandas.Series([UTC] * 4).dt.tz_convert("Europe/Berlin"),
        SECONDS,
    ),
    "index": (ZONED, pandas.DatetimeIndex([UTC] * 4), SECONDS),
    "spans": ("pandas, time spans", pandas.Series([SPAN] * 4), 120),
    "periods": (
        "pandas, periods",
        pandas.Series(pandas.PeriodIndex([DATE] * 4, freq="D")),
        DAYS,
    ),
    "date32[pyarrow]": (PANDAS, arrow_backed(DATE, pyarrow.date32()), SECONDS),
    "timestamp[pyarrow]": (
        PANDAS,
        arrow_backed(MOMENT, pyarrow.timestamp("us")),
        SECONDS,
    ),
    "timestamp[tz][pyarrow]": (
        ZONED,
        arrow_backed(UTC, pyarrow.timestamp("us", tz="Asia/Tokyo")),
        SECONDS,
    ),
    "duration[pyarrow]": (
        "pandas, time spans",
        arrow_backed(SPAN, pyarrow.duration("us")),
        120,
    ),
    "time32[pyarrow]": (
        "pandas, `time32` of Arrow",
        arrow_backed(TIME, pyarrow.time32("s")),
        120,
    ),
    "time64[pyarrow]": (
        "pandas, `time64` of Arrow",
        arrow_backed(TIME, pyarrow.time64("us")),
        120 * 10**6,
    ),
    "Arrow date32": (ARROW32, pyarrow.array([DATE] * 4), DAYS),
    "Arrow date64": (
        ARROW64,
        pyarrow.array([DATE] * 4, pyarrow.date64()),
        SECONDS * 1000,
    ),
    "Arrow timestamp": (
        ARROW64,
        pyarrow.array([UTC] * 4, pyarrow.timestamp("s", tz="UTC")),
        SECONDS,
    ),
    "Arrow duration": (
        ARROW64,
        pyarrow.array([SPAN] * 4, pyarrow.duration("s")),
        120,
    ),
    "Arrow time32": (
        ARROW32,
        pyarrow.array([TIME] * 4, pyarrow.time32("s")),
        120,
    ),
    "Arrow time64": (
        ARROW64,
        pyarrow.array([TIME] * 4, pyarrow.time64("us")),
        120 * 10**6,
    ),
    "polars date": ("polars", polars.Series([DATE] * 4), DAYS),
    "polars moment": (
        "polars",
        polars.Series([MOMENT] * 4, dtype=polars.Datetime("ms")),
        SECONDS * 1000,
    ),
    "polars span": (
        "polars",
        polars.Series([SPAN] * 4, dtype=polars.Duration("ms")),
        120 * 1000,
    ),
    "polars time": ("polars", polars.Series([TIME] * 4), 120 * 10**9),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_the_remedy(kind):
    row, column, number = COLUMNS[kind]
    with pytest.raises(TypeError, match="dates or times.*#dates-and-times"):
        full_batches({"day": column}, 4)
    encoded = eval(CASTS[row], {"column": column, "numpy": numpy})
    (batch,) = reading.epoch(full_batches({"day": encoded}, 4))
    assert batch["day"].tolist() == [number] * 4


def test_every_cast_of_the_docs_has_a_column():
    assert set(CASTS) == {row for row, _, _ in COLUMNS.values()}


MISSING = {
    "array": numpy.array([MOMENT, "NaT"], "datetime64[s]"),
    "array of spans": numpy.array([SPAN, "NaT"], "timedelta64[s]"),
    "list": [MOMENT, None],
    "series": pandas.Series([MOMENT, None]),
    "spans": pandas.Series([SPAN, None]),
    "date32[pyarrow]": arrow_backed(None, pyarrow.date32())[:2],
    "Arrow": pyarrow.array([DATE, None]),
    "polars": polars.Series([DATE, None]),
}


@pytest.mark.parametrize("kind", MISSING)
def test_missing_values_come_first(kind):
    """As an integer, NaT would be a very small number."""
    with pytest.raises(ValueError, match=r"data\['day'\].*missing.*Fill"):
        full_batches({"day": MISSING[kind]}, 2)

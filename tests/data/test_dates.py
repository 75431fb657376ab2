"""Columns of dates and times: refused with a remedy that works."""

import datetime
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


# The columns, and the number that the remedy makes of each value.
COLUMNS = {
    "array": (numpy.array([MOMENT] * 4, "datetime64[us]"), SECONDS),
    "array of spans": (numpy.array([SPAN] * 4, "timedelta64[us]"), 120),
    "list of dates": ([DATE] * 4, SECONDS),
    "list of moments": ([MOMENT] * 4, SECONDS),
    "list with time zone": ([UTC] * 4, SECONDS),
    "list of times": ([TIME] * 4, 120),
    "list of spans": ([SPAN] * 4, 120),
    "list of NumPy's": ([numpy.datetime64(DATE)] * 4, SECONDS),
    "list of pandas'": ([pandas.Timestamp(MOMENT)] * 4, SECONDS),
    "objects": (pandas.Series([DATE] * 4, dtype=object), SECONDS),
    "series": (pandas.Series([MOMENT] * 4), SECONDS),
    "time zone": (
        pandas.Series([UTC] * 4).dt.tz_convert("Europe/Berlin"),
        SECONDS,
    ),
    "index": (pandas.DatetimeIndex([UTC] * 4), SECONDS),
    "spans": (pandas.Series([SPAN] * 4), 120),
    "periods": (pandas.Series(pandas.PeriodIndex([DATE] * 4, freq="D")), DAYS),
    "date32[pyarrow]": (arrow_backed(DATE, pyarrow.date32()), SECONDS),
    "timestamp[pyarrow]": (
        arrow_backed(MOMENT, pyarrow.timestamp("us")),
        SECONDS,
    ),
    "timestamp[tz][pyarrow]": (
        arrow_backed(UTC, pyarrow.timestamp("us", tz="Asia/Tokyo")),
        SECONDS,
    ),
    "duration[pyarrow]": (arrow_backed(SPAN, pyarrow.duration("us")), 120),
    "time32[pyarrow]": (arrow_backed(TIME, pyarrow.time32("s")), 120),
    "time64[pyarrow]": (arrow_backed(TIME, pyarrow.time64("us")), 120 * 10**6),
    "Arrow date32": (pyarrow.array([DATE] * 4), DAYS),
    "Arrow date64": (
        pyarrow.array([DATE] * 4, pyarrow.date64()),
        SECONDS * 1000,
    ),
    "Arrow timestamp": (
        pyarrow.array([UTC] * 4, pyarrow.timestamp("s", tz="UTC")),
        SECONDS,
    ),
    "Arrow duration": (pyarrow.array([SPAN] * 4, pyarrow.duration("s")), 120),
    "Arrow time32": (pyarrow.array([TIME] * 4, pyarrow.time32("s")), 120),
    "Arrow time64": (
        pyarrow.array([TIME] * 4, pyarrow.time64("us")),
        120 * 10**6,
    ),
    "polars date": (polars.Series([DATE] * 4), DAYS),
    "polars moment": (
        polars.Series([MOMENT] * 4, dtype=polars.Datetime("ms")),
        SECONDS * 1000,
    ),
    "polars span": (
        polars.Series([SPAN] * 4, dtype=polars.Duration("ms")),
        120 * 1000,
    ),
    "polars time": (polars.Series([TIME] * 4), 120 * 10**9),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_the_remedy(kind):
    column, number = COLUMNS[kind]
    with pytest.raises(TypeError, match="dates or times") as caught:
        full_batches({"day": column}, 4)
    found = re.search("as in `(.*?)`", str(caught.value))
    encoded = eval(found.group(1), {"column": column, "numpy": numpy})
    (batch,) = reading.epoch(full_batches({"day": encoded}, 4))
    assert batch["day"].tolist() == [number] * 4


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

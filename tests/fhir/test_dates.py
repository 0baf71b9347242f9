"""Dates that are known in part."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from django_smart.fhir.dates import parse_date


@pytest.mark.parametrize(
    ("value", "first_day", "has_time"),
    [
        ("1957", date(1957, 1, 1), False),
        ("1957-08", date(1957, 8, 1), False),
        ("1957-08-03", date(1957, 8, 3), False),
        ("2021-10-06T23:52:52.847-04:00", date(2021, 10, 6), True),
        ("2021-10-06T23:52:52Z", date(2021, 10, 6), True),
        ("2021-10-06T25:00:00Z", date(2021, 10, 6), False),
        (datetime(2021, 10, 6, 23, tzinfo=UTC), date(2021, 10, 6), True),
        (date(2021, 10, 6), date(2021, 10, 6), False),
    ],
)
def test_date_is_as_precise_as_it_was_written(value, first_day, has_time):
    found = parse_date(value)
    assert found is not None
    assert found.first_day == first_day
    assert str(found) == found.iso == str(value)[:10]
    assert found.is_day is (len(str(value)) >= 10)
    assert (found.moment is not None) is has_time


@pytest.mark.parametrize(
    "value",
    [
        *(None, 1957, "", "57", "1957-13", "1957-00", "2021-02-30", "2021-02-00"),
        *("1957-08-03 10:00", "０２００", "0000", "1957-08-03T", [], {}),
    ],
)
def test_what_is_no_date_is_none(value):
    assert parse_date(value) is None


@pytest.mark.parametrize(
    ("value", "is_before"),
    [
        *(("2020", True), ("2021", False), ("2021-02", True), ("2021-03", False)),
        *(("2021-03-03", True), ("2021-03-04", False), ("2022", False)),
    ],
)
def test_date_is_before_a_day_if_all_of_it_is(value, is_before):
    found = parse_date(value)
    assert found is not None
    assert found.is_before(date(2021, 3, 4)) is is_before

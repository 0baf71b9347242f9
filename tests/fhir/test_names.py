"""Names in words, whatever a server sends for them."""

from __future__ import annotations

from datetime import date

import pytest

from django_smart.fhir.names import get_name


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([{"family": "Lu", "given": ["Xiuying"]}], "Xiuying Lu"),
        ([{"prefix": ["Dr"], "given": ["A", "B"], "suffix": ["MD"]}], "Dr A B MD"),
        ([{"text": " Ada \n Lovelace ", "family": "other"}], "Ada Lovelace"),
        ([{"use": "old", "text": "Old"}, {"text": "New"}], "New"),
        ([{"use": "usual", "text": "Usual"}, {"use": "official"}], "Usual"),
        ([{"use": "usual", "text": "U"}, {"use": "official", "text": "O"}], "O"),
        ([{"use": "maiden", "text": "Only"}], "Only"),
        ([], ""),
        (None, ""),
        ("Ada", ""),
        (["Ada", {"family": 5, "given": "Ada", "use": ["x"], "text": {}}], ""),
    ],
)
def test_the_best_name_is_taken_and_odd_values_are_left_out(names, expected):
    assert get_name({"name": names}) == expected
    assert get_name({}) == ""


@pytest.mark.parametrize(
    ("end", "expected"),
    [("2001", "Now"), ("2026-03-03", "Now"), ("2026-03-04", "Then"), ("2026", "Then")],
)
def test_name_whose_time_is_over_comes_last(end, expected):
    names = [
        {"use": "official", "family": "Then", "period": {"end": end}},
        {"use": "usual", "family": "Now"},
    ]
    assert get_name({"name": names}, today=date(2026, 3, 4)) == expected
    assert get_name({"name": names}) == "Then"
    assert get_name({"name": names[:1]}, today=date(2026, 3, 4)) == "Then"

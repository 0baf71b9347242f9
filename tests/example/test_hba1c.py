"""From Observations to the chart and the table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from example_project.hba1c import build_series, search_parameters


def observation(date="2021-10-06", value=7.0, unit="%", **more):
    resource = {
        "resourceType": "Observation",
        "status": "final",
        "effectiveDateTime": date,
        "valueQuantity": {"value": value, "unit": unit},
    }
    return {**resource, **more}


def test_the_search_is_the_one_of_the_specification():
    assert search_parameters("87a339d0") == [
        ("code", "4548-4"),
        ("_sort:desc", "date"),
        ("_count", "10"),
        ("patient", "87a339d0"),
    ]


def test_the_table_is_newest_first_and_the_chart_oldest_first():
    series = build_series(
        [observation("2020-01-01", 8), observation("2022"), observation("2021-06-01")]
    )
    assert [str(result.date) for result in series.results] == [
        "2022",
        "2021-06-01",
        "2020-01-01",
    ]
    assert [point["date"] for point in series.chart_data()["points"]] == [
        "Jan. 1, 2020",
        "June 1, 2021",
        "2022",
    ]
    assert series.chart_data()["points"][0]["x"] == 1_577_836_800_000


def test_all_values_have_the_same_decimals():
    series = build_series([observation(value=7), observation(value=6.85)])
    assert {
        r.text.replace("\N{NARROW NO-BREAK SPACE}", " ") for r in series.results
    } == {
        "7.00 %",
        "6.85 %",
    }


@pytest.mark.parametrize(
    ("before", "latest", "text"),
    [
        (7.3, 7.0, "down 0.3 points"),
        (7.0, 7.3, "up 0.3 points"),
        (7.0, 7.0, "unchanged"),
    ],
)
def test_the_change_is_told_in_words(before, latest, text):
    series = build_series(
        [observation("2021-01-01", before), observation("2022-01-01", latest)]
    )
    assert series.change == text


def test_one_result_has_no_change():
    assert build_series([observation()]).change == ""


def test_lowest_and_highest_are_found():
    series = build_series(
        [observation(value=value) for value in (7.0, 9.1, 6.2)],
    )
    assert series.lowest is not None
    assert series.highest is not None
    assert (series.lowest.value, series.highest.value) == (6.2, 9.1)


@pytest.mark.parametrize("status", ["entered-in-error", "cancelled", "registered"])
def test_what_is_no_result_is_counted_and_left_out(status):
    series = build_series([observation(), observation(value=70, status=status)])
    assert [result.value for result in series.results] == [7.0]
    assert series.withdrawn == 1


def test_another_unit_is_in_the_table_and_not_in_the_chart():
    series = build_series(
        [observation("2022"), observation("2021", 53, "mmol/mol"), observation("2020")]
    )
    assert len(series.results) == 3
    assert [result.unit for result in series.drawn] == ["%", "%"]
    assert series.left_out == 1


def test_a_result_without_number_or_date_says_so():
    absent = observation("2021-05", dataAbsentReason={"text": "Sample clotted"})
    del absent["valueQuantity"]
    undated = observation(value=6.0)
    del undated["effectiveDateTime"]
    series = build_series([absent, undated, observation(status="preliminary")])
    assert [result.note for result in series.results] == [
        "preliminary",
        "Sample clotted",
        "",
    ]
    assert series.results[-1].date is None
    assert series.left_out == 2


def test_what_changes_the_meaning_of_a_result_is_noted():
    odd = observation(status="amended", modifierExtension=[{"url": "urn:not"}])
    [result] = build_series([odd]).results
    assert "amended" in result.note
    assert "extension" in result.note


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"effectiveDateTime": None, "effectiveInstant": "2021-10-06T10:00:00Z"}, ""),
        ({"effectiveDateTime": None, "effectivePeriod": {"start": "2021-10-06"}}, ""),
        ({"effectiveDateTime": None, "issued": "2021-10-06T10:00:00Z"}, ""),
    ],
)
def test_every_form_of_time_is_read(more, text):
    assert str(build_series([observation(**more)]).results[0].date) == "2021-10-06"


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (
            {"low": {"value": 4, "unit": "%"}, "high": {"value": 6, "unit": "%"}},
            "4 to 6 %",
        ),
        ({"high": {"value": 5.7, "unit": "%"}}, "up to 5.7 %"),
        ({"low": {"value": 4, "unit": "%"}}, "from 4 %"),
        ({"high": {"value": 42, "unit": "mmol/mol"}}, ""),
        ({"text": "normal"}, ""),
    ],
)
def test_the_reference_range_is_the_laboratorys(limits, text):
    series = build_series([observation(referenceRange=[limits])])
    assert series.range_text == text


def test_a_comparator_is_kept():
    quantity = {"value": 14, "unit": "%", "comparator": ">"}
    result = build_series([observation(valueQuantity=quantity)]).results[0]
    assert result.text.startswith(">14")


@pytest.mark.parametrize("value", [True, "7.0", None, [], {}])
def test_a_value_that_is_no_number_is_none(value):
    assert build_series([observation(value=value)]).results[0].value is None


@pytest.mark.parametrize(
    "more",
    [
        {"valueQuantity": None, "valueString": ">14.0 %"},
        {"valueQuantity": {"value": ">14.0", "unit": "%"}, "status": "amended"},
        {"valueQuantity": None, "valueCodeableConcept": {"text": ">14.0 %"}},
    ],
)
def test_a_value_in_words_is_shown_and_not_drawn(more):
    series = build_series([observation(**more)])
    [result] = series.results
    assert (result.text, result.value) == (">14.0 %", None)
    assert result.note == more.get("status", "")
    assert series.left_out == 1


def test_a_value_that_is_missing_says_so():
    [result] = build_series([observation(valueQuantity=None)]).results
    assert (result.text, result.note) == ("", "no value given")


def test_no_observations_give_an_empty_series():
    series = build_series([{"resourceType": "OperationOutcome"}])
    assert (series.results, series.latest, series.lowest) == ([], None, None)
    assert series.chart_data()["points"] == []


@given(
    st.lists(
        st.fixed_dictionaries(
            {"resourceType": st.just("Observation")},
            optional={
                "status": st.sampled_from(["final", "amended", 7, None]),
                "effectiveDateTime": st.sampled_from(["2020", "2020-13", 5, {}]),
                "effectivePeriod": st.sampled_from([{"start": []}, [], "2020"]),
                "valueQuantity": st.fixed_dictionaries(
                    {},
                    optional={
                        "value": st.floats() | st.integers() | st.text(max_size=3),
                        "unit": st.sampled_from(["%", 5, None]),
                        "comparator": st.sampled_from(["<", "~", []]),
                    },
                ),
                "referenceRange": st.sampled_from(
                    [[], {}, [5], [{"low": 5}], [{"high": {"value": 6, "unit": "%"}}]]
                ),
                "dataAbsentReason": st.sampled_from([{}, [], "x"]),
            },
        ),
        max_size=5,
    )
)
def test_odd_observations_never_raise(observations):
    series = build_series(observations)
    series.chart_data()
    assert series.left_out >= 0
    assert isinstance(series.change, str)

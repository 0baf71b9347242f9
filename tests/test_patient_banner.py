"""``{% patient_banner %}``: who the patient is, where the EHR does not show it."""

from __future__ import annotations

from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.template import Context, Template, TemplateSyntaxError

from django_smart.templatetags.smart import build_patient_facts

TODAY = date(2026, 3, 4)
ADA = {
    "resourceType": "Patient",
    "id": "p-1",
    "name": [{"given": ["Ada"], "family": "<Byron>"}],
    "birthDate": "1957-08-03",
    "gender": "female",
    "identifier": [
        {"value": "1"},
        {"use": "old", "type": {"coding": [{"code": "MR"}]}, "value": "old"},
        {"type": {"coding": [{"code": "SS"}, {"code": "MR"}]}, "value": "HB-2"},
    ],
}


def render(patient: Any, needed: Any = True, arguments: str = "") -> str:
    template = Template(
        "{% load smart %}{% patient_banner patient " + arguments + " %}"
    )
    request: Any = SimpleNamespace(smart=SimpleNamespace(need_patient_banner=needed))
    return template.render(Context({"patient": patient, "request": request}))


def test_banner_tells_who_the_patient_is():
    page = render(ADA)
    assert '<h2 class="smart-banner-name" data-patient-id="p-1">' in page
    assert "Ada &lt;Byron&gt;</h2>" in page
    assert '<time datetime="1957-08-03">Aug. 3, 1957</time>' in page
    assert "Female" in page
    assert "HB-2" in page
    assert "Died" not in page


@pytest.mark.compliance("RESP-13")
@pytest.mark.parametrize(
    ("needed", "is_shown"), [(True, True), (None, True), (False, False)]
)
def test_banner_is_left_out_only_if_the_ehr_says_so(needed, is_shown):
    assert bool(render(ADA, needed).strip()) is is_shown


def test_banner_is_there_where_nothing_is_known_of_the_launch():
    class Unknown:
        @property
        def smart(self) -> Any:
            raise SynchronousOnlyOperation

    template = Template("{% load smart %}{% patient_banner patient %}")
    assert "Byron" in template.render(Context({"patient": ADA}))
    context = Context({"patient": ADA, "request": Unknown()})
    assert "Byron" in template.render(context)


def test_heading_has_the_level_that_the_page_wants():
    assert "<h1 class=" in render(ADA, arguments="heading=1")
    with pytest.raises(TemplateSyntaxError):
        render(ADA, arguments="heading=7")


@pytest.mark.parametrize("patient", [None, {}, "Ada", []])
def test_patient_of_whom_nothing_is_known_is_shown_as_that(patient):
    assert "Name unknown" in render(patient)
    assert read_mrn(render(patient)) == "unknown"


def read_mrn(page: str) -> str:
    return page.partition("MRN</abbr></dt><dd>")[2].partition("</dd>")[0]


@pytest.mark.parametrize(
    ("identifier", "mrn"),
    [
        (ADA["identifier"], "HB-2"),
        ([], "none"),
        ([{"value": "1"}], "none"),
        ([{"type": {"text": "MR"}, "value": "2"}], "none"),
        ([{"type": {"coding": [{"code": "SS"}]}, "value": "1"}], "none"),
        ([{"type": {"coding": [{"code": "MR"}]}, "value": 7}], "unknown"),
        ([{"type": {"coding": [{"code": "MR"}]}}], "unknown"),
        ([{"type": {"coding": {"code": "MR"}}, "value": "1"}], "unknown"),
        ([{"type": {"coding": ["MR"]}, "value": "1"}], "unknown"),
        ([{"type": {"coding": None}, "value": "1"}], "none"),
        ("HB-2", "unknown"),
        ([7], "unknown"),
    ],
)
def test_number_that_cannot_be_read_is_unknown(identifier, mrn):
    assert read_mrn(render({**ADA, "identifier": identifier})) == mrn
    without = {name: value for name, value in ADA.items() if name != "identifier"}
    assert read_mrn(render(without)) == "none"


@pytest.mark.parametrize(
    ("more", "died", "age"),
    [
        ({}, False, "68 years"),
        ({"deceasedBoolean": False}, False, "68 years"),
        ({"deceasedBoolean": True}, True, ""),
        ({"deceasedDateTime": "2000-08-03"}, "2000-08-03", "43 years"),
        ({"deceasedDateTime": "2000"}, "2000", "about 42 years"),
        ({"deceasedDateTime": "last spring"}, True, ""),
        ({"deceasedDateTime": "2000-13-45"}, True, ""),
        ({"deceasedDateTime": "x", "deceasedBoolean": False}, True, ""),
        ({"deceasedDateTime": " "}, False, "68 years"),
        ({"deceasedDateTime": None}, False, "68 years"),
        ({"deceasedDateTime": 2000}, True, ""),
        ({"deceasedDateTime": ["2000"]}, True, ""),
        ({"_deceasedDateTime": {"extension": [{"valueCode": "unknown"}]}}, True, ""),
        (
            {"deceasedDateTime": "2000", "_deceasedDateTime": {"id": "d"}},
            "2000",
            "about 42 years",
        ),
    ],
)
def test_who_died_grows_no_older(more, died, age):
    facts = build_patient_facts({**ADA, **more}, today=TODAY)
    assert facts["age"] == age
    assert facts["died"] is died or str(facts["died"]) == died
    page = render({**ADA, **more})
    assert ("Died" in page) is (died is not False)
    assert ("date unknown" in page) is (died is True)


@pytest.mark.parametrize(
    ("born", "age"),
    [
        ("1957-08-03", "68 years"),
        ("1957-03-04", "69 years"),
        ("2024-03-05", "23 months"),
        ("2024-03-04", "2 years"),
        ("2026-02-04", "1 month"),
        ("2026-03-04", "0 months"),
        ("1957", "about 69 years"),
        ("2026-03-05", ""),
        ("", ""),
    ],
)
def test_age_counts_birthdays(born, age):
    assert build_patient_facts({"birthDate": born}, today=TODAY)["age"] == age


@pytest.mark.parametrize("odd", [None, 7, "x", [], {}, [7], [{"type": 7}], True])
def test_odd_values_are_left_out(odd):
    names = ("id", "name", "birthDate", "gender", "identifier", "deceasedDateTime")
    facts = build_patient_facts(dict.fromkeys(names, odd), today=TODAY)
    assert facts == {
        "patient_id": "x" if odd == "x" else "",
        "name": "",
        "birth_date": None,
        "age": "",
        "sex": "",
        "mrn": "" if odd in (None, []) else None,
        "died": bool(odd),
    }

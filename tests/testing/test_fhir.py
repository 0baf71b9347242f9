"""The FHIR API: who may see what, and searches."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from django_smart.testing import EHRSimulator
from tests.testing.app import OTHER_PATIENT, PATIENT, App, register

A1C = "Observation?code=4548-4"


def ids(response: requests.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [one["resource"]["id"] for one in response.json().get("entry", [])]


def total(response: requests.Response) -> int:
    assert response.status_code == 200, response.text
    return int(response.json()["total"])


@pytest.fixture
def clinician(app: App) -> dict[str, Any]:
    """Tokens that see everything."""
    return app.launch("user/*.rs")


@pytest.mark.compliance("FHIR-01", "FHIR-04")
def test_bearer_is_needed(app: App) -> None:
    response = app.get(f"Patient/{PATIENT}")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="fhir"'
    assert response.json()["resourceType"] == "OperationOutcome"
    for header in ("Bearer unknown", "Basic abc", "Bearer"):
        wrong = app.get(f"Patient/{PATIENT}", headers={"Authorization": header})
        assert wrong.status_code == 401
        assert "invalid_token" in wrong.headers["WWW-Authenticate"]


def test_read_gives_the_resource_with_its_version(app: App) -> None:
    tokens = app.launch()
    response = app.get(f"Patient/{PATIENT}", tokens)
    assert response.headers["Content-Type"].startswith("application/fhir+json")
    assert response.headers["ETag"] == 'W/"1"'
    assert response.json()["id"] == PATIENT
    assert app.get("Patient/unknown", tokens).status_code == 404
    (recorded, _) = app.ehr.requests_to("fhir")
    assert (recorded.patient, recorded.status) == (PATIENT, 200)


def test_unknown_type_is_404(app: App, clinician: dict[str, Any]) -> None:
    assert app.get("Gadget/1", clinician).status_code == 404
    assert app.get("Gadget", clinician).status_code == 404


@pytest.mark.compliance("FHIR-04", "SCOPE-12")
def test_patient_scope_stays_in_one_record(app: App) -> None:
    tokens = app.launch()
    assert app.get(f"Patient/{OTHER_PATIENT}", tokens).status_code == 403
    assert ids(app.get("Patient", tokens)) == [PATIENT]
    assert app.get(f"Patient?_id={OTHER_PATIENT}", tokens).status_code == 403
    own = total(app.get(f"{A1C}&patient={PATIENT}", tokens))
    assert total(app.get(A1C, tokens)) == own == 11
    for query in (
        f"patient={OTHER_PATIENT}",
        f"subject=Patient/{OTHER_PATIENT}",
        f"patient={PATIENT},{OTHER_PATIENT}",
    ):
        response = app.get(f"Observation?{query}", tokens)
        assert response.status_code == 403
        assert "insufficient_scope" in response.headers["WWW-Authenticate"]


def test_scope_of_the_type_and_letter_is_needed(app: App) -> None:
    tokens = app.launch("launch/patient patient/Observation.s patient/Patient.r")
    assert app.get("Condition", tokens).status_code == 403
    assert app.get("Patient", tokens).status_code == 403
    (first, *_) = ids(app.get("Observation", tokens))
    assert app.get(f"Observation/{first}", tokens).status_code == 403


@pytest.mark.compliance("SCOPE-04")
def test_v1_scopes_work(app: App) -> None:
    tokens = app.launch("launch/patient patient/*.read")
    assert app.get(f"Patient/{PATIENT}", tokens).status_code == 200
    assert total(app.get("AllergyIntolerance", tokens)) == 1
    # What the record refers to is readable along with it.
    assert total(app.get("Practitioner", tokens)) == 2


@pytest.mark.compliance("SCOPE-08", "SCOPE-10")
def test_scope_with_a_query_shows_only_what_it_selects(app: App) -> None:
    system = "http://terminology.hl7.org/CodeSystem/observation-category"
    tokens = app.launch(
        f"launch/patient patient/Observation.rs?category={system}|laboratory"
    )
    assert total(app.get("Observation", tokens)) == 11
    assert total(app.get("Observation?category=vital-signs", tokens)) == 0


def test_scope_with_an_unknown_parameter_is_told(app: App) -> None:
    tokens = app.launch("launch/patient patient/Observation.rs?shoe-size=44")
    assert app.get("Observation", tokens).status_code == 400


def test_user_scope_of_a_patient_is_their_own_record(app: App) -> None:
    tokens = app.launch("user/*.rs", user=f"Patient/{PATIENT}")
    assert ids(app.get("Patient", tokens)) == [PATIENT]
    assert app.get(f"Patient/{OTHER_PATIENT}", tokens).status_code == 403


def test_no_patient_in_context_shows_nothing(app: App) -> None:
    launch_id = app.ehr.create_launch(app.client.client_id, patient=None)
    url = app.authorization_url(scope="launch patient/Patient.rs", launch=launch_id)
    code = app.ehr.authorize(url).partition("code=")[2].partition("&")[0]
    tokens = app.exchange(code).json()
    assert "patient" not in tokens
    assert ids(app.get("Patient", tokens)) == []


@pytest.mark.compliance("FHIR-05")
def test_the_search_of_the_specification_pages_outside_the_base() -> None:
    ehr = EHRSimulator(
        "https://ehr.example.org/v/r4/sim/b/fhir", page_path="/v/r4/fhir"
    )
    with requests.Session() as session:
        session.mount("https://", ehr.adapter())
        app = App(ehr, session)
        tokens = app.launch()
        query = f"code=4548-4&_sort%3Adesc=date&_count=10&patient={PATIENT}"
        first = app.get(f"Observation?{query}", tokens).json()
        assert (first["type"], first["total"], len(first["entry"])) == (
            "searchset",
            11,
            10,
        )
        dates = [one["resource"]["effectiveDateTime"] for one in first["entry"]]
        assert dates == sorted(dates, reverse=True)
        links = {one["relation"]: one["url"] for one in first["link"]}
        assert links["self"].startswith(
            "https://ehr.example.org/v/r4/fhir/Observation?"
        )
        assert links["next"].startswith("https://ehr.example.org/v/r4/fhir?_getpages=")
        assert app.get(links["next"]).status_code == 401
        second = app.get(links["next"], tokens).json()
        assert [one["relation"] for one in second["link"]] == ["self"]
        assert len(second["entry"]) == 1
        assert second["entry"][0]["resource"]["effectiveDateTime"] < dates[-1]


def test_pages_stand_below_the_base_by_default(app: App) -> None:
    tokens = app.launch("launch/patient patient/Patient.rs patient/*.rs offline_access")
    first = app.get("Observation?_count=20", tokens).json()
    (url,) = (one["url"] for one in first["link"] if one["relation"] == "next")
    assert url.startswith(f"{app.ehr.base_url}?_getpages=")
    # A refreshed token reads on, another authorization does not.
    fresh = app.refresh(tokens["refresh_token"]).json()
    assert len(ids(app.get(url, fresh))) == 20
    assert app.get(url, app.launch()).status_code == 403
    wrong = app.get(f"{app.ehr.base_url}?_getpages=unknown", tokens)
    assert wrong.status_code == 404


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("name=quill", 1),
        ("name=LOVENSKIOLD", 0),  # ø is a letter of its own
        ("name=ibanez", 1),
        ("name:exact=Kofi", 1),
        ("name:exact=kofi", 0),
        ("name:contains=shaugh", 1),
        ("family=wolde,lu", 2),
        ("given=ruth", 1),
        ("gender=female", 5),
        ("gender:not=female", 3),
        ("birthdate=1967-04-19", 1),
        ("birthdate=1967", 1),
        ("birthdate=1967-04", 1),
        ("birthdate=ge1990", 2),
        ("birthdate=lt1950-01-01", 1),
        ("birthdate=gt1995-09-15", 1),
        ("birthdate=le1941", 1),
        ("birthdate=sa2000", 1),
        ("birthdate=eb1950", 1),
        ("birthdate=ne1967-04-19", 7),
        ("birthdate=ap1967-04-20", 1),
        ("identifier=HH-100482", 1),
        ("identifier=https://harbour.example.org/mrn|HH-100482", 1),
        ("identifier=https://harbour.example.org/mrn|", 8),
        ("identifier=https://other.example.org|HH-100482", 0),
        ("identifier=|HH-100482", 0),
        ("address=saltmarsh", 3),
        ("phone=555-555-0114", 1),
        (f"_id={PATIENT},{OTHER_PATIENT}", 2),
        ("phone:missing=true", 0),
        ("phone:missing=false", 8),
        ("_lastUpdated=gt2020", 8),
        ("", 8),
    ],
)
def test_patients_are_found(
    app: App, clinician: dict[str, Any], query: str, expected: int
) -> None:
    assert total(app.get(f"Patient?{query}", clinician)) == expected


@pytest.mark.parametrize(
    "query",
    [
        "code=4548-4",
        "code=http://loinc.org|4548-4",
        "code=1-1,4548-4",
        "category=laboratory",
        "code=4548-4&status=final",
        "code=4548-4&date=ge2022",
        "code=4548-4&date=ge2022-01-01T00:00:00%2B00:00",
    ],
)
def test_observations_are_found(
    app: App, clinician: dict[str, Any], query: str
) -> None:
    for subject in (
        f"patient={PATIENT}",
        f"patient=Patient/{PATIENT}",
        f"subject=Patient/{PATIENT}",
        f"subject:Patient={PATIENT}",
        f"patient={app.ehr.base_url}/Patient/{PATIENT}",
    ):
        assert total(app.get(f"Observation?{query}&{subject}", clinician)) == 11


def test_references_and_periods_are_searched(
    app: App, clinician: dict[str, Any]
) -> None:
    visits = ids(app.get(f"Encounter?patient={PATIENT}&_sort=-date", clinician))
    found = total(app.get(f"Observation?encounter={visits[0]}", clinician))
    assert found == 4
    assert total(app.get("Observation?subject=Practitioner/1", clinician)) == 0
    early = app.get(f"Encounter?patient={PATIENT}&date=lt2022-06-01", clinician)
    assert total(early) == 1
    assert total(app.get("Encounter?date=ne2022-06-01&_count=0", clinician)) == 80
    open_end = {**app.ehr.data["Encounter"][visits[0]], "period": {"start": "2022"}}
    app.ehr.data["Encounter"][visits[0]] = open_end
    late = app.get(f"Encounter?patient={PATIENT}&date=gt2030", clinician)
    assert ids(late) == [visits[0]]


def test_patient_means_a_patient(app: App, clinician: dict[str, Any]) -> None:
    one = next(iter(app.ehr.data["Observation"].values()))
    one["subject"] = {"reference": f"Group/{PATIENT}"}
    query = f"Observation?_id={one['id']}"
    assert total(app.get(f"{query}&patient={PATIENT}", clinician)) == 0
    assert total(app.get(f"{query}&subject={PATIENT}", clinician)) == 1


def test_search_by_post(app: App, clinician: dict[str, Any]) -> None:
    data = {"name": "quill"}
    response = app.send("POST", "Patient/_search", clinician, data=data)
    assert ids(response) == [PATIENT]


def test_sorting(app: App, clinician: dict[str, Any]) -> None:
    first = ids(app.get("Patient?_sort=birthdate", clinician))
    assert first == list(reversed(ids(app.get("Patient?_sort=-birthdate", clinician))))
    by_gender = app.get("Patient?_sort=gender,-birthdate", clinician).json()["entry"]
    genders = [one["resource"]["gender"] for one in by_gender]
    assert genders == sorted(genders)
    assert ids(app.get("Patient?_sort:asc=birthdate", clinician)) == first
    assert app.get("Patient?_sort=shoe-size", clinician).status_code == 400
    assert len(ids(app.get("Observation?_sort=-encounter", clinician))) == 50


def test_count_zero_gives_the_total_alone(app: App, clinician: dict[str, Any]) -> None:
    bundle = app.get("Patient?_count=0", clinician).json()
    assert bundle["total"] == 8
    assert "entry" not in bundle
    assert [one["relation"] for one in bundle["link"]] == ["self"]


@pytest.mark.parametrize(
    "query",
    [
        "shoe-size=44",
        "name:regex=a",
        "_id:exact=1",
        "birthdate:above=2000",
        "birthdate=soon",
        "_count=-1",
        "_count=x",
    ],
)
def test_what_cannot_be_searched_is_refused(
    app: App, clinician: dict[str, Any], query: str
) -> None:
    response = app.get(f"Patient?{query}", clinician)
    assert response.status_code == 400
    assert response.json()["issue"][0]["diagnostics"]


def test_lenient_handling_ignores_what_is_unknown(
    app: App, clinician: dict[str, Any]
) -> None:
    prefer = {"Prefer": "handling=lenient"}
    response = app.get("Patient?shoe-size=44", clinician, headers=prefer)
    assert total(response) == 8


def test_sort_key_of_something_absent_comes_first(
    app: App, clinician: dict[str, Any]
) -> None:
    del app.ehr.data["Patient"][OTHER_PATIENT]["birthDate"]
    assert ids(app.get("Patient?_sort=birthdate", clinician))[0] == OTHER_PATIENT


def test_registered_scope_limits_the_api_too(app: App) -> None:
    register(app.ehr, scope="launch/patient patient/Patient.r")
    tokens = app.launch("launch/patient patient/Patient.r patient/Observation.rs")
    assert app.get("Observation", tokens).status_code == 403


def test_file_of_an_unknown_export_is_not_found(ehr: EHRSimulator, app: App) -> None:
    ehr.bulk.requires_access_token = False
    url = f"{ehr.base_url}/bulk/unknown/0.ndjson"
    assert app.session.get(url).status_code == 404

"""The recipes, and the views of pages with a block or two."""

from __future__ import annotations

from typing import Any

import pytest
from django.urls import include, path
from django.utils import timezone

from django_smart.models import Identity, Launch, TokenGrant
from django_smart.testing import EHRSimulator
from tests.docs.blocks import do, execute, read_blocks
from tests.ehr import PATIENT, launch, make_browser
from tests.factories import (
    make_grant,
    make_identity,
    make_launch,
    make_registration,
    make_user,
)

pytestmark = pytest.mark.django_db
_HOSPITALS = "how-to/connect-many-hospitals.rst"
SCOPE = "launch openid fhirUser patient/*.cruds user/Patient.s"


@pytest.fixture
def page(put_urls: Any, put_templates: Any) -> dict[str, Any]:
    """The site of the page: its views are at their names."""
    blocks = [
        *read_blocks("how-to/cookbook.rst"),
        *read_blocks("how-to/writing.rst"),
        *read_blocks("how-to/search.rst", "Errors"),
        *read_blocks("index.rst"),
    ]
    names = execute(*(each for each in blocks if each.language == "python"))
    views = ("overview", "a1c_points", "medications", "find_patient")
    others = ("weight", "problems", "a1c")
    put_urls(
        [
            *(path(f"{name}/", names[name]) for name in (*views, *others)),
            path("smart/", include("django_smart.urls")),
        ]
    )
    (overview,) = (each.code for each in blocks if each.language == "html+django")
    put_templates(
        overview=overview,
        weight="{{ form }}",
        a1c="{{ results|length }} results",
    )
    return names


@pytest.fixture
def wide(page: dict[str, Any], ehr: EHRSimulator) -> None:
    """The registration asks for what all views need."""
    make_registration(ehr_scope=SCOPE)


def get(browser: Any, row: Launch, name: str, **values: str) -> Any:
    return browser.get(f"/~{row.key}/{name}/", values)


@pytest.mark.usefixtures("wide")
def test_views_show_what_the_record_has(ehr: EHRSimulator) -> None:
    browser = make_browser()
    row = launch(browser, ehr)
    overview = get(browser, row, "overview").content.decode()
    assert "smart-banner-name" in overview
    assert "(Active" in overview or "(active" in overview
    points = get(browser, row, "a1c_points").json()["points"]
    assert len(points) > 10
    assert all(each["value"] > 3 for each in points)
    assert get(browser, row, "medications").json()["medications"]
    assert get(browser, row, "problems").json()["conditions"]
    assert "results" in get(browser, row, "a1c").content.decode()


@pytest.mark.usefixtures("wide")
def test_failure_of_the_ehr_is_no_empty_list(ehr: EHRSimulator) -> None:
    browser = make_browser()
    row = launch(browser, ehr)
    ehr.faults = ["fhir_503"]
    answer = get(browser, row, "problems").json()
    assert answer["conditions"] is None
    assert answer["error"]


@pytest.mark.usefixtures("wide")
def test_form_writes_once(ehr: EHRSimulator) -> None:
    browser = make_browser()
    row = launch(browser, ehr)
    before = len(ehr.data["Observation"])
    url = f"/~{row.key}/weight/"
    assert "kilograms" in browser.get(url).content.decode()
    assert browser.post(url, {"kilograms": "-1"}).status_code == 200
    assert len(ehr.data["Observation"]) == before
    assert browser.post(url, {"kilograms": "71.5"}).status_code == 302
    assert len(ehr.data["Observation"]) == before + 1


@pytest.mark.usefixtures("wide")
def test_patients_are_found_by_name(ehr: EHRSimulator) -> None:
    browser = make_browser()
    row = launch(browser, ehr)
    family = ehr.data["Patient"][PATIENT]["name"][0]["family"]
    (found,) = get(browser, row, "find_patient", q=family).json()["patients"]
    assert (found["id"], family in found["name"]) == (PATIENT, True)
    assert get(browser, row, "find_patient", q="a").json() == {"patients": []}


def test_tenants_of_the_page_have_addresses_of_their_own(monkeypatch: Any) -> None:
    (console,) = read_blocks(_HOSPITALS, "Tell the organizations apart")
    for name in ("NORTH_SECRET", "SOUTH_SECRET"):
        monkeypatch.setenv(name, "from the vendor")
    printed = [do([*words, "--offline"]).json for words in console.commands]
    assert [each["redirect_uri"].partition("/smart/")[0] for each in printed] == [
        "https://north.example.org",
        "https://south.example.org",
    ]
    assert len({each["redirect_uri"].partition("/smart/")[2] for each in printed}) == 2


@pytest.mark.usefixtures("registration")
def test_what_is_stored_of_a_patient_is_deleted_once_revoked(
    ehr: EHRSimulator,
) -> None:
    row = launch(make_browser(), ehr)
    (block,) = read_blocks("explanation/security-questionnaire.rst")
    names = execute(block)
    with pytest.raises(ValueError, match="Revoke"):
        names["delete_patient"](row.registration.server, PATIENT)
    # As after "Revoke" in the admin, until a worker has been at the EHR.
    TokenGrant.objects.all().end_pending_revocation(now=timezone.now())
    with pytest.raises(ValueError, match="at the EHR"):
        names["delete_patient"](row.registration.server, PATIENT)
    TokenGrant.objects.update(is_revocation_pending=False)
    names["delete_patient"](row.registration.server, "another")
    assert Launch.objects.exists()
    # As some servers send it.
    Launch.objects.update(context={"patient": f"Patient/{PATIENT}"})
    names["delete_patient"](row.registration.server, PATIENT)
    assert not Launch.objects.exists()
    assert not TokenGrant.objects.exists()


def test_account_of_a_patient_is_deleted_with_what_it_read_of_others() -> None:
    registration = make_registration()
    own, other = (
        make_identity(
            make_user(who), server=registration.server, fhir_user=f"Patient/{who}"
        )
        for who in (PATIENT, "another")
    )
    grant = make_grant(registration, identity=own, user=own.user, patient_id="child")
    for identity in (own, other):
        make_launch(
            registration,
            context={"patient": "child"},
            fhir_user=identity.fhir_user,
            identity=identity,
        )
    (block,) = read_blocks("explanation/security-questionnaire.rst")
    names = execute(block)
    with pytest.raises(ValueError, match="Revoke"):
        names["delete_patient"](registration.server, PATIENT)
    TokenGrant.objects.filter(pk=grant.pk).update(
        status="revoked", ended_at=timezone.now()
    )
    names["delete_patient"](registration.server, PATIENT)
    assert not TokenGrant.objects.exists()
    assert Identity.objects.get() == other
    assert Launch.objects.get().fhir_user == other.fhir_user

"""A site whose pages are scripts that ask an API of Django REST framework."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import Group

from tests.ehr import PATIENT, launch, make_browser
from tests.sites.journey import Visitor

pytest.importorskip("rest_framework")

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.sites.rest_urls"),
    pytest.mark.usefixtures("registration"),
]

_ORIGIN = "https://app.example.org"
_JSON = {"accept": "application/json"}


@pytest.fixture(autouse=True)
def _rest(settings: Any) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "rest_framework"]
    settings.SMART_LAUNCH_REDIRECT_URL = "/api/"


@pytest.fixture
def charts(ehr: Any) -> tuple[Visitor, dict[str, str]]:
    """A browser with two charts, and the first address of the API for each patient."""
    visitor = Visitor(make_browser())
    patients = list(ehr.data["Patient"])[:2]
    return visitor, {patient: visitor.launch(ehr, patient) for patient in patients}


def write(visitor: Visitor, url: str, text: str, *, token: str) -> Any:
    """As a script of a page does."""
    return visitor.post(url, {"name": text}, **_JSON, **{"x-csrftoken": token})


def test_links_of_the_api_stay_in_the_launch(charts):
    visitor, roots = charts
    for patient, root in roots.items():
        assert root.startswith("/~")
        listing = visitor.get(root, **_JSON).json()
        assert listing["notes"] == f"{_ORIGIN}{root}notes/"
        page = visitor.get(listing["notes"].removeprefix(_ORIGIN), accept="text/html")
        token = page.cookies["csrftoken"].value
        for number in range(3):
            made = write(visitor, f"{root}notes/", f"note {number}", token=token)
            assert made.status_code == 201, made.content
            assert made["Location"] == made.json()["url"]
            assert made["Location"].startswith(f"{_ORIGIN}{root}notes/")
        read = visitor.get(made["Location"].removeprefix(_ORIGIN), **_JSON).json()
        assert read["name"] == f"{patient}: note 2"
    for patient, root in roots.items():
        url, names = f"{root}notes/", []
        while url:
            page = visitor.get(url, **_JSON).json()
            names += [each["name"] for each in page["results"]]
            following = page["next"] or ""
            assert following == "" or following.startswith(f"{_ORIGIN}{root}notes/")
            url = following.removeprefix(_ORIGIN)
        assert names == [f"{patient}: note {number}" for number in range(3)]
        results = visitor.get(f"{root}results/", **_JSON).json()
        assert set(results["subjects"]) == {f"Patient/{patient}"}


def test_pages_of_the_api_stay_in_the_launch(charts, settings):
    visitor, roots = charts
    root = roots[PATIENT]
    prefix = root.removesuffix("api/")
    page = visitor.get(root, accept="text/html").content.decode()
    links = re.findall('(?:href|action)="(/[^"#?]*)', page)
    inside = (prefix, settings.STATIC_URL)
    outside = {each for each in links if not each.startswith(inside)}
    assert len(links) > 5
    assert outside == set()
    # The address without its slash, and the login of the API.
    assert visitor.get(f"{root}notes")["Location"] == f"{root}notes/"
    assert visitor.get(f"{prefix}api-auth/login/").status_code == 200


def test_api_refuses_what_the_launch_does_not_allow(ehr, charts, registration):
    visitor, roots = charts
    root = roots[PATIENT]
    # Without the token of the form, and from another browser.
    assert write(visitor, f"{root}notes/", "x", token="").status_code == 403
    stranger = Visitor(make_browser())
    assert stranger.get(f"{root}notes/", **_JSON).status_code == 403
    assert not Group.objects.exists()
    # Of two charts none is meant without the prefix, whatever the API's client sends.
    response = visitor.get("/api/results/", **_JSON)
    assert response.status_code == 403
    assert PATIENT.encode() not in response.content
    # A scope that was not granted.
    registration.ehr_scope = "launch openid fhirUser patient/Patient.rs"
    registration.save()
    opened = launch(browser := make_browser(), ehr)
    refused = browser.get(f"/~{opened.key}/api/results/", headers=_JSON)
    assert refused.status_code == 403


def test_failure_of_the_ehr_is_told_of_by_the_api(ehr, charts):
    visitor, roots = charts
    ehr.faults = {"fhir_500"}
    response = visitor.get(f"{roots[PATIENT]}results/", **_JSON)
    assert response.status_code == 502
    assert PATIENT.encode() not in response.content

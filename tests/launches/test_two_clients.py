"""Two clients at one base URL: one for clinicians, and one for patients."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from django_smart.models import ClientRegistration
from django_smart.servers.registering import build_client_urls
from django_smart.testing import EHRSimulator
from tests.ehr import (
    BASE_URL,
    CLIENT_ID,
    EHR_SCOPE,
    SITE,
    STANDALONE_SCOPE,
    get_callback,
    get_launch,
    make_browser,
)
from tests.factories import make_user
from tests.launch_urls import get_code
from tests.management.running import run

pytestmark = pytest.mark.django_db

PATIENTS = "growth-chart-for-patients"


@pytest.fixture
def patients(ehr: EHRSimulator, registration: Any) -> ClientRegistration:
    """A second registration, as the command makes it beside the first."""
    ran = run(
        *("smart_register", "--base-url", BASE_URL, "--client-id", PATIENTS),
        *("--token-endpoint-auth-method", "none", "--site-url", SITE),
        *("--ehr-scope", EHR_SCOPE, "--standalone-scope", STANDALONE_SCOPE),
    )
    ehr.register_client(
        PATIENTS, auth_method="none", redirect_uris=[ran.json["redirect_uri"]]
    )
    assert ran.json["launch_url"] == f"{SITE}/smart/launch/harbour-2/"
    assert ran.json["login_url"] == f"{SITE}/smart/login/?registration=harbour-2"
    return ClientRegistration.objects.get(client_id=PATIENTS)


def _get_client(url: str) -> str:
    return parse_qs(urlsplit(url).query)["client_id"][0]


def test_each_client_is_launched_by_its_own_url(ehr, registration, patients) -> None:
    urls = build_client_urls(registration, site_url=SITE)
    assert (urls.launch_url, urls.login_url) == (
        f"{SITE}/smart/launch/",
        f"{SITE}/smart/login/?server=harbour",
    )
    for path, client_id, expected in (
        ("/smart/launch/", CLIENT_ID, registration),
        ("/smart/launch/harbour/", CLIENT_ID, registration),
        ("/smart/launch/harbour-2/", PATIENTS, patients),
    ):
        browser = make_browser()
        launch_id = ehr.create_launch(client_id, patient=None)
        started = browser.get(path, {"iss": BASE_URL, "launch": launch_id})
        assert _get_client(started["Location"]) == client_id
        callback = ehr.authorize(started["Location"], scope="openid fhirUser")
        assert get_launch(get_callback(browser, callback)).registration == expected


@pytest.mark.parametrize(
    ("query", "client_id"),
    [
        ("server=harbour", CLIENT_ID),
        ("registration=harbour", CLIENT_ID),
        ("registration=harbour-2", PATIENTS),
    ],
)
@pytest.mark.usefixtures("patients")
def test_each_client_is_started_by_its_own_url(query: str, client_id: str) -> None:
    assert _get_client(make_browser().get(f"/smart/login/?{query}")["Location"]) == (
        client_id
    )
    browser = make_browser()
    user = make_user()
    browser.force_login(user)
    page = browser.get(f"/smart/login/?{query}").content.decode()
    slug = query.partition("=")[2]
    assert f'value="{slug}"' in page
    name = query.partition("=")[0]
    started = browser.post("/smart/login/", {name: slug, "user": user.pk})
    assert _get_client(started["Location"]) == client_id


def test_urls_of_the_server_lead_to_its_default_alone(registration, patients) -> None:
    find = ClientRegistration.objects
    for default in (patients, None, registration):
        for row in (registration, patients):
            row.is_ehr_default = row.is_standalone_default = False
            row.save()
        if default is not None:
            default.is_ehr_default = default.is_standalone_default = True
            default.save()
        assert find.find_ehr(BASE_URL) == default
        assert find.find_standalone("harbour") == default


@pytest.mark.usefixtures("patients")
def test_picker_shows_the_default_alone() -> None:
    page = make_browser().get("/smart/login/").content.decode()
    assert "server=harbour" in page
    assert "harbour-2" not in page


def test_signing_in_again_leads_to_the_client_that_signed_in(ehr, patients) -> None:
    browser = make_browser()
    started = browser.get("/smart/login/?registration=harbour-2&next=/page/")
    get_launch(get_callback(browser, ehr.authorize(started["Location"])))
    del browser.cookies["sessionid"]
    values = {"registration": "harbour-2", "next": "/page/", "user": "1"}
    page = browser.post("/smart/login/", values)
    assert page.status_code == 409
    url = page.context["retry"].url
    assert url.startswith("/smart/login/?registration=harbour-2&next=")
    # The client used last, as after a change of the client ID.
    started = browser.get("/smart/login/?server=harbour&next=/page/")
    callback = ehr.authorize(started["Location"])
    get_launch(get_callback(browser, callback))
    del browser.cookies["sessionid"]
    page = browser.post("/smart/login/", values)
    assert page.context["retry"].url.startswith("/smart/login/?server=harbour&next=")
    # If it is gone, the server's default may know them.
    ClientRegistration.objects.filter(pk=patients.pk).update(standalone_scope="")
    values = {"server": "harbour", "user": "1"}
    page = browser.post("/smart/login/", values)
    assert page.context["retry"].url.startswith("/smart/login/?server=harbour&next=")


def test_url_of_another_server_or_of_none_is_refused(ehr, patients) -> None:
    browser = make_browser()
    query = {"iss": BASE_URL, "launch": "x"}
    elsewhere = {"iss": "https://elsewhere.example.net/fhir", "launch": "x"}
    assert browser.get("/smart/launch/nowhere/", query).status_code == 403
    assert browser.get("/smart/launch/harbour-2/", elsewhere).status_code == 400
    for slug in ("nowhere", "HARBOUR-2", "a\0"):
        answer = browser.get("/smart/login/", {"registration": slug})
        assert answer.status_code in (400, 403)
    answer = browser.get("/smart/login/", {"registration": "nowhere"})
    assert get_code(answer) == "unknown_server"
    ClientRegistration.objects.filter(pk=patients.pk).update(is_active=False)
    assert browser.get("/smart/launch/harbour-2/", query).status_code == 403
    answer = browser.get("/smart/login/", {"registration": "harbour-2"})
    assert answer.status_code == 403
    assert ehr.requests == []

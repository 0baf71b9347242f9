"""How often a launch asks the database and the EHR: no more than it did."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from cryptography.fernet import MultiFernet
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test.utils import CaptureQueriesContext
from django.urls import include, path

from django_smart.decorators import smart_required
from django_smart.models import ClientRegistration
from django_smart.testing import EHRSimulator
from tests.ehr import get_callback, launch, make_browser, start_ehr_launch
from tests.factories import METHODS, make_client

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.test_statements")]


def _with_user(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.user.pk))


def _reading_twice(request: HttpRequest) -> HttpResponse:
    fhir = request.smart.fhir  # type: ignore[attr-defined]
    ids = [fhir.read("Patient", fhir.patient_id)["id"] for _ in range(2)]
    return HttpResponse(f"{request.user.pk} {ids}")


@smart_required
def _required(_request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


_LOGIN = "/smart/login/?server=harbour"

urlpatterns = [
    path("smart/", include("django_smart.urls")),
    path("user/", _with_user),
    path("reading/", _reading_twice),
    path("required/", _required),
]

# What only marks the ends of a transaction.
_MARKS = ("BEGIN", "COMMIT", "RELEASE", "SAVEPOINT")


def _sign_in(ehr: EHRSimulator) -> tuple[int, int]:
    """How many statements and outbound requests one login makes."""
    statements, sent = _watch_sign_in(ehr)
    return len(statements), sent


def _watch_sign_in(ehr: EHRSimulator) -> tuple[list[str], int]:
    """Statements and outbound requests of one login, in a browser of its own."""
    ehr.clear_requests()
    browser = make_browser()
    with CaptureQueriesContext(connection) as captured:
        started = browser.get("/smart/login/", {"server": "harbour"})
    statements = list(captured)
    callback = ehr.authorize(started["Location"])
    with CaptureQueriesContext(connection) as captured:
        response = get_callback(browser, callback)
    assert response.status_code == 302, response.content
    statements += list(captured)
    sent = [each for each in ehr.requests if not each.path.endswith("/authorize")]
    sql = [each["sql"] for each in statements]
    return [each for each in sql if not each.startswith(_MARKS)], len(sent)


# An offline grant looks for the one that it replaces.
@pytest.mark.parametrize(("more", "number"), [("", 12), (" offline_access", 13)])
def test_later_login_is_one_request_and_twelve_statements(
    ehr: EHRSimulator, registration: ClientRegistration, more: str, number: int
) -> None:
    scope = "openid fhirUser launch/patient patient/*.rs"
    registration.standalone_scope = scope + more
    registration.save()
    _sign_in(ehr)
    assert _sign_in(ehr) == (number, 1)


def test_launch_request_from_the_ehr_is_two_statements(ehr, registration):
    start_ehr_launch(make_browser(), ehr)
    with CaptureQueriesContext(connection) as captured:
        start_ehr_launch(make_browser(), ehr)
    sql = [each["sql"] for each in captured]
    assert len([each for each in sql if not each.startswith(_MARKS)]) == 2


@pytest.mark.parametrize("method", METHODS)
def test_login_reads_its_registration_once_to_begin_and_once_to_complete(
    ehr: EHRSimulator, method: str
) -> None:
    make_client(ehr, method, "openid fhirUser patient/*.rs")
    _sign_in(ehr)
    statements, _ = _watch_sign_in(ehr)
    tables = Counter(
        name
        for each in statements
        for name in re.findall(r'FROM ["`]?django_smart_(\w+)', each)
    )
    assert tables["clientregistration"] == 1
    assert tables["fhirserver"] == 0
    assert tables["launch"] == 1


def _count(browser: Any, path: str) -> int:
    with CaptureQueriesContext(connection) as captured:
        response = browser.get(path)
    assert response.status_code == 200, response.content
    return len(captured)


def test_page_under_a_prefix_asks_for_session_user_and_launch(ehr, registration):
    browser = make_browser()
    key = launch(browser, ehr).key
    assert _count(browser, "/user/") == 2
    assert _count(browser, f"/~{key}/user/") == 3
    assert _count(browser, f"/~{key}/reading/") == 3


def test_page_that_is_allowed_prepares_no_refusal(ehr, registration):
    browser = make_browser()
    launch(browser, ehr)
    ehr_launched = _count(browser, "/required/")
    browser = make_browser()
    get_callback(browser, ehr.authorize(browser.get(_LOGIN)["Location"]))
    assert _count(browser, "/required/") == ehr_launched


def test_page_that_reads_decrypts_each_secret_once(ehr, registration, monkeypatch):
    browser = make_browser()
    key = launch(browser, ehr).key
    decrypt, counts = MultiFernet.decrypt, Counter[Any]()

    def count(self: MultiFernet, token: Any, ttl: int | None = None) -> bytes:
        counts[token] += 1
        return decrypt(self, token, ttl)

    monkeypatch.setattr(MultiFernet, "decrypt", count)
    assert browser.get(f"/~{key}/reading/").status_code == 200
    assert list(counts.values()) == [1]

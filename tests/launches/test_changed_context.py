"""What a person sees when the EHR goes on about another patient."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from django.http import HttpRequest, JsonResponse
from django.test import RequestFactory
from django.urls import get_script_prefix, path
from django.utils import timezone

from django_smart.error_pages.words import ENDINGS
from django_smart.exceptions import ContextChangedError
from django_smart.grants.introspection import introspect_grant
from django_smart.middleware import SMARTMiddleware
from django_smart.models import ClientRegistration, TokenGrant
from django_smart.signals import grant_lost
from tests.ehr import EHR_SCOPE, PATIENT, listening
from tests.site.browsers import Chart, open_chart
from tests.site.urls import urlpatterns as site

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("registration"),
]


async def _afhir(request: HttpRequest) -> JsonResponse:
    smart = await request.asmart()  # type: ignore[attr-defined]
    patient = await sync_to_async(smart.fhir.read)("Patient", smart.patient_id)
    return JsonResponse({"id": patient["id"]})


def _introspect(request: HttpRequest) -> JsonResponse:
    answer = introspect_grant(request.smart.grant)  # type: ignore[attr-defined]
    return JsonResponse({"active": answer.active})


urlpatterns = [*site, path("afhir/", _afhir), path("introspect/", _introspect)]


def open_stale(ehr: Any) -> Chart:
    """A chart whose access token has ended and can be refreshed."""
    ClientRegistration.objects.update(ehr_scope=f"{EHR_SCOPE} offline_access")
    encounter = next(
        each["id"]
        for each in ehr.data["Encounter"].values()
        if each["subject"]["reference"] == f"Patient/{PATIENT}"
    )
    chart = open_chart(ehr, encounter=encounter)
    TokenGrant.objects.update(expires_at=timezone.now())
    return chart


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fault", ["refresh_other_patient", "refresh_other_encounter"])
@pytest.mark.parametrize(
    ("method", "view", "atomic"),
    [
        ("get", "/fhir/", False),
        ("get", "/fhir/", True),
        ("aget", "/fhir/", True),
        # Django opens no transaction for asynchronous views.
        ("aget", "/afhir/", False),
    ],
)
def test_refresh_about_another_patient_closes_the_page(
    ehr, monkeypatch, fault, method, view, atomic
):
    chart = open_stale(ehr)
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", atomic)
    ehr.faults = {fault}
    ehr.clear_requests()
    with listening(grant_lost) as lost:
        page = getattr(chart, method)(view)
    assert page.status_code == 409
    assert b"<code>context_changed</code>" in page.content
    assert b"open the app from the patient" in page.content
    assert b'href="/~' not in page.content
    assert page["Cache-Control"] == "private, no-store"
    assert [each["error_code"] for each in lost] == ["context_changed"]
    assert not ehr.requests_to("fhir")
    # Every page of the launch from now on.
    ended = chart.get("/whoami/")
    assert ended.status_code == 410
    assert str(ENDINGS["context_changed"]) in ended.content.decode()


def test_links_of_the_page_lead_out_of_the_launch_that_was_closed(
    ehr, settings, tmp_path
):
    page = tmp_path / "django_smart" / "error.html"
    page.parent.mkdir()
    page.write_text("{{ code }}: {% url 'links' %}")
    (engine,) = settings.TEMPLATES
    settings.TEMPLATES = [{**engine, "DIRS": [tmp_path]}]
    chart = open_stale(ehr)
    ehr.faults = {"refresh_other_patient"}
    assert chart.get("/fhir/").content == b"context_changed: /links/"
    assert chart.get("/whoami/").content == b"launch_ended: /links/"
    assert get_script_prefix() == "/"


def test_introspection_about_another_patient_closes_the_page(ehr):
    chart = open_stale(ehr)
    TokenGrant.objects.update(patient_id="another")
    page = chart.get("/introspect/")
    assert page.status_code == 409
    assert b"<code>context_changed</code>" in page.content
    assert chart.get("/whoami/").status_code == 410


def test_the_same_patient_closes_nothing(ehr):
    chart = open_stale(ehr)
    assert chart.get("/fhir/").json() == {"id": PATIENT}
    assert chart.get("/introspect/").json() == {"active": True}


def test_page_without_a_launch_tells_of_it_as_well(rf: RequestFactory) -> None:
    def fail(request: HttpRequest) -> Any:
        return middleware.process_exception(request, ContextChangedError("changed"))

    middleware = SMARTMiddleware(fail)
    response: Any = middleware(rf.get("/"))
    assert response.status_code == 409
    assert b"<code>context_changed</code>" in response.content


def test_other_faults_of_a_view_are_the_site_s(rf: RequestFactory) -> None:
    middleware = SMARTMiddleware(lambda request: JsonResponse({}))
    assert middleware.process_exception(rf.get("/"), ValueError()) is None

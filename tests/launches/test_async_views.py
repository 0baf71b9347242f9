"""FHIR in an async view: side by side, across a refresh, and never in the loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.utils import timezone

from django_smart.exceptions import FHIRRequestError
from django_smart.models import ClientRegistration, TokenGrant
from tests.ehr import EHR_SCOPE, PATIENT
from tests.site.browsers import Chart, open_chart
from tests.site.urls import urlpatterns as site

pytestmark = [
    # The threads of afhir have database connections of their own.
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("registration"),
]


async def _afhir(request: HttpRequest) -> JsonResponse:
    smart = await request.asmart()  # type: ignore[attr-defined]
    reads = (smart.afhir.read("Patient", smart.patient_id) for _ in range(5))
    patients = await asyncio.gather(*reads)
    return JsonResponse({"ids": [patient["id"] for patient in patients]})


async def _fhir(request: HttpRequest) -> JsonResponse:
    smart = await request.asmart()  # type: ignore[attr-defined]
    return JsonResponse(smart.fhir.read("Patient", smart.patient_id))


urlpatterns = [*site, path("afhir/", _afhir), path("blocking/", _fhir)]


@pytest.fixture
def chart(ehr) -> Chart:
    ClientRegistration.objects.update(ehr_scope=f"{EHR_SCOPE} offline_access")
    chart = open_chart(ehr)
    ehr.clear_requests()
    return chart


def test_five_reads_of_a_view_refresh_once(ehr, chart):
    ehr.expire_access_tokens()
    TokenGrant.objects.update(expires_at=timezone.now())
    answer: Any = chart.aget("/afhir/")
    assert answer.json() == {"ids": [PATIENT] * 5}
    assert len(ehr.requests_to("token")) == 1
    assert len(ehr.requests_to("fhir")) == 5


@pytest.mark.parametrize("has_ended", [False, True])
def test_synchronous_read_in_an_async_view_says_what_to_use(ehr, chart, has_ended):
    if has_ended:
        TokenGrant.objects.update(expires_at=timezone.now())
    with pytest.raises(FHIRRequestError, match="afhir") as caught:
        chart.aget("/blocking/")
    assert caught.value.code == "fhir_sync_in_async"
    assert ehr.requests == []

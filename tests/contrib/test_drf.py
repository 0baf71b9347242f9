"""Django REST framework: who it is, and whether the launch suffices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth import logout
from django.core.exceptions import ImproperlyConfigured
from django.test import Client, RequestFactory
from django.urls import path, reverse

from tests.ehr import PATIENT, get_launch_cookies, make_browser
from tests.site.browsers import Chart, open_chart
from tests.site.urls import urlpatterns as site

pytest.importorskip("rest_framework", reason="needs the extra drf")

from rest_framework.authentication import SessionAuthentication
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.settings import api_settings
from rest_framework.views import APIView

from django_smart.contrib.drf import (
    SMARTAuthentication,
    SMARTPermission,
    exception_handler,
)

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.contrib.test_drf")]


class Whoami(APIView):
    """What a view learns; staff may use it without a launch."""

    authentication_classes = [SMARTAuthentication, SessionAuthentication]
    renderer_classes = [JSONRenderer]

    def get(self, request):
        smart = request.auth
        return Response(
            {
                "user": request.user.get_username(),
                "patient": smart.patient_id if smart else None,
            }
        )

    post = get


class Results(Whoami):
    permission_classes = [SMARTPermission]
    smart_scopes = "patient/Observation.rs"
    smart_context: str | tuple[str, ...] = "patient"

    def get(self, request):
        found = request.auth.fhir.read("Patient", request.auth.patient_id)
        return Response({"id": found["id"]})

    def get_exception_handler(self):
        return exception_handler


class Conditions(Results):
    smart_scopes = "patient/Condition.rs patient/Observation.rs"


class Visits(Results):
    smart_context = ("patient", "encounter")


class Forgetful(Results):
    """Its launch counts, although no class authenticates with it."""

    authentication_classes = [SessionAuthentication]

    def get(self, request):
        return Response({"id": request.smart.patient_id})

    post = get


class SignOut(APIView):
    """As sites have it: knows nothing of launches."""

    authentication_classes = [SessionAuthentication]
    renderer_classes = [JSONRenderer]

    def post(self, request):
        logout(request)
        return Response({"page": reverse("links")})


class Broken(Results):
    def get(self, request):
        raise LookupError("of the site's own")


urlpatterns = [
    *site,
    path("api/whoami/", Whoami.as_view()),
    path("api/results/", Results.as_view()),
    path("api/conditions/", Conditions.as_view()),
    path("api/visits/", Visits.as_view()),
    path("api/broken/", Broken.as_view()),
    path("api/forgetful/", Forgetful.as_view()),
    path("api/sign-out/", SignOut.as_view()),
]


@pytest.fixture
def chart(ehr, registration) -> Chart:
    return open_chart(ehr)


def test_launch_signs_in_its_user(chart):
    assert chart.get("/api/whoami/").json() == {
        "user": chart.launch.user.get_username(),
        "patient": PATIENT,
    }


def test_launch_without_a_user_is_anonymous(ehr, registration):
    registration.ehr_scope = "launch patient/Patient.rs patient/Observation.rs"
    registration.save()
    chart = open_chart(ehr)
    expected = {"user": "", "patient": PATIENT}
    assert chart.get("/api/whoami/").json() == expected
    assert chart.get("/api/results/").status_code == 200


def test_without_a_launch_the_next_class_is_asked(admin_client):
    answer = admin_client.get("/api/whoami/").json()
    assert answer == {"user": "admin", "patient": None}
    assert Client().get("/api/whoami/").json() == {"user": "", "patient": None}


def test_user_who_was_switched_off_is_nobody(chart):
    request: Any = RequestFactory().get("/")
    user = chart.launch.user
    request.smart = SimpleNamespace(launch=chart.launch)
    for user.is_active in (True, False):
        request.user = user
        found = SMARTAuthentication().authenticate(Request(request))
        assert found == ((user, request.smart) if user.is_active else None)


@pytest.mark.parametrize("is_prefixed", [False, True])
def test_sign_out_by_an_api_ends_the_launch(chart, is_prefixed):
    path = "/api/sign-out/"
    response = chart.browser.post(chart.url(path) if is_prefixed else path)
    assert response.json() == {"page": "/links/"}
    assert get_launch_cookies(chart.browser) == {}
    assert chart.get("/links/").status_code == 410


def test_change_needs_the_csrf_token(chart):
    assert chart.post("/api/whoami/").status_code == 200
    chart.browser.handler.enforce_csrf_checks = True
    response = chart.post("/api/whoami/")
    assert response.status_code == 403
    assert "CSRF" in response.json()["detail"]
    assert chart.get("/api/whoami/").status_code == 200


@pytest.mark.parametrize("has_user", [True, False])
def test_change_needs_the_csrf_token_if_the_permission_alone_knows_the_launch(
    ehr, registration, has_user
):
    if not has_user:
        registration.ehr_scope = "launch patient/Patient.rs patient/Observation.rs"
        registration.save()
    chart = open_chart(ehr)
    assert chart.post("/api/forgetful/").json() == {"id": PATIENT}
    chart.browser.handler.enforce_csrf_checks = True
    assert chart.get("/api/forgetful/").json() == {"id": PATIENT}
    for response in (
        chart.post("/api/forgetful/"),
        # Without the key, which another site cannot know.
        chart.browser.post("/api/forgetful/"),
    ):
        assert response.status_code == 403
        assert "CSRF" in response.json()["detail"]


def test_launch_that_suffices_is_let_through(chart):
    assert chart.get("/api/results/").json() == {"id": PATIENT}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "conditions",
            {"code": "insufficient_scope", "missing": "patient/Condition.rs"},
        ),
        ("visits", {"code": "encounter_missing"}),
    ],
)
def test_launch_that_does_not_suffice_is_told_why(chart, name, expected):
    response = chart.get(f"/api/{name}/")
    assert response.status_code == 403
    answer = response.json()
    assert answer.pop("detail")
    assert answer == expected


def test_without_a_launch_nobody_is_let_through(registration, admin_client):
    for browser in (admin_client, make_browser()):
        response = browser.get("/api/results/")
        assert response.status_code == 403
        assert response.json()["code"] == "no_launch"


def test_several_charts_without_a_prefix_are_told_apart_from_none(ehr, chart):
    open_chart(ehr, chart.browser)
    response = chart.browser.get("/api/results/")
    assert response.status_code == 403
    assert response.json()["code"] == "ambiguous"


def test_trouble_with_the_ehr_is_told_in_json(chart, ehr, caplog):
    del ehr.data["Patient"][PATIENT]
    response = chart.get("/api/results/")
    answer = response.json()
    assert (response.status_code, answer["code"]) == (502, "fhir_not_found")
    assert answer["detail"]
    assert PATIENT not in response.content.decode()
    assert f"Launch {chart.launch.pk}: API error: fhir_not_found" in caplog.text
    assert PATIENT not in caplog.text


def test_faults_of_the_site_are_left_to_it(chart):
    with pytest.raises(LookupError):
        chart.get("/api/broken/")
    assert chart.get("/api/results/?format=odd").status_code == 404


def test_middleware_is_needed():
    request = Request(RequestFactory().get("/"))
    with pytest.raises(ImproperlyConfigured, match="SMARTMiddleware"):
        SMARTPermission().has_permission(request, Results())
    assert api_settings.EXCEPTION_HANDLER is not exception_handler

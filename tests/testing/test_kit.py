"""The help for sites' own tests, as a site without any of ours would use it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.test import TestCase
from django.test.utils import override_script_prefix

from django_smart.clients import backend_client_for, fhir_client_for
from django_smart.models import ClientRegistration, Identity, Launch
from django_smart.testing import EHRSimulator
from django_smart.testing.cases import SMARTTestMixin
from django_smart.testing.client import SMARTClient
from django_smart.testing.pytest_plugin import (
    ehr,
    launched_client,
    smart_client,
    smart_registration,
)
from django_smart.testing.site import (
    add_bundle,
    add_resource,
    create_registration,
    link_user,
    mounted_ehr,
)

__all__ = ["ehr", "launched_client", "smart_client", "smart_registration"]

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.site.urls")]

User: Any = get_user_model()


def test_pages_are_asked_for_in_the_launch(
    ehr: EHRSimulator, launched_client: Callable[..., SMARTClient]
) -> None:
    first, second = list(ehr.data["Patient"])[:2]
    client = launched_client(second)
    shown = client.get("/whoami/").json()
    assert (shown["launched"], shown["patient"]) == (True, second)
    assert client.smart_launch is not None
    assert client.smart_launch.key in shown["url"]
    earlier = client.smart_launch
    client.launch(first)
    assert client.get("/whoami/").json()["patient"] == first
    client.smart_launch = earlier
    assert client.get("/whoami/").json()["patient"] == second
    # Without the prefix it would be a guess.
    client.smart_launch = None
    assert client.get("/whoami/").json()["patient"] is None


def test_pages_outside_of_launches_are_asked_for_as_they_are(
    launched_client: Callable[..., SMARTClient],
) -> None:
    client = launched_client()
    assert client.build_path("/smart/connections/") == "/smart/connections/"
    assert client.build_path("/admin/") == "/admin/"
    assert client.get("/smart/connections/").status_code == 200
    path = client.build_path("/whoami/?a=1")
    assert path.startswith("/~")
    assert path.endswith("/whoami/?a=1")
    assert client.build_path(path) == path


def test_scopes_are_what_the_ehr_grants(
    launched_client: Callable[..., SMARTClient],
) -> None:
    launch = launched_client(scopes="patient/Observation.rs").smart_launch
    assert launch is not None
    assert launch.grant is not None
    granted = set(launch.grant.scope_granted.split())
    assert "patient/Observation.rs" in granted
    assert "patient/*.cruds" not in granted


def test_user_is_signed_in(
    ehr: EHRSimulator, launched_client: Callable[..., SMARTClient]
) -> None:
    ada, ben = (User.objects.create(username=name) for name in ("ada", "ben"))
    for user in (ada, ben, ada):
        client = launched_client(user=user)
        assert client.session["_auth_user_id"] == str(user.pk)
        assert client.smart_launch is not None
        assert client.smart_launch.user == user
    assert Identity.objects.count() == 2
    # Nobody in particular: somebody is made.
    patient = next(name for name in ehr.users if name.startswith("Patient/"))
    other = launched_client(fhir_user=patient).smart_launch
    assert other is not None
    assert other.user not in (None, ada, ben)
    assert other.fhir_user == patient


def test_one_person_is_not_two_users(ehr: EHRSimulator) -> None:
    reference = next(iter(ehr.users))
    with pytest.raises(ValueError, match="create_registration"):
        link_user(ehr, User(), reference)
    create_registration(ehr)
    assert link_user(ehr, User.objects.create(username="ada"), reference) == reference
    with pytest.raises(ValueError, match="another user"):
        link_user(ehr, User.objects.create(username="ben"), reference)


def test_launch_outside_of_a_chart_has_no_patient(smart_client: SMARTClient) -> None:
    smart_client.registration.ehr_scope = "launch openid fhirUser user/Patient.rs"
    smart_client.registration.save()
    assert smart_client.launch(None, scopes="user/Patient.rs").grant is not None
    assert smart_client.get("/whoami/").json()["patient"] is None


def test_connecting_leaves_a_grant_for_jobs(
    ehr: EHRSimulator, smart_client: SMARTClient
) -> None:
    patient = next(name for name in ehr.users if name.startswith("Patient/"))
    launch = smart_client.connect(fhir_user=patient, scopes="patient/Patient.rs")
    assert launch.kind == Launch.Kind.STANDALONE
    assert launch.user is not None
    fhir = fhir_client_for(launch.user, smart_client.registration.server)
    read = fhir.read("Patient", patient.removeprefix("Patient/"))
    assert read["resourceType"] == "Patient"


def test_signed_in_user_connects(smart_client: SMARTClient) -> None:
    ada = User.objects.create(username="ada")
    smart_client.force_login(ada)
    assert smart_client.connect().user == ada


@pytest.mark.parametrize("method", ["launch", "connect"])
def test_user_who_was_signed_in_by_the_kit_connects(
    smart_client: SMARTClient, method: str
) -> None:
    first = getattr(smart_client, method)()
    second = smart_client.connect()
    assert second.user == first.user
    assert second.kind == Launch.Kind.STANDALONE


def test_added_resource_is_read(
    ehr: EHRSimulator, launched_client: Callable[..., SMARTClient]
) -> None:
    patient = {"resourceType": "Patient", "id": "p1", "name": [{"family": "Added"}]}
    assert add_resource(ehr, patient)["meta"]["versionId"] == "1"
    launch = launched_client("p1").smart_launch
    assert launch is not None
    grant = launch.grant
    assert grant is not None
    assert fhir_client_for(grant=grant).read("Patient", "p1")["name"] == [
        {"family": "Added"}
    ]


def test_added_bundle_is_read(
    ehr: EHRSimulator, launched_client: Callable[..., SMARTClient]
) -> None:
    name = "urn:uuid:96baad95-bc36-5844-bc19-86cb1d4022a3"
    observation = {"resourceType": "Observation", "id": "o1", "status": "final"}
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [
            {"fullUrl": name, "resource": {"resourceType": "Patient"}},
            {"resource": {**observation, "subject": {"reference": name}}},
        ],
    }
    patient, stored = add_bundle(ehr, bundle)
    assert patient["id"] == name.removeprefix("urn:uuid:")
    assert stored["subject"] == {"reference": f"Patient/{patient['id']}"}
    launch = launched_client(patient["id"]).smart_launch
    assert launch is not None
    assert list(fhir_client_for(grant=launch.grant).search("Observation")) == [stored]


def test_refused_launch_quotes_the_page(
    ehr: EHRSimulator, smart_client: SMARTClient
) -> None:
    ehr.faults = ["token_503"]
    with pytest.raises(AssertionError, match=r"status 502:\n[\s\S]*<h1"):
        smart_client.launch()
    assert smart_client.smart_launch is None
    ehr.faults = []
    assert smart_client.launch().status == Launch.Status.OPEN


def test_registration_takes_other_values(db: None, ehr: EHRSimulator) -> None:
    registration = create_registration(
        ehr,
        client_id="public",
        client_secret="",
        token_endpoint_auth_method="none",
        server__name="Harbour",
    )
    assert ClientRegistration.objects.get().server.name == "Harbour"
    client = SMARTClient(registration, ehr)
    assert client.launch().status == Launch.Status.OPEN


def test_record_of_another_patient_is_refused_by_default(
    ehr: EHRSimulator, launched_client: Callable[..., SMARTClient]
) -> None:
    mine, other = list(ehr.data["Patient"])[:2]
    launch = launched_client(mine).smart_launch
    assert launch is not None
    fhir = fhir_client_for(grant=launch.grant)
    assert fhir.read("Patient", mine)["id"] == mine
    assert fhir.request("GET", f"Patient/{other}").status_code == 403
    (registration,) = ClientRegistration.objects.all()
    registration.ehr_scope = "launch openid fhirUser user/Patient.rs"
    registration.save()
    launch = launched_client(mine).smart_launch
    assert launch is not None
    assert fhir_client_for(grant=launch.grant).read("Patient", other)["id"] == other


def test_registration_signs_with_a_key(db: None, ehr: EHRSimulator) -> None:
    registration = create_registration(
        ehr, token_endpoint_auth_method="private_key_jwt", signing_algorithm="ES384"
    )
    assert registration.client_secret == ""
    assert SMARTClient(registration, ehr).launch().status == Launch.Status.OPEN


def test_backend_service_is_registered(
    ehr: EHRSimulator, smart_registration: ClientRegistration
) -> None:
    service = create_registration(ehr, system_scope="system/Patient.rs")
    assert service.server == smart_registration.server
    assert not service.redirect_uri
    found = list(backend_client_for(service).search("Patient"))
    assert len(found) == len(ehr.data["Patient"])
    # The launches are the other client's still.
    assert SMARTClient(smart_registration, ehr).launch().grant is not None


def test_two_servers_have_a_registration_each(
    ehr: EHRSimulator, smart_registration: ClientRegistration
) -> None:
    with mounted_ehr("https://second.example.org/r4") as second:
        registration = create_registration(second)
        assert registration.server != smart_registration.server
        assert registration.redirect_uri != smart_registration.redirect_uri
        for client_registration, each in (
            (registration, second),
            (smart_registration, ehr),
        ):
            launch = SMARTClient(client_registration, each).launch()
            assert launch.registration == client_registration
            assert fhir_client_for(grant=launch.grant).base_url == each.base_url


@pytest.mark.parametrize("method", ["launch", "connect"])
def test_registrations_of_one_server_are_told_apart(
    ehr: EHRSimulator, smart_registration: ClientRegistration, method: str
) -> None:
    other = create_registration(
        ehr,
        client_id="patient-app",
        is_ehr_default=False,
        is_standalone_default=False,
    )
    assert other.server == smart_registration.server
    for registration in (other, smart_registration):
        launch = getattr(SMARTClient(registration, ehr), method)()
        assert launch.registration == registration
    url = ehr.clients[other.client_id].launch_url
    assert url == f"https://testserver/smart/launch/{other.launch_slug}/"


def test_clock_that_a_test_replaces_is_the_clock_of_the_ehr(
    ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    assert ehr.clock() == 1_700_000_000


def test_view_of_a_page_in_the_launch_is_known(
    launched_client: Callable[..., SMARTClient],
) -> None:
    assert launched_client().get("/whoami/").resolver_match.view_name == "whoami"


@pytest.mark.django_db(transaction=True)
def test_asynchronous_client_has_the_same_launch(
    ehr: EHRSimulator, launched_client: Callable[..., SMARTClient]
) -> None:
    patient = list(ehr.data["Patient"])[3]
    client = launched_client(patient).as_async()
    response = async_to_sync(client.get)("/awhoami/")
    assert response.json()["patient"] == patient
    assert response.resolver_match.route == "awhoami/"


def test_link_on_the_site_leads_to_the_ehr(smart_client: SMARTClient) -> None:
    url = "/smart/login/?server=test-ehr"
    for response in (
        smart_client.get(url),
        async_to_sync(smart_client.as_async().get)(url),
    ):
        assert response["Location"].startswith("https://ehr.example.org/")
    # A link on another site shows a button first.
    response = smart_client.get(url, headers={"Sec-Fetch-Site": "cross-site"})
    assert response.status_code == 200


class TestsOfAClass(SMARTTestMixin, TestCase):
    """What the documentation says of ``unittest``."""

    def test_site_was_launched(self) -> None:
        patient = list(self.ehr.data["Patient"])[2]
        client = self.launched_client(patient)
        assert client.get("/whoami/").json()["patient"] == patient


def test_launch_that_waits_for_a_person_says_what_to_do(
    smart_client: SMARTClient, settings: Any
) -> None:
    staff = User.objects.create_user("root", is_staff=True)
    with pytest.raises(AssertionError, match="SMART_STAFF_SIGN_IN_SERVERS"):
        smart_client.launch(user=staff)
    assert smart_client.smart_launch is None
    settings.SMART_STAFF_SIGN_IN_SERVERS = [smart_client.registration.server.slug]
    assert smart_client.launch(user=staff).user == staff


@pytest.mark.parametrize("path", ["/whoami/", "/app/whoami/"])
def test_site_below_a_path_is_launched(launched_client: Any, path: str) -> None:
    with override_script_prefix("/app/"):
        client = launched_client()
        assert client.get(path).json()["launched"] is True


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "werkzeug", None)
    monkeypatch.delitem(sys.modules, "django_smart.testing")
    with pytest.raises(ImportError, match=r"django-smart\[testing\]"):
        importlib.import_module("django_smart.testing")

"""The help for sites' own tests, as a site without any of ours would use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.test import TestCase

from django_smart.clients import fhir_client_for
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
from django_smart.testing.site import add_resource, create_registration, link_user

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
    granted = set(launch.scope_granted.split())
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


def test_refused_launch_quotes_the_page(
    ehr: EHRSimulator, smart_client: SMARTClient
) -> None:
    ehr.faults = ["token_503"]
    with pytest.raises(AssertionError, match=r"status 502:\n[\s\S]*<h1"):
        smart_client.launch()
    assert smart_client.smart_launch is None
    ehr.faults = []
    assert smart_client.launch().status == Launch.Status.COMPLETED


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
    assert client.launch().status == Launch.Status.COMPLETED


@pytest.mark.django_db(transaction=True)
def test_asynchronous_client_has_the_same_launch(
    ehr: EHRSimulator, launched_client: Callable[..., SMARTClient]
) -> None:
    patient = list(ehr.data["Patient"])[3]
    client = launched_client(patient).as_async()
    response = async_to_sync(client.get)("/awhoami/")
    assert response.json()["patient"] == patient


class TestsOfAClass(SMARTTestMixin, TestCase):
    """What the documentation says of ``unittest``."""

    def test_site_was_launched(self) -> None:
        patient = list(self.ehr.data["Patient"])[2]
        client = self.launched_client(patient)
        assert client.get("/whoami/").json()["patient"] == patient

"""An account that its user has only connected, and what it does not do to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client

from django_smart.backends import SMARTAuthenticationBackend
from django_smart.models import ClientRegistration, Identity
from django_smart.testing import EHRSimulator
from django_smart.testing.site import create_registration, mounted_ehr
from tests.ehr import make_browser

pytestmark = pytest.mark.django_db

User: Any = get_user_model()


@pytest.fixture
def evil() -> Iterator[EHRSimulator]:
    """A registered EHR whose operator is the attacker."""
    with mounted_ehr("https://evil.example.net/fhir") as simulator:
        create_registration(simulator, server__slug="evil", client_id="evil")
        yield simulator


def _come_back(browser: Client, ehr: EHRSimulator, response: Any, person: str) -> Any:
    """Go to the EHR as *person*, and from there to the callback."""
    patient = person.removeprefix("Patient/")
    url = urlsplit(ehr.authorize(response["Location"], user=person, patient=patient))
    return browser.get(url.path, parse_qsl(url.query))


def _connect(browser: Client, ehr: EHRSimulator, person: str, **values: str) -> Any:
    """Press the button of the confirmation page."""
    server = ClientRegistration.objects.get().server.slug
    form = {"server": server, "connect": "1", "user": browser.session["_auth_user_id"]}
    response = browser.post("/smart/login/", form | values)
    return _come_back(browser, ehr, response, person)


def _follow_link(browser: Client, ehr: EHRSimulator, person: str) -> Any:
    """Follow a launch link, as the EHR sends it in a mail."""
    patient = person.removeprefix("Patient/")
    launch = ehr.create_launch("evil", patient=patient, user=person)
    url = {"iss": ehr.base_url, "launch": launch}
    return _come_back(browser, ehr, browser.get("/smart/launch/", url), person)


# What the hooks of a site do to its users


class ClinicBackend(SMARTAuthenticationBackend):
    """Hooks as sites write them."""

    groups_by_type: ClassVar = {"Patient": "Patients", "Practitioner": "Clinicians"}

    def update_user(self, user: Any, claims: Any) -> Any:
        user.email = "mallory@evil.example.net"
        user.save()
        return user

    def fill_user(self, user: Any, claims: Any, fhir: Any) -> None:
        user.last_name = "Mallory"
        user.save()


def _describe(user: Any) -> tuple[str, str, set[str]]:
    user = User.objects.get(pk=user.pk)
    groups = set(user.groups.values_list("name", flat=True))
    return user.email, user.last_name, groups


@pytest.mark.parametrize(
    ("may_sign_in", "is_staff", "is_allowed", "is_changed"),
    [
        (False, False, False, False),
        (True, False, False, True),
        (True, True, False, False),
        (True, True, True, True),
        (False, True, True, False),
    ],
)
def test_hooks_change_only_a_user_whom_the_account_signs_in(
    evil: EHRSimulator,
    settings: Any,
    *,
    may_sign_in: bool,
    is_staff: bool,
    is_allowed: bool,
    is_changed: bool,
) -> None:
    settings.AUTHENTICATION_BACKENDS = [
        "django.contrib.auth.backends.ModelBackend",
        f"{__name__}.ClinicBackend",
    ]
    settings.SMART_STAFF_SIGN_IN_SERVERS = ["evil"] if is_allowed else []
    ClientRegistration.objects.update(manage_groups=True)
    patients = Group.objects.create(name="Patients")
    clinicians = Group.objects.create(name="Clinicians")
    vera = User.objects.create_user(
        "vera", "vera@hospital.example", "a password", last_name="Vera"
    )
    vera.groups.add(clinicians)
    before = _describe(vera)
    person = next(name for name in evil.users if name.startswith("Patient/"))
    browser = make_browser(host="testserver")
    browser.login(username="vera", password="a password")
    _connect(browser, evil, person)
    assert _describe(vera) == before
    Identity.objects.update(may_sign_in=may_sign_in)
    User.objects.update(is_staff=is_staff)
    # The session does not change, but the launch belongs to its user.
    opened = _follow_link(browser, evil, person)
    assert opened["Location"].startswith("/~")
    assert browser.session["_auth_user_id"] == str(vera.pk)
    changed = ("mallory@evil.example.net", "Mallory", {patients.name})
    assert _describe(vera) == (changed if is_changed else before)

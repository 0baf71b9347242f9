"""Users that are filled from the EHR, by the code of the page that says how."""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group

from django_smart.models import ClientRegistration, Launch
from django_smart.testing import EHRSimulator
from tests.docs.blocks import apply, read_blocks
from tests.ehr import connect, launch, make_browser
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

User: Any = get_user_model()
_PAGE = "how-to/users-and-sign-in.rst"
_SCOPE = "launch openid fhirUser user/Practitioner.r patient/Patient.r"


@pytest.fixture
def site(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the page, in the settings of the page; ``npis`` is what it kept."""
    backend, chosen, careful = read_blocks(_PAGE, "Fill in users from the EHR")
    module: Any = ModuleType("clinic.backends")
    module.npis = {}
    module.remember_npi = lambda user, npi: module.npis.update({user.pk: npi})
    exec(backend.code, module.__dict__)
    monkeypatch.setitem(sys.modules, "clinic", ModuleType("clinic"))
    monkeypatch.setitem(sys.modules, "clinic.backends", module)
    exec(careful.code, module.__dict__)
    apply(settings, chosen)
    for name in ("Clinicians", "Patients", "Others"):
        Group.objects.create(name=name)
    make_registration(ehr_scope=_SCOPE, manage_groups=True)
    return module


def _sign_in(ehr: EHRSimulator, **values: Any) -> Any:
    user = launch(make_browser(), ehr, **values).user
    assert user is not None
    return User.objects.get(pk=user.pk)


def _groups(user: Any) -> set[str]:
    return set(user.groups.values_list("name", flat=True))


def _patient(ehr: EHRSimulator) -> str:
    return next(name for name in ehr.users if name.startswith("Patient/"))


@pytest.mark.compliance("IDT-07")
def test_clinician_is_filled_from_the_ehr(site: Any, ehr: EHRSimulator) -> None:
    user = _sign_in(ehr)
    assert (user.first_name, user.last_name) == ("Helena", "Brandvold")
    assert site.npis == {user.pk: "9990000015"}
    assert _groups(user) == {"Clinicians"}
    (request,) = ehr.requests_to("fhir")
    assert request.headers["Authorization"].startswith("Bearer ")


def test_patient_is_filled_from_the_ehr(site: Any, ehr: EHRSimulator) -> None:
    reference = _patient(ehr)
    user = _sign_in(ehr, user=reference, patient=reference.partition("/")[2])
    assert (user.first_name, user.last_name) == ("Marisol Jean", "Quillfeather")
    assert site.npis == {}
    assert _groups(user) == {"Patients"}


def test_server_that_is_not_trusted_with_groups_changes_none(
    site: Any, ehr: EHRSimulator
) -> None:
    """A portal of patients that calls its people practitioners."""
    ClientRegistration.objects.update(manage_groups=False)
    user = _sign_in(ehr)
    assert user.first_name == "Helena"
    assert _groups(user) == set()
    Group.objects.get(name="Patients").user_set.add(user)
    assert _groups(_sign_in(ehr)) == {"Patients"}


def test_user_is_filled_before_anybody_is_told_of_the_launch(
    site: Any, ehr: EHRSimulator
) -> None:
    browser = make_browser()
    opened = launch(browser, ehr)
    assert opened.user is not None
    assert browser.session["_auth_user_id"] == str(opened.user.pk)
    assert browser.session["_auth_user_backend"] == "clinic.backends.ClinicBackend"


def test_sign_in_goes_on_without_what_could_not_be_read(
    site: Any,
    ehr: EHRSimulator,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_args: Any) -> None:
        raise ValueError("Helena Brandvold")

    monkeypatch.setattr(site, "remember_npi", fail)
    with caplog.at_level(logging.WARNING):
        user = _sign_in(ehr)
    assert user.first_name == "Helena"
    assert f"Cannot fill user {user.pk}: ValueError at <string>:" in caplog.text
    assert "Brandvold" not in caplog.text
    # So it does when the EHR does not let it be read.
    caplog.clear()
    ehr.data["Practitioner"].clear()
    assert _sign_in(ehr) == user
    assert f"Cannot fill user {user.pk}: FHIRNotFoundError at" in caplog.text


def test_who_connects_records_keeps_the_name_and_the_groups(
    site: Any, ehr: EHRSimulator
) -> None:
    ada = User.objects.create(username="ada", first_name="Ada")
    browser = make_browser()
    browser.force_login(ada, backend="django.contrib.auth.backends.ModelBackend")
    opened = connect(browser, ehr)
    assert (opened.user, opened.intent) == (ada, Launch.Intent.CONNECT)
    ada.refresh_from_db()
    assert ada.first_name == "Ada"
    assert _groups(ada) == set()
    assert ehr.requests_to("fhir") == []


def test_launch_without_an_identity_fills_nobody(site: Any, ehr: EHRSimulator) -> None:
    site.ClinicBackend.fill_user = None  # nothing calls it
    ClientRegistration.objects.update(ehr_scope="launch patient/Patient.r")
    assert launch(make_browser(), ehr).user is None


# Groups


def test_groups_that_are_not_named_are_left_alone(site: Any, ehr: EHRSimulator) -> None:
    user = _sign_in(ehr)
    user.groups.set(Group.objects.filter(name__in=["Patients", "Others"]))
    assert _groups(_sign_in(ehr)) == {"Clinicians", "Others"}


def test_group_that_does_not_exist_is_told_and_not_made(
    site: Any, ehr: EHRSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    Group.objects.filter(name="Clinicians").delete()
    user = _sign_in(ehr)
    assert _groups(user) == set()
    assert f"User {user.pk}: group Clinicians does not exist" in caplog.text
    assert not Group.objects.filter(name="Clinicians").exists()


def test_type_without_a_group_is_in_none_of_them(site: Any, ehr: EHRSimulator) -> None:
    site.ClinicBackend.groups_by_type = {"Patient": "Patients"}
    user = _sign_in(ehr)
    assert _groups(user) == set()
    user.groups.set(Group.objects.all())
    assert _groups(_sign_in(ehr)) == {"Clinicians", "Others"}


def test_group_may_depend_on_the_issuer(
    site: Any, ehr: EHRSimulator, settings: Any
) -> None:
    settings.AUTHENTICATION_BACKENDS = ["clinic.backends.CarefulBackend"]
    assert _groups(_sign_in(ehr)) == {"Patients"}
    claims = {"iss": "https://ehr.example.org", "fhirUser": "Practitioner/1"}
    assert claims["iss"] != ehr.issuer
    assert site.CarefulBackend().get_group_name(claims) == "Clinicians"

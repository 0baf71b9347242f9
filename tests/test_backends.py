"""The backend: mozilla-django-oidc's hooks, and nothing of its other habits."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import aauthenticate, authenticate, get_user_model
from django.core.exceptions import SuspiciousOperation
from django.db import DataError, IntegrityError
from django.test import RequestFactory
from mozilla_django_oidc.auth import OIDCAuthenticationBackend

from django_smart.backends import Claims, SMARTAuthenticationBackend
from django_smart.exceptions import (
    IdentityError,
)
from django_smart.models import ClientRegistration, Identity
from django_smart.protocol.id_token import IDTokenClaims
from django_smart.testing import EHRSimulator
from tests.ehr import get_callback, launch, make_browser, start_ehr_launch
from tests.errors import raises_code
from tests.factories import make_identity
from tests.launch_urls import get_code
from tests.threads import run_together

pytestmark = pytest.mark.django_db

User: Any = get_user_model()
_ISSUER = "https://ehr.example.org/v/r4/sim/abc"


class SiteBackend(SMARTAuthenticationBackend):
    """What a site may override."""

    def verify_claims(self, claims: Any) -> bool:
        return str(claims["fhirUser"]).startswith("Practitioner/")

    def find_user_to_link(self, claims: Any) -> Any:
        return User.objects.filter(username="ada").first()

    def create_user(self, claims: Any) -> Any:
        user: Any = super().create_user(claims)
        user.first_name = claims["fhirUser"]
        user.save()
        return user

    def update_user(self, user: Any, claims: Any) -> Any:
        user.last_name = "seen"
        user.save()
        return user


def _claims(subject: str = "s-1", **claims: Any) -> IDTokenClaims:
    return IDTokenClaims(
        issuer=_ISSUER,
        subject=subject,
        fhir_user=claims.pop("fhirUser", None),
        claims=claims,
    )


def _link(user: Any, subject: str = "s-1") -> Any:
    make_identity(user, issuer=_ISSUER, subject=subject)
    return user


@pytest.fixture
def decision() -> Iterator[mock.Mock]:
    """Upstream's own function, which runs as it is, with a record of its calls."""
    with mock.patch.object(
        OIDCAuthenticationBackend,
        "get_or_create_user",
        autospec=True,
        side_effect=OIDCAuthenticationBackend.get_or_create_user,
    ) as recorded:
        yield recorded


@pytest.mark.django_db
def test_user_at_another_fhir_server_has_no_reference_here(
    registration: ClientRegistration,
) -> None:
    elsewhere = "https://other.example.org/fhir/Practitioner/1"
    claims = replace(_claims(), claims={"fhirUser": elsewhere})
    seen: dict[str, Any] = {}

    class Backend(SMARTAuthenticationBackend):
        def create_user(self, claims: Any) -> Any:
            seen.update(claims)
            return super().create_user(claims)

    Backend().resolve_user(claims, registration)
    assert "fhirUser" not in seen
    assert seen["sub"] == "s-1"


def test_usernames_come_from_issuer_and_subject() -> None:
    backend = SMARTAuthenticationBackend()
    names = {
        backend.get_username({"iss": issuer, "sub": subject})
        for issuer, subject in (
            (_ISSUER, "a"),
            (_ISSUER, "A"),
            (_ISSUER, "a "),
            (_ISSUER + "a", ""),
            ("https://other.example.org", "a"),
        )
    }
    assert len(names) == 5
    assert all(len(name) == 32 and name.startswith("smart-") for name in names)
    # Also where names are compared without regard to case.
    assert len({name.lower() for name in names}) == 5


@pytest.mark.compliance("IDT-09")
def test_address_that_an_ehr_claims_finds_nobody(
    registration: ClientRegistration,
) -> None:
    admin = User.objects.create(username="root", email="root@example.org")
    user: Any = SMARTAuthenticationBackend().resolve_user(
        _claims(email="root@example.org", email_verified=True), registration
    )
    assert user != admin
    assert user.email == ""
    assert not user.has_usable_password()


def test_deactivated_user_is_refused(registration: ClientRegistration) -> None:
    user = User.objects.create(username="ada", is_active=False)
    make_identity(user, issuer=_ISSUER, subject="abc")
    backend = SMARTAuthenticationBackend()
    with pytest.raises(IdentityError) as caught:
        backend.resolve_user(_claims("abc"), registration)
    assert caught.value.code == "user_inactive"
    assert backend.get_user(user.pk) is None
    user.is_active = True
    user.save()
    assert backend.get_user(user.pk) == user
    assert backend.get_user(user.pk + 1) is None


# Upstream's decision


@pytest.mark.usefixtures("registration")
def test_upstream_decides_the_first_and_the_second_sign_in(
    ehr: EHRSimulator, decision: mock.Mock, settings: Any
) -> None:
    settings.OIDC_CREATE_USER = False  # the staff's server's
    user = launch(make_browser(), ehr).user
    assert decision.call_count == 1
    assert launch(make_browser(), ehr).user == user
    assert decision.call_count == 2
    assert User.objects.get() == user


def test_upstream_decides_that_nobody_is_created(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    decision: mock.Mock,
    settings: Any,
) -> None:
    settings.OIDC_CREATE_USER = True
    registration.create_users = False
    registration.save()
    browser = make_browser()
    response = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    assert (response.status_code, get_code(response)) == (403, "user_refused")
    assert decision.call_count == 1
    assert not User.objects.exists()


@pytest.mark.usefixtures("registration")
def test_no_second_user_is_created_beside_an_inactive_one(
    ehr: EHRSimulator, decision: mock.Mock
) -> None:
    user = launch(make_browser(), ehr).user
    User.objects.update(is_active=False)
    browser = make_browser()
    response = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    assert (response.status_code, get_code(response)) == (403, "user_inactive")
    assert decision.call_count == 2
    assert User.objects.get() == user
    assert "_auth_user_id" not in browser.session


def _hide(user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave *user* out of the users that the site's manager selects."""
    shown = User._default_manager.exclude(pk=user.pk)
    monkeypatch.setattr(User._default_manager, "get_queryset", shown.all)


@pytest.mark.parametrize("creates_users", [True, False])
@pytest.mark.parametrize("is_signed_in", [False, True])
def test_user_whom_the_site_s_manager_hides_is_refused(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    monkeypatch: pytest.MonkeyPatch,
    is_signed_in: bool,
    creates_users: bool,
) -> None:
    user: Any = launch(make_browser(), ehr).user
    registration.create_users = creates_users
    registration.save()
    browser = make_browser()
    if is_signed_in:
        browser.force_login(User.objects.create_user("ada"))
    before = User._base_manager.count()
    _hide(user, monkeypatch)
    response = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    assert (response.status_code, get_code(response)) == (403, "user_inactive")
    assert User._base_manager.count() == before
    assert Identity.objects.get().user_id == user.pk
    assert SMARTAuthenticationBackend().get_user(user.pk) is None


def test_identity_of_a_hidden_user_is_not_linked(
    registration: ClientRegistration, monkeypatch: pytest.MonkeyPatch
) -> None:
    User.objects.create(username="ada")
    _hide(_link(User.objects.create(username="maria")), monkeypatch)
    backend = LinkingBackend()
    with raises_code("user_inactive"):
        backend.resolve_user(_claims(staff="ada"), registration)
    assert "find_user_to_link" not in backend.calls


class LinkingBackend(SMARTAuthenticationBackend):
    """A site with users of its own, and a look-up that may find several."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def verify_claims(self, claims: Any) -> bool:
        self.calls.append("verify_claims")
        return "refused" not in claims

    def filter_users_by_claims(self, claims: Any) -> Any:
        self.calls.append("filter_users_by_claims")
        if "several" in claims:
            return User.objects.all()
        return super().filter_users_by_claims(claims)

    def find_user_to_link(self, claims: Any) -> Any:
        self.calls.append("find_user_to_link")
        if "suspicious" in claims:
            raise SuspiciousOperation(claims["email"])
        return User.objects.filter(username=claims.get("staff")).first()

    def update_user(self, user: Any, claims: Any) -> Any:
        self.calls.append("update_user")
        return user


def test_hooks_are_called_in_order(registration: ClientRegistration) -> None:
    registration.create_users = False
    ada = User.objects.create(username="ada")
    backend = LinkingBackend()
    assert backend.resolve_user(_claims(staff="ada"), registration) == ada
    assert backend.calls == [
        "verify_claims",
        "filter_users_by_claims",
        "find_user_to_link",
        "update_user",
    ]
    # A known identity is nobody else's to link.
    maria = _link(User.objects.create(username="maria"))
    backend.calls.clear()
    assert backend.resolve_user(_claims(staff="ada"), registration) == maria
    assert "find_user_to_link" not in backend.calls
    # Refused: nothing else is asked about this person.
    backend.calls.clear()
    with pytest.raises(IdentityError):
        backend.resolve_user(_claims(staff="ada", refused=True), registration)
    assert backend.calls == ["verify_claims"]


def test_inactive_user_is_not_linked(registration: ClientRegistration) -> None:
    User.objects.create(username="ada", is_active=False)
    with raises_code("user_inactive"):
        LinkingBackend().resolve_user(_claims(staff="ada"), registration)
    assert User.objects.count() == 1


def test_several_users_of_one_identity_are_refused(
    registration: ClientRegistration, decision: mock.Mock
) -> None:
    ada = User.objects.create(username="ada")
    backend = LinkingBackend()
    assert backend.resolve_user(_claims(several=True), registration) == ada
    User.objects.create(username="maria")
    backend.calls.clear()
    with pytest.raises(IdentityError) as caught:
        backend.resolve_user(_claims(several=True), registration)
    assert isinstance(caught.value.__cause__, SuspiciousOperation)
    assert "update_user" not in backend.calls
    assert decision.call_count == 2
    assert User.objects.count() == 2


def test_nothing_personal_is_logged(
    registration: ClientRegistration, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    person = {
        "email": "maria@example.org",
        "name": "Maria Delgado",
        "fhirUser": "Patient/p-77",
    }
    backend = LinkingBackend()
    user: Any = backend.resolve_user(_claims("s-4711", **person), registration)
    assert user.email == ""
    registration.create_users = False
    assert not caplog.records
    for why in ({}, {"refused": True}, {"suspicious": True}):
        with pytest.raises(IdentityError) as caught:
            backend.resolve_user(_claims("s-4712", **person, **why), registration)
        assert "maria" not in str(caught.value)
    # What upstream says of a user who is not created.
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("mozilla_django_oidc.auth", "DEBUG")
    for value in ("s-471", "maria", "Maria", "p-77"):
        assert value not in caplog.text


@pytest.mark.django_db(transaction=True)
def test_threads_may_share_a_backend(registration: ClientRegistration) -> None:
    meeting = threading.Barrier(2)

    class MeetingBackend(SMARTAuthenticationBackend):
        """Each thread waits for the other one in the middle of its call."""

        def verify_claims(self, claims: Any) -> bool:
            meeting.wait(60)
            return True

        def update_user(self, user: Any, claims: Any) -> Any:
            user.last_name = claims["sub"]
            return user

    backend = MeetingBackend()
    for name in ("ada", "maria"):
        _link(User.objects.create(username=name), name)
    subjects = ("new", "first", "second")
    names = {s: backend.get_username({"iss": _ISSUER, "sub": s}) for s in subjects}
    creates_none = ClientRegistration.objects.get(pk=registration.pk)
    creates_none.create_users = False

    ada, maria = run_together(
        lambda: backend.resolve_user(_claims("ada"), registration),
        lambda: backend.resolve_user(_claims("maria"), creates_none),
    )
    assert (ada.username, ada.last_name) == ("ada", "ada")
    assert (maria.username, maria.last_name) == ("maria", "maria")

    created, refused = run_together(
        lambda: backend.resolve_user(_claims("new"), registration),
        lambda: backend.resolve_user(_claims("newer"), creates_none),
    )
    assert created.username == names["new"]
    assert isinstance(refused, IdentityError)

    first, second = run_together(
        lambda: backend.resolve_user(_claims("first"), registration),
        lambda: backend.resolve_user(_claims("second"), registration),
    )
    assert first.username == names["first"]
    assert second.username == names["second"]
    assert User.objects.count() == 5


# Hooks of a site


def test_hooks_of_a_site_decide(
    ehr: EHRSimulator, registration: ClientRegistration, settings: Any
) -> None:
    settings.AUTHENTICATION_BACKENDS = [
        "django.contrib.auth.backends.ModelBackend",
        "tests.test_backends.SiteBackend",
    ]
    browser = make_browser()
    created: Any = launch(browser, ehr).user
    assert created.first_name.startswith("Practitioner/")
    assert browser.session["_auth_user_backend"] == "tests.test_backends.SiteBackend"
    updated: Any = launch(make_browser(), ehr).user
    assert (updated.pk, updated.last_name) == (created.pk, "seen")

    ada = User.objects.create(username="ada")
    second = [name for name in ehr.users if name.startswith("Practitioner/")][1]
    assert launch(make_browser(), ehr, user=second).user == ada
    assert ada.smart_identities.count() == 1

    patient = next(name for name in ehr.users if name.startswith("Patient/"))
    stranger = make_browser()
    url = ehr.authorize(start_ehr_launch(stranger, ehr, user=patient))
    response = get_callback(stranger, url)
    assert response.status_code == 403
    assert b"<code>user_refused</code>" in response.content
    assert User.objects.count() == 2
    assert registration.launches.filter(error_code="user_refused").count() == 1


@pytest.mark.usefixtures("registration")
@pytest.mark.parametrize("path", ["SiteBackend", "Sites.Own", "SitesOwn"])
def test_backend_may_be_named_by_any_path(
    ehr: EHRSimulator, settings: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a package does that takes it out of a module of its own.
    monkeypatch.setitem(
        sys.modules, "tests.test_backends.Sites", SimpleNamespace(Own=SiteBackend)
    )
    monkeypatch.setitem(globals(), "SitesOwn", SiteBackend)
    settings.AUTHENTICATION_BACKENDS = [
        "django.contrib.auth.backends.ModelBackend",
        f"tests.test_backends.{path}",
    ]
    browser = make_browser()
    launch(browser, ehr)
    assert browser.session["_auth_user_backend"] == f"tests.test_backends.{path}"
    assert browser.get("/admin/login/").wsgi_request.user == User.objects.get()


class NamedBackend(SMARTAuthenticationBackend):
    """A site's own names, and what else its users need."""

    def get_username(self, claims: Any) -> str:
        return f"{claims['fhirUser'].partition('/')[0]}-of-the-ehr"

    def create_user(self, claims: Any) -> Any:
        return User.objects.create_user(self.get_username(claims), first_name="new")


class NamelessBackend(SMARTAuthenticationBackend):
    """A site's own way to make users, by the package's names."""

    def create_user(self, claims: Any) -> Any:
        return User.objects.create_user(self.get_username(claims), first_name="new")


@pytest.mark.compliance("IDT-09")
@pytest.mark.usefixtures("registration")
@pytest.mark.parametrize("backend", [SMARTAuthenticationBackend, NamelessBackend])
def test_unlinked_identity_becomes_another_user(
    ehr: EHRSimulator, settings: Any, backend: type
) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{backend.__module__}.{backend.__qualname__}"]
    former: Any = launch(make_browser(), ehr).user
    # As the admin does it.
    Identity.objects.all().delete()
    browser = make_browser()
    user: Any = launch(browser, ehr).user
    assert user != former
    assert user.username.startswith("smart-")
    assert len(user.username) == len(former.username) == 32
    assert browser.session["_auth_user_id"] == str(user.pk)
    assert Identity.objects.get().user == user
    # And is found from now on.
    assert launch(make_browser(), ehr).user == user
    assert User.objects.count() == 2


@pytest.mark.compliance("IDT-09")
def test_name_that_somebody_registered_first_signs_nobody_in_as_them(
    registration: ClientRegistration,
) -> None:
    backend = SMARTAuthenticationBackend()
    name = backend.get_username({"iss": _ISSUER, "sub": "s-1"})
    squatter = User.objects.create_user(name, is_active=False)
    user: Any = backend.resolve_user(_claims(), registration)
    assert user != squatter
    assert user.username not in {name, ""}
    assert not squatter.smart_identities.exists()
    # Whose name it is by rights keeps it.
    make_identity(user, issuer=_ISSUER, subject="s-1")
    claims = Claims(iss=_ISSUER, sub="s-1")
    claims.server = registration.server
    assert backend.get_username(claims) == name
    # Claims that nobody proved find nobody.
    assert not backend.filter_users_by_claims(dict(claims))


@pytest.mark.parametrize("taken", ["Practitioner-of-the-ehr", "", "another name"])
@pytest.mark.usefixtures("registration")
def test_name_of_a_site_that_somebody_has_is_refused(
    ehr: EHRSimulator, settings: Any, taken: str, caplog: Any
) -> None:
    settings.AUTHENTICATION_BACKENDS = ["tests.test_backends.NamedBackend"]
    if taken:
        User.objects.create_user(taken)
    browser = make_browser()
    response = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    is_refused = taken.startswith("Practitioner")
    assert ("_auth_user_id" in browser.session) is not is_refused
    assert Identity.objects.exists() is not is_refused
    assert (
        "get_username returned a name that is already taken" in caplog.text
    ) is is_refused
    if is_refused:
        assert response.status_code == 403
        assert b"<code>user_refused</code>" in response.content
        assert User.objects.get().first_name == ""
    else:
        assert User.objects.get(username="Practitioner-of-the-ehr").first_name == "new"


@pytest.mark.parametrize("error", [DataError, IntegrityError])
def test_user_whom_the_database_refuses_is_not_taken_for_a_name(
    registration: ClientRegistration,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[Exception],
) -> None:
    def fail(self: Any, claims: Any) -> None:
        raise error("Key (email)=(maria@example.org) already exists.")

    monkeypatch.setattr(NamedBackend, "create_user", fail)
    with pytest.raises(IdentityError):
        NamedBackend().resolve_user(_claims(fhirUser="Practitioner/1"), registration)
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "override create_user" in record.message
    assert "maria" not in caplog.text


def test_user_whom_a_faster_callback_has_created_is_found_by_the_next_attempt(
    registration: ClientRegistration,
) -> None:
    class Backend(SMARTAuthenticationBackend):
        def create_user(self, claims: Any) -> Any:
            raise IntegrityError("UNIQUE constraint failed: auth_user.username")

        def get_username(self, claims: Any) -> str:
            # Outside of what the error rolls back.
            _link(User.objects.create_user("created meanwhile"))
            return super().get_username(claims)

    with pytest.raises(IntegrityError):
        Backend().resolve_user(_claims(), registration)


def test_django_never_signs_anybody_in_by_our_backend(settings: Any) -> None:
    settings.AUTHENTICATION_BACKENDS = [
        "django_smart.backends.SMARTAuthenticationBackend"
    ]
    User.objects.create_user("ada", password="a password")
    request = RequestFactory().get("/smart/callback/?code=x&state=y")
    for credentials in (
        {"username": "ada", "password": "a password"},
        {"nonce": "x"},
        {"code": "x"},
    ):
        credentials_any: dict[str, Any] = credentials
        assert authenticate(request, **credentials_any) is None
        assert async_to_sync(aauthenticate)(request, **credentials_any) is None


def test_backend_reads_no_setting_of_the_staffs_server(
    settings: Any, registration: ClientRegistration
) -> None:
    settings.OIDC_RP_SIGN_ALGO = "RS256"
    assert not hasattr(settings, "OIDC_OP_TOKEN_ENDPOINT")
    # Upstream's raises ImproperlyConfigured here.
    backend = SMARTAuthenticationBackend()
    assert backend.resolve_user(_claims(), registration) == User.objects.get()

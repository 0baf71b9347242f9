"""An account that its user has only connected, and what it does not do to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import pytest
import time_machine
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.auth.signals import user_logged_in
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.test import Client
from django.urls import path
from django.utils import timezone

from django_smart.backends import SMARTAuthenticationBackend
from django_smart.models import ClientRegistration, FHIRServer, Identity, TokenGrant
from django_smart.testing import EHRSimulator
from django_smart.testing.site import create_registration, link_user, mounted_ehr
from tests.ehr import make_browser
from tests.factories import make_identity, make_server
from tests.launch_urls import urlpatterns as site

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

User: Any = get_user_model()


def issue_token(request: HttpRequest) -> HttpResponse:
    """Sign in to an API: some packages send the signal without a session."""
    user = User.objects.get(username=request.GET["user"])
    user_logged_in.send(sender=User, request=request, user=user)
    return HttpResponse()


urlpatterns = [
    *site,
    path("accounts/login/", LoginView.as_view()),
    path("token/", issue_token),
]


@pytest.fixture(autouse=True)
def _login_url(settings: Any) -> None:
    settings.LOGIN_URL = "/accounts/login/"


@pytest.fixture
def evil() -> Iterator[EHRSimulator]:
    """A registered EHR whose operator is the attacker."""
    with mounted_ehr("https://evil.example.net/fhir") as simulator:
        create_registration(simulator, server__slug="evil", client_id="evil")
        yield simulator


@pytest.fixture
def person(evil: EHRSimulator) -> str:
    """The attacker's account at the EHR, or one that a user connects."""
    return next(name for name in evil.users if name.startswith("Patient/"))


@pytest.fixture
def vera() -> Any:
    """A user of this site who signs in with a password."""
    return User.objects.create_user(
        "vera", "vera@hospital.example", "a password", last_name="Vera"
    )


def _sign_in(username: str, *, minutes_ago: int = 0) -> Client:
    """A browser in which a user has signed in with their password."""
    browser = make_browser(host="testserver")
    with time_machine.travel(timezone.now() - timedelta(minutes=minutes_ago)):
        assert browser.login(username=username, password="a password")
    return browser


def _come_back(browser: Client, ehr: EHRSimulator, response: Any, person: str) -> Any:
    """Go to the EHR as *person*, and from there to the callback."""
    patient = person.removeprefix("Patient/")
    url = urlsplit(ehr.authorize(response["Location"], user=person, patient=patient))
    return browser.get(url.path, parse_qsl(url.query))


def _press_connect(browser: Client, **values: str) -> Any:
    """Press the button of the confirmation page."""
    form = {"server": "evil", "user": browser.session["_auth_user_id"]}
    return browser.post("/smart/login/", form | values)


def _connect(browser: Client, ehr: EHRSimulator, person: str, **values: str) -> Any:
    return _come_back(browser, ehr, _press_connect(browser, **values), person)


def _log_in(browser: Client, ehr: EHRSimulator, person: str) -> str | None:
    """Sign in through the EHR; returns the user, if somebody was signed in."""
    response = browser.get("/smart/login/", {"server": "evil"})
    _come_back(browser, ehr, response, person)
    return browser.session.get("_auth_user_id")


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
    person: str,
    vera: Any,
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
    vera.groups.add(clinicians)
    before = _describe(vera)
    browser = _sign_in("vera")
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


# Whether it signs them in


def _choose(browser: Client, **values: Any) -> Any:
    """Press a button for the account that was connected last: yes, if not told."""
    form = {"identity": Identity.objects.latest("pk").pk, "may_sign_in": "on"}
    return browser.post("/smart/connections/", form | values)


def _list_accounts(browser: Client) -> list[tuple[str, bool]]:
    """The accounts on the page of connections, and whether each signs them in."""
    accounts = browser.get("/smart/connections/").context["accounts"]
    return [(each.server.slug, each.may_sign_in) for each in accounts]


def test_user_lets_a_connected_account_sign_them_in(
    evil: EHRSimulator, person: str, vera: Any
) -> None:
    browser = _sign_in("vera")
    _connect(browser, evil, person)
    assert _log_in(make_browser(host="testserver"), evil, person) is None
    assert _list_accounts(browser) == [("evil", False)]
    page = f"/smart/connections/?account={Identity.objects.get().pk}"
    listed = browser.get("/smart/connections/").content.decode()
    assert f'href="{page}"' in listed
    assert b'name="may_sign_in"' in browser.get(page).content
    # No is the way it was.
    assert _choose(browser, may_sign_in="")["Location"] == "/smart/connections/"
    assert _log_in(make_browser(host="testserver"), evil, person) is None
    assert _choose(browser, next="/a1c/")["Location"] == "/a1c/"
    assert _log_in(make_browser(host="testserver"), evil, person) == str(vera.pk)


def test_accounts_at_one_hospital_are_told_apart_by_whose_records_they_connected(
    evil: EHRSimulator, vera: Any
) -> None:
    browser = _sign_in("vera")
    people = [name for name in evil.users if name.startswith("Patient/")][:2]
    for person, name in zip(people, ("Ada", "Ben"), strict=True):
        _connect(browser, evil, person)
        TokenGrant.objects.note_patient_name(TokenGrant.objects.latest("pk"), name)
    accounts = browser.get("/smart/connections/").context["accounts"]
    assert [each.people for each in accounts] == [["Ada"], ["Ben"]]
    page = browser.get(accounts[1].choice_url).content
    assert b"Ben" in page
    assert b"Ada" not in page


@pytest.mark.parametrize("next_url", ["https://evil.example.net/", "//evil.example"])
def test_choice_leads_nowhere_else(
    evil: EHRSimulator, person: str, vera: Any, next_url: str
) -> None:
    browser = _sign_in("vera")
    _connect(browser, evil, person)
    assert _choose(browser, next=next_url)["Location"] == "/smart/connections/"
    asking = {"account": str(Identity.objects.get().pk), "next": next_url}
    page = browser.get("/smart/connections/", asking)
    assert page.context["next"] == ""


def test_next_user_of_an_open_session_keeps_no_way_into_it(
    evil: EHRSimulator, person: str, vera: Any
) -> None:
    desk = _sign_in("vera", minutes_ago=11)
    _connect(desk, evil, person)
    identity = Identity.objects.get()
    page = f"/smart/connections/?account={identity.pk}"
    assert b'name="may_sign_in"' not in desk.get(page).content
    # Also not by a page that was opened in time: it shows what to do.
    assert _choose(desk)["Location"] == page
    assert identity.is_connected
    assert _log_in(make_browser(host="testserver"), evil, person) is None


def test_user_who_signs_in_again_comes_back_and_has_the_choice(
    evil: EHRSimulator, person: str, vera: Any
) -> None:
    browser = _sign_in("vera", minutes_ago=11)
    _connect(browser, evil, person)
    page = browser.get("/smart/connections/", {"account": Identity.objects.get().pk})
    assert b"ten minutes" in page.content
    response = browser.post("/smart/logout/", {"next": page.context["after_sign_out"]})
    assert "_auth_user_id" not in browser.session
    form = {"username": "vera", "password": "a password"}
    response = browser.post(response["Location"], form)
    assert b'name="may_sign_in"' in browser.get(response["Location"]).content
    _choose(browser)
    assert _log_in(make_browser(host="testserver"), evil, person) == str(vera.pk)


@pytest.mark.parametrize("login_url", ["/accounts/login/", "/smart/login/"])
def test_page_of_a_choice_that_comes_too_late_leads_on(
    evil: EHRSimulator, person: str, vera: Any, settings: Any, login_url: str
) -> None:
    settings.LOGIN_URL = login_url
    browser = _sign_in("vera", minutes_ago=11)
    _connect(browser, evil, person)
    asking = {"account": str(Identity.objects.get().pk)}
    for next_url, link in (("", "/smart/connections/"), ("/~a/a1c/", "/~a/a1c/")):
        page = browser.get("/smart/connections/", asking | {"next": next_url})
        assert f'<a href="{link}">' in page.content.decode()


@pytest.mark.parametrize(("minutes_ago", "is_asked"), [(0, True), (11, False)])
def test_after_both_are_mine_comes_the_choice_only_after_a_sign_in(
    evil: EHRSimulator, person: str, vera: Any, minutes_ago: int, *, is_asked: bool
) -> None:
    browser = _sign_in("vera", minutes_ago=minutes_ago)
    page = _follow_link(browser, evil, person)["Location"]
    assert not Identity.objects.exists()
    url = browser.post(page, {"choice": "yes", "may_sign_in": "on"})["Location"]
    identity = Identity.objects.get()
    assert (identity.user, identity.may_sign_in) == (vera, False)
    if is_asked:
        asking = browser.get(url)
        assert asking.context["identity"] == identity
        url = _choose(browser, next=asking.context["next"])["Location"]
    assert url.startswith("/~")
    assert browser.get(f"{url}page/").status_code == 200
    found = _log_in(make_browser(host="testserver"), evil, person)
    assert found == (str(vera.pk) if is_asked else None)
    # An account that signs in already is not asked about again.
    assert _follow_link(browser, evil, person)["Location"].startswith("/~")


@pytest.mark.parametrize("login_url", ["/accounts/login/", "/smart/login/"])
def test_sign_in_through_an_ehr_does_not_count(
    evil: EHRSimulator, person: str, settings: Any, login_url: str
) -> None:
    settings.LOGIN_URL = login_url
    browser = make_browser(host="testserver")
    first = [name for name in evil.users if name.startswith("Patient/")][1]
    user_pk = _log_in(browser, evil, first)
    _connect(browser, evil, person)
    identity = Identity.objects.get(is_connected=True)
    page = browser.get("/smart/connections/", {"account": identity.pk}).content
    assert b'name="may_sign_in"' not in page
    # They have no password to sign in again with.
    assert b"ten minutes" not in page
    assert b"Keep signing in the way you do now" in page
    assert _list_accounts(browser) == []
    assert "account=" in _choose(browser)["Location"]
    # What signed in first still does.
    assert _log_in(make_browser(host="testserver"), evil, first) == user_pk
    assert _log_in(make_browser(host="testserver"), evil, person) is None


@pytest.mark.parametrize("user", ["mallory", "vera"])
def test_token_of_an_api_is_no_sign_in(
    evil: EHRSimulator, person: str, vera: Any, user: str
) -> None:
    User.objects.create_user("mallory", password="a password")
    desk = _sign_in("vera", minutes_ago=11)
    _connect(desk, evil, person)
    # Its view may accept the session that was left open, as Django REST framework does.
    desk.get("/token/", {"user": user})
    _choose(desk)
    assert not Identity.objects.get().may_sign_in


def impersonate_vera(get_response: Any) -> Callable[[HttpRequest], HttpResponseBase]:
    """Show the site as this user, without a sign-in."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        request.user = User.objects.get(username="vera")
        response: HttpResponseBase = get_response(request)
        return response

    return middleware


def test_sign_in_of_staff_does_not_count_for_whom_they_impersonate(
    evil: EHRSimulator, person: str, vera: Any, settings: Any
) -> None:
    _connect(_sign_in("vera"), evil, person)
    User.objects.create_user("support", password="a password")
    browser = _sign_in("support")
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.impersonate_vera"]
    # Their account is shown.
    assert _list_accounts(browser) == [("evil", False)]
    _choose(browser)
    assert not Identity.objects.get().may_sign_in


def test_choice_is_listed_and_withdrawn(
    evil: EHRSimulator, person: str, vera: Any
) -> None:
    browser = _sign_in("vera")
    _connect(browser, evil, person)
    _choose(browser)
    # Without a connection that is listed, too, and at any time.
    TokenGrant.objects.all().delete()
    browser = _sign_in("vera", minutes_ago=11)
    assert _list_accounts(browser) == [("evil", True)]
    pk = Identity.objects.get().pk
    page = browser.get("/smart/connections/").content.decode()
    assert f'name="identity" value="{pk}"' in page
    for _click in range(2):
        response = browser.post("/smart/connections/", {"identity": pk})
        assert response["Location"] == "/smart/connections/"
    assert _list_accounts(browser) == [("evil", False)]
    assert _log_in(make_browser(host="testserver"), evil, person) is None


def test_choice_ends_with_the_connection(
    evil: EHRSimulator, person: str, vera: Any
) -> None:
    browser = _sign_in("vera")
    _connect(browser, evil, person)
    _choose(browser)
    # Also if the same account has another connection.
    _connect(browser, evil, person)
    newest = TokenGrant.objects.latest("pk")
    browser.post("/smart/connections/", {"grant": newest.pk})
    assert _log_in(make_browser(host="testserver"), evil, person) is None
    _connect(browser, evil, person)
    assert not Identity.objects.get().may_sign_in


def test_account_that_signed_in_first_signs_in_after_disconnecting(
    evil: EHRSimulator, person: str
) -> None:
    browser = make_browser(host="testserver")
    user_pk = _log_in(browser, evil, person)
    identity = Identity.objects.get()
    assert _list_accounts(browser) == []
    browser.post("/smart/connections/", {"grant": TokenGrant.objects.get().pk})
    response = browser.post("/smart/connections/", {"identity": identity.pk})
    assert response.status_code == 404
    assert _log_in(make_browser(host="testserver"), evil, person) == user_pk


def test_choice_of_another_user_is_neither_listed_nor_changed(
    evil: EHRSimulator, person: str, vera: Any
) -> None:
    _connect(_sign_in("vera"), evil, person)
    User.objects.create_user("mallory", password="a password")
    identity = Identity.objects.get()
    for before in (False, True):
        Identity.objects.update(may_sign_in=before)
        for browser in (_sign_in("mallory"), make_browser(host="testserver")):
            assert _list_accounts(browser) == []
            page = browser.get("/smart/connections/", {"account": identity.pk})
            assert "identity" not in page.context
            for pk in (identity.pk, "", "x", "9" * 40):
                chosen = "" if before else "on"
                response = _choose(browser, identity=pk, may_sign_in=chosen)
                assert response.status_code == 404
        identity.refresh_from_db()
        assert identity.may_sign_in is before


def test_choice_is_stored_for_all_servers_of_the_login_group(
    evil: EHRSimulator, person: str, vera: Any
) -> None:
    FHIRServer.objects.update(login_group="tenants")
    tenant = make_server(
        slug="tenant", base_url="https://tenant.example.org", login_group="tenants"
    )
    browser = _sign_in("vera")
    _connect(browser, evil, person)
    _choose(browser)
    # The account was connected at the other tenant, and signs in at this one.
    Identity.objects.update(server=tenant)
    assert _log_in(make_browser(host="testserver"), evil, person) == str(vera.pk)
    first, second = Identity.objects.order_by("pk")
    assert (second.is_connected, second.may_sign_in) == (True, True)
    stranger = make_identity(vera, server=tenant, is_connected=True)
    for chosen in ("", "on"):
        Identity.objects.filter(pk=stranger.pk).update(may_sign_in=not chosen)
        _choose(browser, identity=first.pk, may_sign_in=chosen)
        found = _log_in(make_browser(host="testserver"), evil, person)
        assert found == (str(vera.pk) if chosen else None)
        stranger.refresh_from_db()
        assert stranger.may_sign_in is not bool(chosen)


def test_choice_is_not_made_for_another_user_of_the_same_account(
    evil: EHRSimulator, person: str, vera: Any
) -> None:
    browser = _sign_in("vera")
    _connect(browser, evil, person)
    own = Identity.objects.get()
    mallory = User.objects.create_user("mallory")
    tenant = make_server(slug="tenant", base_url="https://tenant.example.org")
    account = {"issuer": own.issuer, "subject": own.subject}
    other = make_identity(
        mallory, server=tenant, is_connected=True, may_sign_in=False, **account
    )
    # Both were connected before the servers had a group.
    FHIRServer.objects.update(login_group="tenants")
    _choose(browser, identity=own.pk)
    other.refresh_from_db()
    assert not other.may_sign_in
    Identity.objects.update(may_sign_in=True)
    _choose(browser, identity=own.pk, may_sign_in="")
    other.refresh_from_db()
    assert other.may_sign_in


def test_account_that_staff_linked_counts_as_signed_in_first(
    evil: EHRSimulator, person: str, vera: Any
) -> None:
    link_user(evil, vera, person)
    _connect(_sign_in("vera"), evil, person)
    assert not Identity.objects.get().is_connected

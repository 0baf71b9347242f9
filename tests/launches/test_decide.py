"""Held launches: who signs in, who decides, and what happens to the tokens."""

from __future__ import annotations

import itertools
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar
from urllib.parse import urlencode

import pytest
import time_machine
from django.contrib.auth import get_user_model
from django.db import OperationalError, connection
from django.http import HttpRequest, HttpResponseBase
from django.test import Client
from django.test.utils import override_script_prefix
from django.utils import timezone
from django.utils.html import escape

from django_smart import tasks, transport
from django_smart.backends import SMARTAuthenticationBackend
from django_smart.grants.ending import revoke_pending
from django_smart.launches.held import end_at_any_stage
from django_smart.launches.purge import purge
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Identity,
    Launch,
    TokenGrant,
)
from django_smart.signals import grant_revoked, launch_failed
from django_smart.testing import EHRSimulator
from tests.answers import after_answer
from tests.celery import Broker
from tests.ehr import (
    PATIENT,
    connect,
    get_callback,
    get_launch,
    get_launch_cookies,
    launch,
    listening,
    make_browser,
    start_ehr_launch,
    start_login,
)
from tests.factories import (
    make_launch,
    make_registration,
    make_server,
    make_user,
    register_at,
)
from tests.launch_urls import get_code, open_page

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.launch_urls"),
    pytest.mark.usefixtures("database_travels", "registration"),
]

User: Any = get_user_model()
_NAMED = "launch openid fhirUser profile patient/Patient.rs online_access"


@pytest.fixture
def commit(django_capture_on_commit_callbacks: Any) -> Callable[[], Any]:
    """A ``with`` block after which what has ended is revoked."""

    @contextmanager
    def run() -> Iterator[None]:
        with django_capture_on_commit_callbacks(execute=True):
            yield
        revoke_pending()

    return run


@pytest.fixture(autouse=True)
def _login_url(settings: Any) -> None:
    settings.LOGIN_URL = "/admin/login/"


def _sign_in(browser: Client, user: Any) -> Any:
    browser.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return user


def _signed_in(browser: Client) -> str | None:
    return browser.session.get("_auth_user_id")


def _launch(browser: Client, ehr: EHRSimulator, **values: Any) -> Any:
    """The answer of the callback of an EHR launch."""
    return get_callback(
        browser, ehr.authorize(start_ehr_launch(browser, ehr, **values))
    )


def _get_held(response: HttpResponseBase) -> tuple[Launch, str]:
    """The held launch that *response* leads to, and the page that asks."""
    assert response.status_code == 302, getattr(response, "content", b"")
    location = response["Location"].replace("%2F", "/")
    found = re.search(r"/smart/decide/([A-Za-z0-9_-]+)/", location)
    assert found is not None, location
    held = Launch.objects.get(key=found[1])
    assert held.status == "held"
    assert held.grant is not None
    assert (held.grant.status, held.grant.user) == ("held", None)
    return held, found[0]


def _second_clinician(ehr: EHRSimulator) -> str:
    return [name for name in ehr.users if name.startswith("Practitioner/")][1]


# Connecting lends records, not the account


def test_connected_account_signs_nobody_in(ehr: EHRSimulator) -> None:
    owner = make_user("maria")
    connect(_signed_in_browser(owner), ehr)
    browser = make_browser()
    response = _launch(browser, ehr)
    held, page = _get_held(response)
    assert browser.get(page).context["sign_in_url"] == f"/admin/login/?next={page}"
    assert (_signed_in(browser), held.question) == (None, "sign_in")
    # Neither the session nor a column that can be read has claims or context.
    assert held.context == {}
    assert PATIENT in held.held
    with connection.cursor() as cursor:
        cursor.execute("SELECT held FROM django_smart_launch WHERE id = %s", [held.pk])
        assert PATIENT not in cursor.fetchone()[0]
    # Nobody can use the tokens, nor does a worker refresh them.
    assert held.grant not in TokenGrant.objects.active()
    # Nor does opening the page.
    assert browser.get(page).status_code == 200
    assert browser.post(page, {"choice": "yes"})["Location"] == page
    assert _signed_in(browser) is None

    _sign_in(browser, owner)
    before = browser.session.session_key
    finished = get_launch(browser.get(page))
    assert (finished.pk, finished.user, finished.held) == (held.pk, owner, "")
    assert browser.session.session_key == before
    assert open_page(browser, finished) == 200
    assert not Identity.objects.get().may_sign_in
    # Back and forward: the page leads to what was opened.
    assert get_launch(browser.get(page)) == finished
    assert get_launch(browser.post(page, {"choice": "cancel"})) == finished


@pytest.fixture
def second() -> Iterator[EHRSimulator]:
    """Another organization."""
    registration = make_registration(
        server__slug="second",
        server__name="Second Hospital",
        server__base_url="https://second.example.org/fhir",
    )
    simulator = EHRSimulator(base_url=registration.server.base_url)
    register_at(simulator, registration.redirect_uri, name="Growth chart")
    with transport.mounted("https://second.example.org", simulator.adapter()):
        yield simulator


def _connect_second(ehr: EHRSimulator, second: EHRSimulator) -> tuple[Client, Launch]:
    """As most patients: sign in through one organization, and connect another."""
    browser = make_browser()
    signed_in = connect(browser, ehr)
    url = start_login(browser, server="second")
    connected = get_launch(get_callback(browser, second.authorize(url)))
    assert connected.user == signed_in.user
    return browser, connected


@pytest.mark.parametrize("is_other_signed_in", [False, True])
def test_owner_without_a_password_signs_in_through_their_organization(
    ehr: EHRSimulator, second: EHRSimulator, *, is_other_signed_in: bool
) -> None:
    _, connected = _connect_second(ehr, second)
    browser = make_browser()
    url = browser.get("/smart/login/", {"server": "second"})["Location"]
    if is_other_signed_in:
        _sign_in(browser, make_user("sam"))
    response = get_callback(browser, second.authorize(url))
    if is_other_signed_in:
        _, page = _get_held(response)
        response = browser.post(page, {"choice": "no"})
    held, page = _get_held(response)
    # Not to the password form.
    assert response["Location"] == page
    shown = browser.get(page)
    link = shown.context["sign_in_url"]
    assert link == f"/smart/login/?{urlencode({'next': page})}"
    assert f'href="{escape(link)}"' in shown.content.decode()
    # They may sign in to this site otherwise, such as at an identity provider.
    site_link = shown.context["site_sign_in_url"]
    assert site_link == f"/admin/login/?{urlencode({'next': page}, safe='/')}"
    assert f'href="{escape(site_link)}"' in shown.content.decode()
    # It may be somebody else who sees it.
    assert "Harbour Hospital" not in shown.content.decode()
    started = browser.get(f"{link}&server=harbour")
    landed = get_callback(browser, ehr.authorize(started["Location"]))
    finished = get_launch(browser.get(browser.get(landed["Location"])["Location"]))
    assert (finished.pk, finished.user) == (held.pk, connected.user)


@pytest.mark.parametrize("login_url", ["/admin/login/", "/smart/login/", "/none/"])
def test_owner_without_a_password_is_sent_to_no_other_dead_end(
    ehr: EHRSimulator, second: EHRSimulator, settings: Any, login_url: str
) -> None:
    settings.LOGIN_URL = login_url
    browser, connected = _connect_second(ehr, second)
    url = start_login(browser, server="second")
    del browser.cookies["sessionid"]
    # A page, the callback, and the page that asks before connecting.
    pages = [
        browser.get(f"/~{connected.key}/page/"),
        get_callback(browser, second.authorize(url)),
        browser.post("/smart/login/", {"server": "second", "user": "1"}),
    ]
    codes = ["launch_signed_out", "user_signed_out", "user_signed_out"]
    assert [get_code(page) for page in pages] == codes
    # To the organization that signs them in, not one that would make a new user.
    links = [page.context["retry"].url for page in pages]
    assert all(link.startswith("/smart/login/?server=harbour&") for link in links)
    # And to the site's own sign-in, which may be an identity provider's.
    for page in pages:
        site_link = page.context["retry"].site_url
        assert site_link.startswith("/admin/login/?next=") is (
            login_url == "/admin/login/"
        )
        assert (f'href="{escape(site_link)}"' in page.content.decode()) is bool(
            site_link
        )


def _count_steps(ask: Callable[[], object]) -> int:
    """Return how many instructions SQLite executes for the statements of *ask*."""
    steps = itertools.count()
    connection.ensure_connection()
    connection.connection.set_progress_handler(lambda: next(steps) and None, 1)
    try:
        ask()
    finally:
        connection.connection.set_progress_handler(None, 0)
    return next(steps)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="as SQLite counts")
def test_page_of_an_expired_session_does_not_read_the_launches_of_others(
    ehr: EHRSimulator, second: EHRSimulator
) -> None:
    browser, opened = _connect_second(ehr, second)
    del browser.cookies["sessionid"]

    def ask() -> None:
        page = browser.get(f"/~{opened.key}/page/")
        assert page.context["retry"].url.startswith("/smart/login/?server=harbour")

    ask()
    before = _count_steps(ask)
    for _ in range(200):
        make_launch(ClientRegistration.objects.get(server__slug="harbour"))
    assert _count_steps(ask) < before * 1.2


def _signed_in_browser(user: Any) -> Client:
    browser = make_browser()
    _sign_in(browser, user)
    return browser


def test_account_that_signs_in_still_does_after_connecting_without_the_choice(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    owner = launch(browser, ehr).user
    connect(browser, ehr)
    assert launch(make_browser(), ehr).user == owner


def test_connected_account_signs_nobody_in_at_a_server_of_the_same_group(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    registration.server.login_group = "tenants"
    registration.server.save()
    owner = make_user("maria")
    connect(_signed_in_browser(owner), ehr)
    # The same account as another tenant of the group has proven it.
    other = make_registration(
        server__slug="other",
        server__base_url="https://ehr.example.org/other",
        server__login_group="tenants",
        redirect_uri="https://app.example.org/smart/callback/other/",
    )
    Identity.objects.update(server=other.server)
    assert registration.server.identities.count() == 0
    browser = _signed_in_browser(owner)
    assert launch(browser, ehr).user == owner
    assert not registration.server.identities.get().may_sign_in
    _get_held(_launch(make_browser(), ehr))


def test_only_the_user_of_the_account_goes_on(ehr: EHRSimulator) -> None:
    owner, other = make_user("maria", first_name="Maria"), make_user("sam")
    connect(_signed_in_browser(owner), ehr)
    browser = make_browser()
    _, page = _get_held(_launch(browser, ehr))
    _sign_in(browser, other)
    for choice in ("yes", "switch", ""):
        assert browser.post(page, {"choice": choice})["Location"] == page
    assert b"Maria" in browser.get(page).content
    assert _signed_in(browser) == str(other.pk)
    assert Launch.objects.get(user=owner).intent == "connect"
    # To sign in as that user signs the other one out, and keeps what was opened.
    response = browser.post(page, {"choice": "no"})
    assert response["Location"] == page
    assert _signed_in(browser) is None
    _sign_in(browser, owner)
    # The button of a page that is older than the sign-in does not sign out again.
    assert get_launch(browser.post(page, {"choice": "no"})).user == owner
    assert _signed_in(browser) == str(owner.pk)


@pytest.mark.parametrize("method", ["get", "post"])
def test_user_of_the_account_may_be_an_object_of_another_class(
    ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    # As Django compares a parent with its child of multi-table inheritance.
    monkeypatch.setattr(User, "__eq__", object.__eq__)
    owner = make_user("maria")
    connect(_signed_in_browser(owner), ehr)
    browser = make_browser()
    _, page = _get_held(_launch(browser, ehr))
    _sign_in(browser, owner)
    assert get_launch(getattr(browser, method)(page)).user_id == owner.pk


def impersonate(get_response: Any) -> Callable[[HttpRequest], HttpResponseBase]:
    """Middleware that lets support staff see the site as another user."""

    def respond(request: HttpRequest) -> HttpResponseBase:
        if name := request.session.get("impersonate"):
            request.user = User.objects.get(username=name)
        response: HttpResponseBase = get_response(request)
        return response

    return respond


@pytest.mark.parametrize("user_switch", ["ask", "switch"])
def test_session_in_which_another_user_is_impersonated_ends_with_the_switch(
    ehr: EHRSimulator, settings: Any, user_switch: str
) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.impersonate"]
    ClientRegistration.objects.update(user_switch=user_switch)
    make_user("maria")
    browser = make_browser()
    support: Any = launch(browser, ehr).user
    session = browser.session
    session["impersonate"] = "maria"
    session.save()
    response = _launch(browser, ehr)
    if user_switch == "ask":
        _, page = _get_held(response)
        response = browser.post(page, {"choice": "no"})
    opened = get_launch(response)
    assert opened.user == support
    assert "impersonate" not in browser.session
    assert open_page(browser, opened) == 200


def test_held_launch_is_found_by_the_browser_that_opened_it_alone(
    ehr: EHRSimulator,
) -> None:
    owner = make_user("maria")
    connect(_signed_in_browser(owner), ehr)
    _, page = _get_held(_launch(make_browser(), ehr))
    stranger = _signed_in_browser(owner)
    start_ehr_launch(stranger, ehr)
    for response in (stranger.get(page), stranger.post(page, {"choice": "cancel"})):
        assert (response.status_code, get_code(response)) == (404, "decision_unknown")
    assert Launch.objects.held().count() == 1
    unknown = stranger.get("/smart/decide/abcdefghijklmnopqrstuvwx/")
    assert get_code(unknown) == "decision_unknown"


def test_question_is_not_shown_to_whoever_noted_the_cookie_before_the_launch(
    ehr: EHRSimulator,
) -> None:
    owner = make_user("maria")
    connect(_signed_in_browser(owner), ehr)
    browser, lair = make_browser(), make_browser()
    callback = ehr.authorize(start_ehr_launch(browser, ehr))
    noted = get_launch_cookies(browser)
    other = ehr.authorize(start_ehr_launch(browser, ehr))
    _, page = _get_held(get_callback(browser, callback))
    lair.cookies.load(noted)
    assert get_code(lair.get(page)) == "decision_unknown"
    # The browser itself answers, and finishes what it started meanwhile.
    _, second = _get_held(get_callback(browser, other))
    _sign_in(browser, owner)
    for each in (page, second):
        assert get_launch(browser.get(each)).user == owner


def test_held_launch_stays_when_a_sign_in_ends_those_of_another_user(
    ehr: EHRSimulator,
) -> None:
    owner = User.objects.create_superuser("maria", password="a password")
    connect(_signed_in_browser(owner), ehr)
    browser = make_browser()
    first = launch(browser, ehr, user=_second_clinician(ehr))
    _, page = _get_held(_launch(browser, ehr))
    response = browser.post(
        f"/admin/login/?next={page}", {"username": "maria", "password": "a password"}
    )
    assert response["Location"] == page
    assert len(get_launch_cookies(browser)) == 1
    assert get_launch(browser.get(page)).user == owner
    assert open_page(browser, first) == 410


# Django adds the slash.
@pytest.mark.parametrize("slash", ["/", ""])
@pytest.mark.parametrize("root", ["", "/app"])
def test_sign_in_by_the_ehr_alone_does_not_go_round_in_circles(
    ehr: EHRSimulator, settings: Any, root: str, slash: str
) -> None:
    settings.LOGIN_URL = f"{root}/smart/login{slash}?server=harbour"
    connect(_signed_in_browser(make_user("maria")), ehr)
    browser = make_browser()
    with override_script_prefix(f"{root}/"):
        response = _launch(browser, ehr)
    _, page = _get_held(response)
    assert response["Location"] == root + page


@pytest.mark.parametrize(
    ("login_url", "site"),
    [
        ("https://id.example.org/login/?app=1", "https://app.example.org"),
        # The same package, at another host.
        ("//id.example.org/smart/login/?app=1", "https://app.example.org"),
        ("https://app.example.org/login/?app=1", ""),
    ],
)
def test_sign_in_at_another_host_leads_back_to_this_one(
    ehr: EHRSimulator, settings: Any, login_url: str, site: str
) -> None:
    settings.LOGIN_URL = login_url
    connect(_signed_in_browser(make_user("maria")), ehr)
    browser = make_browser()
    response = _launch(browser, ehr)
    _, page = _get_held(response)
    sign_in_url = f"{login_url}&{urlencode({'next': site + page}, safe='/')}"
    assert f'href="{escape(sign_in_url)}"' in browser.get(page).content.decode()
    _sign_in(browser, make_user("sam"))
    assert browser.post(page, {"choice": "no"})["Location"] == page


# Staff


@pytest.mark.parametrize("right", ["is_staff", "is_superuser"])
def test_staff_sign_in_through_servers_that_the_site_names(
    ehr: EHRSimulator, registration: Any, settings: Any, right: str
) -> None:
    owner = launch(make_browser(), ehr).user
    assert owner is not None
    User.objects.update(**{right: True})
    browser = make_browser()
    _, page = _get_held(_launch(browser, ehr))
    assert _signed_in(browser) is None
    _sign_in(browser, owner)
    assert get_launch(browser.get(page)).user == owner
    # Whoever is signed in already is not signed in by the server.
    assert launch(browser, ehr).user == owner

    settings.SMART_STAFF_SIGN_IN_SERVERS = [registration.server.slug]
    assert launch(make_browser(), ehr).user == owner


def test_staff_cannot_choose_that_an_unnamed_server_signs_them_in(
    ehr: EHRSimulator,
) -> None:
    owner = make_user("root", is_superuser=True)
    browser = _signed_in_browser(owner)
    connect(browser, ehr)
    account = Identity.objects.get().pk
    page = browser.get("/smart/connections/", {"account": account})
    assert b'name="may_sign_in"' not in page.content
    form = {"identity": account, "may_sign_in": "on"}
    browser.post("/smart/connections/", form)
    assert not Identity.objects.get().may_sign_in
    other = make_browser()
    _get_held(_launch(other, ehr))
    assert _signed_in(other) is None


# Another user


def _open_as_first(ehr: EHRSimulator, **values: Any) -> tuple[Client, Launch]:
    """A browser in which the first clinician has opened a chart."""
    ClientRegistration.objects.update(**{"ehr_scope": _NAMED, **values})
    browser = make_browser()
    opened = launch(browser, ehr)
    User.objects.filter(pk=opened.user_id).update(first_name="Ada", last_name="King")
    return browser, opened


def test_nobody_is_replaced_without_a_click(
    ehr: EHRSimulator, commit: Callable[[], Any]
) -> None:
    browser, opened = _open_as_first(ehr)
    second = _second_clinician(ehr)
    other = launch(make_browser(), ehr, user=second).user
    assert other is not None
    before = browser.session.session_key
    held, page = _get_held(_launch(browser, ehr, user=second))
    assert held.question == "switch"
    text = browser.get(page).content.decode()
    assert "Ada King" in text
    assert ehr.users[second].name in text
    assert "smart-" not in re.sub(r'class="[^"]*"', "", text).replace("smart-page", "")
    assert browser.session.session_key == before
    assert open_page(browser, opened) == 200

    with commit():
        finished = get_launch(browser.post(page, {"choice": "no"}))
    assert finished.user == other
    assert _signed_in(browser) == str(other.pk)
    assert len(get_launch_cookies(browser)) == 1
    assert open_page(browser, finished) == 200
    assert open_page(browser, opened) == 410
    opened.refresh_from_db()
    assert opened.error_code == "user_changed"


class _Twice(SMARTAuthenticationBackend):
    """Lets a second click come in while the first is answered."""

    clicks: ClassVar[list[Callable[[], Any]]] = []

    def filter_users_by_claims(self, claims: Any) -> Any:
        if self.clicks:
            self.clicks.pop()()
        return super().filter_users_by_claims(claims)


def test_second_click_leads_to_what_the_first_has_opened(
    ehr: EHRSimulator, settings: Any
) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}._Twice"]
    browser, _ = _open_as_first(ehr)
    other = launch(make_browser(), ehr, user=_second_clinician(ehr)).user
    _, page = _get_held(_launch(browser, ehr, user=_second_clinician(ehr)))
    same, answers = make_browser(), []
    same.cookies.load(browser.cookies.output(header=""))
    _Twice.clicks.append(lambda: answers.append(same.post(page, {"choice": "no"})))
    response = browser.post(page, {"choice": "no"})
    opened = get_launch(answers.pop())
    assert opened.user == other
    # The browser brings the cookies of the answer that came first.
    assert get_launch(same.get(response["Location"])) == opened


def test_whoever_stays_keeps_everything_and_the_tokens_are_revoked(
    ehr: EHRSimulator, commit: Callable[[], Any]
) -> None:
    browser, opened = _open_as_first(ehr)
    before = browser.session.session_key
    launch(make_browser(), ehr, user=_second_clinician(ehr))
    held, page = _get_held(_launch(browser, ehr, user=_second_clinician(ehr)))
    token = _get_access_token(held)
    with listening(launch_failed) as failed, commit():
        response = browser.post(page, {"choice": "cancel"})
    assert (response.status_code, get_code(response)) == (403, "decision_declined")
    assert failed[0]["launch"] == held
    assert _is_revoked(ehr, token)
    held.refresh_from_db()
    assert (held.status, held.error_code) == ("failed", "decision_declined")
    assert (held.held, held.question) == ("", "")
    assert browser.session.session_key == before
    assert open_page(browser, opened) == 200
    again = browser.post(page, {"choice": "no"})
    assert (again.status_code, get_code(again)) == (404, "decision_unknown")
    assert _signed_in(browser) == str(opened.user_id)


def test_cancel_leaves_the_question_of_another_browser(ehr: EHRSimulator) -> None:
    browsers = [_open_as_first(ehr)[0] for _ in range(2)]
    second = _second_clinician(ehr)
    other = launch(make_browser(), ehr, user=second).user
    pages = [_get_held(_launch(each, ehr, user=second))[1] for each in browsers]
    browsers[0].post(pages[0], {"choice": "cancel"})
    assert get_launch(browsers[1].post(pages[1], {"choice": "no"})).user == other


def _get_access_token(held: Launch) -> str:
    assert held.grant is not None
    return held.grant.access_token


def _is_revoked(ehr: EHRSimulator, token: str) -> bool:
    grant = ehr.store.grant_of(token)
    return grant is None or grant.revoked


@pytest.mark.parametrize("by", ["page", "task", "purge"])
def test_whoever_waits_too_long_has_to_start_again(
    ehr: EHRSimulator, commit: Callable[[], Any], by: str
) -> None:
    browser, opened = _open_as_first(ehr)
    launch(make_browser(), ehr, user=_second_clinician(ehr))
    held, page = _get_held(_launch(browser, ehr, user=_second_clinician(ehr)))
    token = _get_access_token(held)
    assert held.expires_at - timezone.now() <= timedelta(minutes=5)
    with time_machine.travel(timezone.now() + timedelta(minutes=5)):
        with commit():
            if by == "purge":
                purge()
            elif by == "task":
                tasks.refresh_servers()
            assert Launch.objects.held().exists() is (by == "page")
            response = browser.post(page, {"choice": "no"})
        assert (response.status_code, get_code(response)) == (410, "decision_expired")
    held.refresh_from_db()
    assert (held.status, held.held) == ("failed", "")
    assert _is_revoked(ehr, token)
    assert _signed_in(browser) == str(opened.user_id)


@pytest.mark.django_db(transaction=True)
def test_tokens_of_a_question_that_could_not_be_stored_are_revoked(
    ehr: EHRSimulator,
) -> None:
    browser, _ = _open_as_first(ehr)
    launch(make_browser(), ehr, user=_second_clinician(ehr))
    start = start_ehr_launch(browser, ehr, user=_second_clinician(ehr))
    callback = ehr.authorize(start)

    def lose_answer(execute: Any, sql: str, *arguments: Any) -> Any:
        result = execute(sql, *arguments)
        if "UPDATE" in sql and "held" in sql:
            raise OperationalError("server closed the connection unexpectedly")
        return result

    with (
        connection.execute_wrapper(lose_answer),
        pytest.raises(OperationalError, match="closed"),
    ):
        get_callback(browser, callback)
    assert not Launch.objects.held().exists()
    token = TokenGrant.objects.awaiting_revocation().get().access_token
    assert not _is_revoked(ehr, token)
    purge()
    assert _is_revoked(ehr, token)
    assert len(ehr.requests_to("revoke")) <= 2


def test_question_leaves_no_message_that_a_worker_would_hold_until_its_end(
    ehr: EHRSimulator, broker: Broker
) -> None:
    browser, _ = _open_as_first(ehr)
    _get_held(_launch(browser, ehr, user=_second_clinician(ehr)))
    assert broker.messages == []


def test_answer_needs_the_csrf_token_of_the_session(ehr: EHRSimulator) -> None:
    browser, opened = _open_as_first(ehr)
    launch(make_browser(), ehr, user=_second_clinician(ehr))
    _, page = _get_held(_launch(browser, ehr, user=_second_clinician(ehr)))
    browser.handler.enforce_csrf_checks = True
    # Django's own page would lead nowhere.
    response = browser.post(page, {"choice": "no"})
    assert (response.status_code, get_code(response)) == (403, "form_outdated")
    assert response.context["retry"].url == page
    assert _signed_in(browser) == str(opened.user_id)
    get_launch(_submit(browser, page, _read_token(browser, page)))
    assert _signed_in(browser) != str(opened.user_id)


def test_second_tab_goes_on_after_the_answer_in_the_first(ehr: EHRSimulator) -> None:
    """The sign-in that follows the first answer replaces the CSRF token."""
    browser, _ = _open_as_first(ehr)
    second = _second_clinician(ehr)
    other = launch(make_browser(), ehr, user=second).user
    pages = [_get_held(_launch(browser, ehr, user=second))[1] for _ in range(2)]
    browser.handler.enforce_csrf_checks = True
    tokens = [_read_token(browser, page) for page in pages]
    assert get_launch(_submit(browser, pages[0], tokens[0])).user == other
    response = _submit(browser, pages[1], tokens[1])
    assert (response.status_code, get_code(response)) == (403, "form_outdated")
    assert get_launch(browser.get(response.context["retry"].url)).user == other


def _read_token(browser: Client, page: str) -> str:
    (token, *_) = re.findall(
        r'name="csrfmiddlewaretoken" value="([^"]+)"',
        browser.get(page).content.decode(),
    )
    return str(token)


def _submit(browser: Client, page: str, token: str) -> Any:
    values = {"choice": "no", "csrfmiddlewaretoken": token}
    headers = {"Referer": f"https://app.example.org{page}"}
    return browser.post(page, values, headers=headers)


@pytest.mark.parametrize("is_signed_in", [False, True])
def test_question_about_one_user_is_not_another_one_s(
    ehr: EHRSimulator, commit: Callable[[], Any], *, is_signed_in: bool
) -> None:
    browser, _ = _open_as_first(ehr)
    launch(make_browser(), ehr, user=_second_clinician(ehr))
    held, page = _get_held(_launch(browser, ehr, user=_second_clinician(ehr)))
    token = _get_access_token(held)
    third = make_user("sam")
    if is_signed_in:
        _sign_in(browser, third)
    else:
        del browser.cookies["sessionid"]
    with commit():
        response = browser.post(page, {"choice": "no"})
    code = "user_changed" if is_signed_in else "user_signed_out"
    assert (response.status_code, get_code(response)) == (409, code)
    assert _signed_in(browser) == (str(third.pk) if is_signed_in else None)
    assert _is_revoked(ehr, token)


def test_two_charts_of_another_user_need_one_click(ehr: EHRSimulator) -> None:
    browser, _ = _open_as_first(ehr)
    second = _second_clinician(ehr)
    other = launch(make_browser(), ehr, user=second).user
    pages = [_get_held(_launch(browser, ehr, user=second))[1] for _ in range(2)]
    first = get_launch(browser.post(pages[0], {"choice": "no"}))
    # By its own button, or by a reload: its user is the one signed in now.
    last = get_launch(browser.get(pages[1]))
    assert (first.user, last.user) == (other, other)
    assert [open_page(browser, each) for each in (first, last)] == [200, 200]


def test_sign_out_ends_what_waits(ehr: EHRSimulator, commit: Callable[[], Any]) -> None:
    browser, _ = _open_as_first(ehr)
    held, page = _get_held(_launch(browser, ehr, user=_second_clinician(ehr)))
    token = _get_access_token(held)
    with commit():
        browser.post("/smart/logout/")
    assert get_code(browser.get(page)) == "decision_unknown"
    held.refresh_from_db()
    assert (held.status, held.error_code) == ("failed", "signed_out")
    assert _is_revoked(ehr, token)


def test_shared_workstation_switches_at_once_and_says_who_is_signed_in(
    ehr: EHRSimulator,
) -> None:
    browser, opened = _open_as_first(ehr, user_switch="switch")
    second = _second_clinician(ehr)
    User.objects.filter(pk=launch(make_browser(), ehr, user=second).user_id).update(
        first_name="Grace", last_name="Hopper"
    )
    response = _launch(browser, ehr, user=second)
    finished = get_launch(response)
    assert finished.user != opened.user
    assert open_page(browser, opened) == 410
    page = browser.get(f"/~{finished.key}/notices/").content.decode()
    assert "Grace Hopper" in page
    # Not where the same user goes on.
    again = launch(browser, ehr, user=second)
    assert browser.get(f"/~{again.key}/notices/").content == b""


def test_sign_in_that_a_link_began_does_not_replace_who_signed_in_meanwhile(
    ehr: EHRSimulator,
) -> None:
    attacker = launch(make_browser(), ehr).user
    browser = make_browser()
    started = browser.get("/smart/login/", {"server": "harbour"})
    victim = _sign_in(browser, make_user("maria"))
    response = get_callback(browser, ehr.authorize(started["Location"]))
    _get_held(response)
    assert _signed_in(browser) == str(victim.pk)
    assert attacker != victim


def test_switched_off_server_ends_what_waits(
    ehr: EHRSimulator, commit: Callable[[], Any]
) -> None:
    browser, opened = _open_as_first(ehr)
    held, page = _get_held(_launch(browser, ehr, user=_second_clinician(ehr)))
    token = _get_access_token(held)
    held.registration.is_active = False
    held.registration.save()
    with commit():
        response = browser.post(page, {"choice": "no"})
    assert get_code(response) == "registration_inactive"
    assert _signed_in(browser) == str(opened.user_id)
    assert _is_revoked(ehr, token)


# An unknown account


def test_unknown_account_is_connected_if_its_user_says_so(ehr: EHRSimulator) -> None:
    ClientRegistration.objects.update(ehr_scope=_NAMED)
    user = make_user("maria", first_name="Maria", last_name="Lopez")
    browser = _signed_in_browser(user)
    held, page = _get_held(_launch(browser, ehr))
    assert held.question == "link"
    text = browser.get(page).content.decode()
    assert "Maria Lopez" in text
    assert next(iter(ehr.users.values())).name in text
    assert not Identity.objects.exists()
    browser.post(page, {"choice": "yes"})
    finished = Launch.objects.get()
    assert (finished.user, finished.intent) == (user, "connect")
    assert open_page(browser, finished) == 200
    identity = Identity.objects.get()
    assert (identity.user, identity.may_sign_in) == (user, False)
    assert launch(browser, ehr).user == user


def test_people_without_names_are_told_apart_by_reference_or_where_and_when(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    launch(browser, ehr)
    second = _second_clinician(ehr)
    _, page = _get_held(_launch(browser, ehr, user=second))
    shown = browser.get(page)
    here, there = (shown.context[each] for each in ("here", "there"))
    assert (here["name"], there["name"]) == ("", "")
    assert there["fhir_user"] == second
    assert here["fhir_user"].startswith("Practitioner/")
    assert here["origin"].startswith("Harbour Hospital, ")
    assert all(each["fhir_user"] in shown.content.decode() for each in (here, there))
    # Signed in otherwise, and nothing else is known.
    browser = _signed_in_browser(User.objects.get())
    User.objects.update(username=f"smart-{'a' * 26}")
    _, page = _get_held(_launch(browser, ehr, user=second))
    with time_machine.travel(timezone.now() + timedelta(seconds=1)):
        here = browser.get(page).context["here"]
    assert (here["name"], here["fhir_user"]) == ("", "")
    assert re.match(r"\d", here["origin"])


def test_same_name_twice_is_no_answer(ehr: EHRSimulator) -> None:
    ClientRegistration.objects.update(ehr_scope=_NAMED)
    name = next(iter(ehr.users.values())).name
    browser = _signed_in_browser(make_user("maria", first_name=name))
    _, page = _get_held(_launch(browser, ehr))
    text = browser.get(page).content.decode()
    assert "No, I&#x27;m someone else" in text.replace("'", "&#x27;")


def test_unknown_account_becomes_a_new_user_if_somebody_says_so(
    ehr: EHRSimulator,
) -> None:
    user = make_user("maria")
    browser = _signed_in_browser(user)
    _, page = _get_held(_launch(browser, ehr))
    finished = get_launch(browser.post(page, {"choice": "no"}))
    assert finished.user not in (user, None)
    assert _signed_in(browser) == str(finished.user_id)
    assert Identity.objects.get().may_sign_in


def _list_choices(browser: Client, page: str) -> list[str]:
    """The buttons of the page that asks, the one that stands out first."""
    content = browser.get(page).content.decode()
    buttons = re.findall(
        r'<button class="([^"]+)" name="choice" value="(\w+)"', content
    )
    assert [style for style, _ in buttons[:2]] == [
        "smart-button",
        "smart-button smart-secondary",
    ]
    assert {style for style, _ in buttons[2:]} <= {"smart-link"}
    return [value for _, value in buttons]


def test_unknown_account_is_not_connected_to_a_user_who_has_one_there(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    browser = _signed_in_browser(make_user("maria"))
    _, page = _get_held(_launch(browser, ehr))
    assert _list_choices(browser, page) == ["no", "yes", "cancel"]
    own = connect(browser, ehr)
    # At a shared workstation, it is the next clinician's who walked away.
    held, page = _get_held(_launch(browser, ehr, user=_second_clinician(ehr)))
    assert _list_choices(browser, page) == ["no", "cancel"]
    response = browser.post(page, {"choice": "yes"})
    assert (response.status_code, response["Location"]) == (302, page)
    held.refresh_from_db()
    assert held.status == "held"
    assert TokenGrant.objects.active().get() == own.grant
    # Nor if the account is known from another server of the login group.
    FHIRServer.objects.update(login_group="tenants")
    group = make_server(
        slug="other", base_url="https://other.example.org", login_group="tenants"
    )
    Identity.objects.update(server=group)
    assert browser.post(page, {"choice": "yes"})["Location"] == page
    assert held.status == "held"


def test_account_of_another_user_keeps_no_one_from_connecting_theirs(
    ehr: EHRSimulator,
) -> None:
    launch(make_browser(), ehr, user=_second_clinician(ehr))
    user = make_user("maria")
    browser = _signed_in_browser(user)
    _, page = _get_held(_launch(browser, ehr))
    browser.post(page, {"choice": "yes"})
    assert Identity.objects.filter(user=user).exists()


def test_user_connects_a_second_account_from_this_site(ehr: EHRSimulator) -> None:
    browser = _signed_in_browser(make_user("maria"))
    connect(browser, ehr)
    second = connect(browser, ehr, user=_second_clinician(ehr))
    assert second.user == User.objects.get()
    assert Identity.objects.count() == 2


def test_no_new_user_is_offered_where_none_is_created(ehr: EHRSimulator) -> None:
    ClientRegistration.objects.update(create_users=False)
    browser = _signed_in_browser(make_user("maria"))
    _, page = _get_held(_launch(browser, ehr))
    assert b'value="no"' not in browser.get(page).content
    response = browser.post(page, {"choice": "no"})
    assert (response.status_code, get_code(response)) == (403, "user_refused")
    assert User.objects.count() == 1
    assert not TokenGrant.objects.active().exists()


# Refused after the exchange


def test_tokens_of_a_refused_launch_are_revoked(
    ehr: EHRSimulator, commit: Callable[[], Any]
) -> None:
    launch(make_browser(), ehr)
    browser = _signed_in_browser(make_user("maria"))
    callback = ehr.authorize(start_login(browser))
    ehr.clear_requests()
    with commit():
        assert get_code(get_callback(browser, callback)) == "identity_in_use"
    assert len(ehr.requests_to("revoke")) >= 1
    refused = TokenGrant.objects.exclude(status="active").get()
    assert (refused.access_token, refused.is_revocation_pending) == ("", False)
    assert (refused.user, refused.status) == (None, "revoked")


@pytest.mark.parametrize(
    "fault", ["token_missing_access_token", "token_number_patient"]
)
def test_refresh_token_of_an_unusable_response_is_revoked(
    ehr: EHRSimulator, commit: Callable[[], Any], fault: str
) -> None:
    browser = make_browser()
    callback = ehr.authorize(start_login(browser))
    ehr.faults.add(fault)
    with commit():
        code = get_code(get_callback(browser, callback))
    assert code == "token_response_malformed"
    (token,) = ehr.store.refresh_tokens
    (revocation,) = ehr.requests_to("revoke")
    assert ("token", token) in revocation.form
    unused = TokenGrant.objects.get()
    assert (unused.status, unused.is_revocation_pending) == ("revoked", False)


class _Broken(SMARTAuthenticationBackend):
    """A site's own, with a fault."""

    def create_user(self, claims: Any) -> Any:
        raise RuntimeError("a fault of the site")


def test_launch_fails_and_its_tokens_are_revoked_if_a_hook_fails(
    ehr: EHRSimulator, commit: Callable[[], Any], settings: Any
) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}._Broken"]
    browser = make_browser()
    with commit(), pytest.raises(RuntimeError, match="a fault of the site"):
        _launch(browser, ehr)
    assert len(ehr.requests_to("revoke")) >= 1
    assert TokenGrant.objects.get().status == "revoked"
    row = Launch.objects.get()
    assert (row.status, row.error_code) == ("failed", "internal_error")


def test_tokens_that_come_after_a_sign_out_are_revoked(
    ehr: EHRSimulator, commit: Callable[[], Any]
) -> None:
    browser = make_browser()
    launch(browser, ehr)
    callback = ehr.authorize(start_ehr_launch(browser, ehr))
    ehr.clear_requests()
    fail = Launch.objects.fail
    after_answer(ehr, lambda: fail(error_code="signed_out", now=timezone.now()))
    with commit():
        assert get_code(get_callback(browser, callback)) == "state_failed"
    assert len(ehr.requests_to("revoke")) >= 1


# Ended by others


@pytest.mark.parametrize("by", ["staff", "deactivation"])
def test_held_launch_that_others_end_revokes_its_tokens(
    ehr: EHRSimulator, admin_client: Client, commit: Callable[[], Any], by: str
) -> None:
    browser, opened = _open_as_first(ehr)
    other = launch(make_browser(), ehr, user=_second_clinician(ehr)).user
    held, page = _get_held(_launch(browser, ehr, user=_second_clinician(ehr)))
    token = _get_access_token(held)
    with commit():
        if by == "staff":
            admin_client.post(
                "/admin/django_smart/launch/",
                {"action": "end", "_selected_action": [held.pk]},
            )
        else:
            User.objects.filter(pk=other and other.pk).update(is_active=False)
        response = browser.post(page, {"choice": "no"})
    code = "decision_expired" if by == "staff" else "user_inactive"
    assert get_code(response) == code
    assert _signed_in(browser) == str(opened.user_id)
    assert _is_revoked(ehr, token)


@pytest.mark.django_db(transaction=True)
def test_launch_that_goes_on_while_all_are_being_ended_ends_as_well(
    ehr: EHRSimulator,
) -> None:
    ClientRegistration.objects.update(ehr_scope=_NAMED)
    launch(make_browser(), ehr, user=_second_clinician(ehr))
    browser = _signed_in_browser(make_user("maria"))
    held, page = _get_held(_launch(browser, ehr))
    answers = [{"choice": "yes"}]

    def answer(**_values: Any) -> None:
        if answers:
            browser.post(page, answers.pop())

    grant_revoked.connect(answer)
    end_at_any_stage(Launch.objects.all(), reason="ended_by_staff")
    grant_revoked.disconnect(answer)
    assert not answers
    held.refresh_from_db()
    assert (held.status, held.error_code) == ("failed", "ended_by_staff")
    assert not TokenGrant.objects.active().exists()


class _Promoting(SMARTAuthenticationBackend):
    """A site's own, which makes whoever comes one of the staff."""

    def create_user(self, claims: Any) -> Any:
        user: Any = super().create_user(claims)
        user.is_staff = True
        user.save()
        return user


def test_staff_that_a_hook_makes_need_a_server_that_the_site_names(
    ehr: EHRSimulator, registration: Any, settings: Any
) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}._Promoting"]
    browser = make_browser()
    assert get_code(_launch(browser, ehr)) == "user_refused"
    assert not User.objects.exists()
    settings.SMART_STAFF_SIGN_IN_SERVERS = [registration.server.slug]
    assert launch(browser, ehr).user == User.objects.get()


def test_names_are_not_needed(ehr: EHRSimulator) -> None:
    browser = make_browser()
    launch(browser, ehr)
    _, page = _get_held(_launch(browser, ehr, user=_second_clinician(ehr)))
    text = re.sub(r"csrf\w+\" value=\"\w+", "", browser.get(page).content.decode())
    made = User.objects.get().username
    assert made.startswith("smart-")
    assert made not in text
    assert made not in browser.get("/smart/login/?server=harbour").content.decode()


def test_name_of_a_user_model_with_a_single_field_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    browser = _signed_in_browser(make_user("maria"))
    monkeypatch.setattr(User, "name", "Maria Lopez", raising=False)
    text = browser.get("/smart/login/?server=harbour").content.decode()
    assert "Maria Lopez" in text


@pytest.mark.parametrize("full_name", ["", None])
def test_username_that_is_no_string_is_shown(
    monkeypatch: pytest.MonkeyPatch, full_name: str | None
) -> None:
    username = uuid.uuid4()
    monkeypatch.setattr(User, "get_full_name", lambda _: full_name)
    browser = _signed_in_browser(make_user("maria"))
    monkeypatch.setattr(User, "get_username", lambda _: username)
    text = browser.get("/smart/login/?server=harbour").content.decode()
    assert str(username) in text

"""Whom a launch signs in, whom it connects, and whom it never belongs to."""

from __future__ import annotations

import dataclasses
import html
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_in
from django.db import OperationalError, connections, transaction
from django.db.models.signals import post_save, pre_save
from django.test import Client
from django.test.utils import CaptureQueriesContext

from django_smart import transport
from django_smart.backends import SMARTAuthenticationBackend
from django_smart.clients import fhir_client_for
from django_smart.exceptions import NoGrantError
from django_smart.launches.purge import purge
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Identity,
    Launch,
    TokenGrant,
)
from django_smart.signals import launch_completed, launch_failed
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator import id_tokens
from tests.answers import after_answer, answer
from tests.ehr import (
    PATIENT,
    SITE,
    connect,
    get_callback,
    get_launch,
    launch,
    listening,
    make_browser,
    start_ehr_launch,
    start_login,
)
from tests.factories import make_registration, register_at
from tests.launch_urls import get_code, open_page

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.launch_urls"),
    pytest.mark.usefixtures("registration"),
]

User: Any = get_user_model()
PLAIN_SCOPE = "launch/patient patient/Patient.rs offline_access"


def _sign_in(browser: Client, name: str = "ada") -> Any:
    user, _ = User.objects.get_or_create(username=name)
    browser.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return user


def _signed_in(browser: Client) -> str | None:
    return browser.session.get("_auth_user_id")


# Sign in


@pytest.mark.compliance("IDT-01", "IDT-07", "IDT-09", "SEC-11")
def test_unknown_identity_becomes_a_user_and_is_found_again(ehr: EHRSimulator) -> None:
    browser = make_browser()
    with listening(launch_completed) as completed:
        first = launch(browser, ehr)
    user = User.objects.get()
    assert first.user == user
    assert _signed_in(browser) == str(user.pk)
    assert user.username.startswith("smart-")
    assert (user.email, user.has_usable_password()) == ("", False)
    identity = Identity.objects.get()
    assert (identity.user, identity.issuer) == (user, ehr.issuer)
    assert identity.fhir_user == first.fhir_user
    assert first.fhir_user.startswith("Practitioner/")
    assert completed[0]["launch"] == first
    assert completed[0]["request"].user == user
    other = make_browser()
    assert launch(other, ehr).user == user
    assert User.objects.count() == Identity.objects.count() == 1


def test_identity_is_written_once_an_hour_or_if_it_changed(ehr: EHRSimulator) -> None:
    def sign_in() -> bool:
        with CaptureQueriesContext(connections["default"]) as captured:
            launch(make_browser(), ehr)
        return any(
            re.match(r"UPDATE [\"`]?django_smart_identity", each["sql"])
            for each in captured
        )

    sign_in()
    first = Identity.objects.get()
    assert not sign_in()
    hour, seen_at = timedelta(hours=1), first.last_seen_at
    assert seen_at is not None
    for other in (seen_at - hour, seen_at + 2 * hour, None):
        Identity.objects.update(last_seen_at=other)
        assert sign_in()
        later = Identity.objects.get().last_seen_at
        assert later is not None
        assert timedelta(0) < later - seen_at < hour
    Identity.objects.update(fhir_user="Practitioner/before")
    assert sign_in()
    assert Identity.objects.get().fhir_user == first.fhir_user


def test_right_to_sign_in_that_is_withdrawn_meanwhile_stays_withdrawn(
    ehr: EHRSimulator,
) -> None:
    launch(make_browser(), ehr)
    Identity.objects.update(last_seen_at=None)

    def withdraw(**_kwargs: object) -> None:
        Identity.objects.update(may_sign_in=False)

    pre_save.connect(withdraw, sender=Identity)
    try:
        launch(make_browser(), ehr)
    finally:
        pre_save.disconnect(withdraw, sender=Identity)
    identity = Identity.objects.get()
    assert identity.last_seen_at is not None
    assert not identity.may_sign_in


def test_receiver_that_fails_at_the_sign_in_costs_no_grant(ehr):
    def fail(user: Any, **_kwargs: object) -> None:
        raise LookupError(user.pk)

    browser = make_browser()
    address = ehr.authorize(start_ehr_launch(browser, ehr))
    user_logged_in.connect(fail)
    try:
        with pytest.raises(LookupError):
            get_callback(browser, address)
    finally:
        user_logged_in.disconnect(fail)
    assert _signed_in(browser) is None
    (user,) = User.objects.all()
    assert TokenGrant.objects.active().get().user == user
    assert launch(browser, ehr).user == user
    assert _signed_in(browser) == str(user.pk)


@pytest.mark.compliance("IDT-09")
def test_same_sub_at_another_issuer_is_another_user(ehr: EHRSimulator) -> None:
    other = EHRSimulator(base_url="https://other.example.org/r4")
    register_at(other)
    make_registration(server__slug="other", server__base_url=other.base_url)
    with transport.mounted("https://other.example.org", other.adapter()):
        there = launch(make_browser(), other)
    here = launch(make_browser(), ehr)
    assert len(set(Identity.objects.values_list("subject", flat=True))) == 1
    assert Identity.objects.count() == 2
    assert here.user != there.user


def test_unknown_identity_is_refused_where_no_users_are_created(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    registration.create_users = False
    registration.save()
    browser = make_browser()
    response = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    assert (response.status_code, get_code(response)) == (403, "user_refused")
    assert not User.objects.exists()
    assert not TokenGrant.objects.active().exists()
    assert _signed_in(browser) is None
    # A known one signs in.
    registration.create_users = True
    registration.save()
    launch(make_browser(), ehr)
    registration.create_users = False
    registration.save()
    assert launch(browser, ehr).user == User.objects.get()


def test_deactivated_user_is_refused(ehr: EHRSimulator) -> None:
    launch(make_browser(), ehr)
    User.objects.update(is_active=False)
    browser = make_browser()
    response = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    assert (response.status_code, get_code(response)) == (403, "user_inactive")
    assert TokenGrant.objects.active().count() == 1
    assert _signed_in(browser) is None


class ApprovedLater(SMARTAuthenticationBackend):
    """A site's own: somebody has to let new users in."""

    def create_user(self, claims: Any) -> Any:
        user: Any = super().create_user(claims)
        user.is_active = False
        user.save()
        return user


def test_user_who_is_made_inactive_is_refused(ehr: EHRSimulator, settings: Any) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.ApprovedLater"]
    browser = make_browser()
    response = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    assert (response.status_code, get_code(response)) == (403, "user_inactive")
    assert not TokenGrant.objects.active().exists()
    assert _signed_in(browser) is None


def test_session_stays_when_the_user_does_not_change(ehr: EHRSimulator) -> None:
    browser = make_browser()
    launch(browser, ehr)
    before = browser.session.session_key
    launch(browser, ehr)
    assert browser.session.session_key == before


@pytest.mark.compliance("IDT-10")
def test_identity_that_was_asked_for_and_not_granted_signs_nobody_in(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    url = start_ehr_launch(browser, ehr)
    granted = "launch patient/Patient.rs patient/Observation.rs"
    finished = get_launch(get_callback(browser, ehr.authorize(url, scope=granted)))
    assert finished.user is None
    assert finished.grant is not None
    assert finished.grant.scope_granted == granted
    assert _signed_in(browser) is None
    assert not User.objects.exists()


# From a link on another site


_LOGIN = "/smart/login/?server=harbour&next=%2Fnotices%2F"


@pytest.mark.parametrize("site", ["cross-site", "same-site", ""])
@pytest.mark.parametrize("path", [_LOGIN, "/members/"])
def test_link_on_another_site_signs_nobody_in_without_a_click(
    ehr: EHRSimulator, settings: Any, site: str, path: str
) -> None:
    settings.LOGIN_URL = "/smart/login/?server=harbour"
    victim = make_browser()
    victim.handler.enforce_csrf_checks = True
    headers = {"Sec-Fetch-Site": site}
    page = victim.get(path, headers=headers)
    if page.status_code == 302:
        # A redirect keeps the header of the navigation that it belongs to.
        page = victim.get(page["Location"], headers=headers)
    assert page.status_code == 200
    assert not Launch.objects.exists()
    assert _signed_in(victim) is None
    # The victim reads the page, and wants that.
    form = _read_form(page)
    started = victim.post("/smart/login/", form, headers={"Origin": SITE})
    opened = get_launch(get_callback(victim, ehr.authorize(started["Location"])))
    assert opened.intent == "sign_in"
    assert opened.next_url in {"/notices/", path}


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_link_on_this_site_and_a_typed_address_lead_to_the_organization(
    site: str,
) -> None:
    started = make_browser().get(_LOGIN, headers={"Sec-Fetch-Site": site})
    assert started["Location"].startswith("https://ehr.example.org/")


def test_page_of_somebody_who_signed_in_meanwhile_asks_again(ehr: EHRSimulator) -> None:
    browser = make_browser()
    form = _read_form(browser.get(_LOGIN, headers={"Sec-Fetch-Site": "cross-site"}))
    _sign_in(browser)
    response = browser.post("/smart/login/", form)
    assert (response.status_code, response["Location"]) == (302, _LOGIN)
    assert not Launch.objects.exists()


@pytest.mark.parametrize("start", [start_login, start_ehr_launch])
@pytest.mark.parametrize("name", ["Mallory Silva", ""])
def test_first_page_after_a_sign_in_says_who_is_signed_in(
    ehr: EHRSimulator, start: Any, name: str
) -> None:
    attacker: Any = launch(make_browser(), ehr).user
    User.objects.filter(pk=attacker.pk).update(last_name=name)
    victim = make_browser()
    # A link that the attacker sent leads to the attacker's account.
    authorization = start(victim) if start is start_login else start(victim, ehr)
    choices: Any = {"user": next(iter(ehr.users))} if start is start_login else {}
    opened = get_launch(get_callback(victim, ehr.authorize(authorization, **choices)))
    assert opened.user == attacker
    notice = victim.get(f"/~{opened.key}/notices/").content.decode()
    assert name in notice
    assert opened.registration.server.name in notice
    # Once; and not when the same user opens the next chart.
    assert victim.get(f"/~{opened.key}/notices/").content == b""
    again = launch(victim, ehr)
    assert victim.get(f"/~{again.key}/notices/").content == b""


# Connect


def test_connecting_links_an_unknown_identity_to_the_signed_in_user(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    user = _sign_in(browser)
    before = browser.session.session_key
    finished = connect(browser, ehr)
    assert (finished.intent, finished.user) == ("connect", user)
    assert Identity.objects.get().user == user
    assert browser.session.session_key == before
    assert User.objects.count() == 1
    # What that lends is the records: the account signs nobody in.
    assert not Identity.objects.get().may_sign_in


def _read_connect_form(browser: Client) -> dict[str, str]:
    """Open the page that asks; returns what its button sends."""
    return _read_form(browser.get("/smart/login/?server=harbour&next=/page/"))


def _read_form(response: Any) -> dict[str, str]:
    # The form before it signs out.
    _, _, form = response.content.decode().partition('action="/smart/login/"')
    form, _, _ = form.partition("</form>")
    return dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form))


def _press_connect(browser: Client) -> Any:
    """Open the page that asks; press its button when the session has run out."""
    inputs = _read_connect_form(browser)
    browser.session.flush()
    return browser.post("/smart/login/", inputs)


@pytest.mark.parametrize("is_named", [True, False])
def test_connecting_for_another_user_than_the_page_named_asks_again(
    ehr: EHRSimulator, is_named: bool
) -> None:
    """Without a new session, as a middleware that impersonates a user does it."""
    browser = make_browser()
    _sign_in(browser, "support")
    form = _read_connect_form(browser)
    patient = _sign_in(browser, "maria")
    if not is_named:
        # As the template of a site does that has not added the field.
        del form["user"]
    response = browser.post("/smart/login/", form)
    page = "/smart/login/?server=harbour&next=%2Fpage%2F"
    assert (response.status_code, response["Location"]) == (302, page)
    assert not Launch.objects.exists()

    form = _read_connect_form(browser)
    assert form["user"] == str(patient.pk)
    started = browser.post("/smart/login/", form)
    finished = get_launch(get_callback(browser, ehr.authorize(started["Location"])))
    assert (finished.intent, finished.user) == ("connect", patient)


@pytest.mark.parametrize("login_url", ["/admin/login/", "/smart/login/"])
def test_signing_out_instead_of_connecting_leads_back_to_the_organization(
    settings: Any, login_url: str
) -> None:
    settings.LOGIN_URL = login_url
    browser = make_browser()
    _sign_in(browser)
    asked = browser.get("/smart/login/?server=harbour&next=/page/")
    values = re.findall(
        r'action="/smart/logout/">.*?name="next" value="([^"]*)"',
        asked.content.decode(),
    )
    if login_url == "/smart/login/":
        # The EHR might sign the same person in at once.
        assert values == []
        assert browser.post("/smart/logout/")["Location"] == "/"
        return
    (next_url,) = map(html.unescape, values)
    login = urlsplit(browser.post("/smart/logout/", {"next": next_url})["Location"])
    assert login.path == "/admin/login/"
    assert _signed_in(browser) is None
    _sign_in(browser, "sam")
    asked = browser.get(parse_qs(login.query)["next"][0])
    assert b'name="user" value="' in asked.content
    assert b'name="next" value="/page/"' in asked.content


def test_connecting_after_the_session_ran_out_asks_to_sign_in_again(
    settings: Any,
) -> None:
    settings.LOGIN_URL = "/admin/login/"
    browser = make_browser()
    _sign_in(browser)
    response = _press_connect(browser)
    assert (response.status_code, get_code(response)) == (409, "user_signed_out")
    login = urlsplit(response.context["retry"].url)
    assert login.path == "/admin/login/"
    assert not Launch.objects.exists()
    # Whoever signs in is asked again.
    _sign_in(browser)
    asked = browser.get(parse_qs(login.query)["next"][0])
    assert b'name="user" value="' in asked.content
    assert b'name="next" value="/page/"' in asked.content


@pytest.mark.compliance("SEC-11")
def test_connecting_after_the_session_ran_out_does_not_sign_in_by_the_ehr(
    settings: Any,
) -> None:
    settings.LOGIN_URL = "/smart/login/"
    browser = make_browser()
    _sign_in(browser)
    with listening(launch_failed) as failed:
        response = _press_connect(browser)
    assert (response.status_code, get_code(response)) == (409, "user_signed_out")
    assert not Launch.objects.exists()
    assert len(failed) == 1


def test_connecting_an_identity_of_someone_else_is_refused(ehr: EHRSimulator) -> None:
    owner = launch(make_browser(), ehr).user
    browser = make_browser()
    user = _sign_in(browser)
    before = browser.session.session_key
    response = get_callback(browser, ehr.authorize(start_login(browser)))
    assert (response.status_code, get_code(response)) == (409, "identity_in_use")
    assert Identity.objects.get().user == owner
    assert TokenGrant.objects.active().count() == 1
    assert _signed_in(browser) == str(user.pk)
    assert browser.session.session_key == before


@pytest.mark.parametrize("change", ["another", "nobody"])
@pytest.mark.parametrize("login_url", ["/admin/login/", "/smart/login/"])
def test_connecting_is_refused_when_the_user_changed_meanwhile(
    ehr: EHRSimulator, settings: Any, change: str, login_url: str
) -> None:
    settings.LOGIN_URL = login_url
    browser = make_browser()
    _sign_in(browser)
    callback = ehr.authorize(start_login(browser, next="/page/"))
    if change == "another":
        _sign_in(browser, "grace")
    else:
        # A session that ran out: unlike a sign-out, it tells nobody.
        del browser.cookies["sessionid"]
    response = get_callback(browser, callback)
    retry = response.context["retry"]
    if change == "another":
        assert (response.status_code, get_code(response)) == (409, "user_changed")
        assert retry is None
    else:
        assert (response.status_code, get_code(response)) == (409, "user_signed_out")
        again = "/smart/login/?server=harbour&next=%2Fpage%2F"
        # While nobody is signed in, that would not connect, but sign in by the EHR.
        url = urlsplit(retry.url)
        leads_to = parse_qs(url.query)["next"][0] if "admin" in login_url else retry.url
        assert (url.path, leads_to) == (login_url, again)
    assert not ehr.requests_to("token")
    assert not Identity.objects.exists()
    assert not TokenGrant.objects.active().exists()


# Without an identity


def test_launch_without_identity_belongs_to_the_signed_in_user(
    ehr: EHRSimulator,
) -> None:
    ClientRegistration.objects.update(standalone_scope=PLAIN_SCOPE)
    browser = make_browser()
    user = _sign_in(browser)
    finished = connect(browser, ehr)
    assert (finished.user, finished.identity) == (user, None)
    assert finished.grant is not None
    assert finished.grant.user == user
    assert fhir_client_for(user, finished.registration.server).patient_id is not None


def test_launch_without_identity_is_not_adopted_by_who_signs_in_later(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    ClientRegistration.objects.update(standalone_scope=PLAIN_SCOPE)
    browser = make_browser()
    finished = connect(browser, ehr)
    assert finished.user is None
    assert finished.grant is not None
    assert (finished.grant.user, _signed_in(browser)) == (None, None)
    assert open_page(browser, finished) == 200
    assert browser.get("/page/").json()["launched"] is True

    user = _sign_in(browser)
    assert open_page(browser, finished) == 403
    assert browser.get("/page/").json()["launched"] is False
    page = browser.get("/smart/connections/").content.decode()
    assert "Harbour Hospital" not in page
    with pytest.raises(NoGrantError):
        fhir_client_for(user, registration.server)


@pytest.mark.parametrize("kind", ["ehr", "standalone"])
def test_launch_before_the_sign_in_that_the_site_requires_is_opened_once_more(
    ehr: EHRSimulator, settings: Any, kind: str
) -> None:
    settings.LOGIN_URL = "/admin/login/"
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    ClientRegistration.objects.update(
        ehr_scope="launch patient/Patient.rs", standalone_scope=PLAIN_SCOPE
    )
    open_app = launch if kind == "ehr" else connect
    browser = make_browser()
    page = f"/~{open_app(browser, ehr).key}/page/"
    assert browser.get(page)["Location"] == f"/admin/login/?next={page}"
    user = _sign_in(browser)
    response = browser.get(page)
    assert (response.status_code, get_code(response)) == (403, "launch_without_user")
    text = response.content.decode()
    if kind == "ehr":
        assert "open the app from the patient" in text
    else:
        assert response.context["retry"].url.startswith("/smart/login/?server=")
    opened = open_app(browser, ehr)
    assert opened.user == user
    assert open_page(browser, opened) == 200


def test_launch_without_identity_is_refused_when_the_user_changed_meanwhile(
    ehr: EHRSimulator,
) -> None:
    ClientRegistration.objects.update(ehr_scope="launch patient/Patient.rs")
    browser = make_browser()
    callback = ehr.authorize(start_ehr_launch(browser, ehr))
    _sign_in(browser)
    response = get_callback(browser, callback)
    assert (response.status_code, get_code(response)) == (409, "user_changed")
    assert not TokenGrant.objects.active().exists()


# What another transaction does at the same moment


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("after", [False, True], ids=["user", "grant"])
def test_launch_that_loses_a_deadlock_is_stored_all_the_same(
    ehr: EHRSimulator, *, after: bool
) -> None:
    model: Any = TokenGrant if after else User
    lost: list[bool] = []

    def give_up(**_kwargs: Any) -> None:
        if len(lost) < 2:
            lost.append(True)
            raise OperationalError(1213, "Deadlock found when trying to get lock")

    browser = make_browser()
    post_save.connect(give_up, sender=model)
    try:
        opened = launch(browser, ehr)
    finally:
        post_save.disconnect(give_up, sender=model)
    assert len(lost) == 2
    user = User.objects.get()
    assert (opened.user, _signed_in(browser)) == (user, str(user.pk))
    assert Identity.objects.get().user == user
    assert TokenGrant.objects.get().user == user
    assert len(ehr.requests_to("token")) == 1


@pytest.mark.django_db(transaction=True)
def test_launch_that_cannot_be_stored_leaves_no_row_and_no_session(
    ehr: EHRSimulator,
) -> None:
    def give_up(instance: TokenGrant, **_kwargs: Any) -> None:
        if instance.status == TokenGrant.Status.ACTIVE:
            raise OperationalError(1213, "Deadlock found when trying to get lock")

    browser = make_browser()
    callback = ehr.authorize(start_ehr_launch(browser, ehr))
    post_save.connect(give_up, sender=TokenGrant)
    try:
        with pytest.raises(OperationalError):
            get_callback(browser, callback)
    finally:
        post_save.disconnect(give_up, sender=TokenGrant)
    assert not User.objects.exists()
    assert not Identity.objects.exists()
    assert not TokenGrant.objects.active().exists()
    assert _signed_in(browser) is None


@pytest.mark.django_db(transaction=True)
def test_tokens_that_arrive_during_a_failover_are_revoked(ehr: EHRSimulator) -> None:
    until: list[float] = []

    def only_read(execute: Any, sql: str, *args: Any) -> Any:
        if until and time.monotonic() < until[0] and not sql.startswith("SELECT"):
            raise OperationalError("cannot execute in a read-only transaction")
        return execute(sql, *args)

    browser = make_browser()
    callback = ehr.authorize(start_login(browser))
    after_answer(ehr, lambda: until.append(time.monotonic() + 0.5))
    with (
        connections["default"].execute_wrapper(only_read),
        listening(launch_failed) as failed,
        pytest.raises(OperationalError),
    ):
        get_callback(browser, callback)
    assert [each["launch"] for each in failed] == [Launch.objects.get()]
    assert Launch.objects.get().error_code == "internal_error"
    purge()
    assert not TokenGrant.objects.exclude(refresh_token="").exists()
    (token,) = ehr.store.refresh_tokens.values()
    assert token.grant.revoked


# What goes wrong when everything is stored already


@pytest.fixture(params=["hook", "acknowledgment"])
def late_error(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Once, an error after a grant has been committed; the list says that it came."""
    connection, raised = connections["default"], list[str]()
    commit = connection.commit

    def fail() -> None:
        raised.append(request.param)
        raise RuntimeError("A bug in the site's hook")

    def lose_acknowledgment() -> None:
        monkeypatch.setattr(connection, "commit", commit)
        commit()
        raised.append(request.param)
        raise OperationalError("server closed the connection unexpectedly")

    # It is saved in the transaction of the grant, but not while a launch is held.
    def arm(**_kwargs: Any) -> None:
        if raised:
            return
        if request.param == "hook":
            transaction.on_commit(fail)
        else:
            monkeypatch.setattr(connection, "commit", lose_acknowledgment)

    post_save.connect(arm, sender=Identity)
    yield raised
    post_save.disconnect(arm, sender=Identity)


@pytest.mark.django_db(transaction=True)
def test_launch_that_was_stored_goes_on_after_a_late_error(
    ehr: EHRSimulator, late_error: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    browser = make_browser()
    opened = launch(browser, ehr)
    assert len(late_error) == 1
    assert (opened.status, _signed_in(browser)) == ("open", str(opened.user_id))
    assert open_page(browser, opened) == 200
    grant = TokenGrant.objects.get()
    assert (grant, grant.status) == (opened.grant, "active")
    assert not ehr.requests_to("revoke")
    errors = [each for each in caplog.records if each.levelname == "ERROR"]
    assert [each.exc_info is not None for each in errors] == [True]


def test_fhir_user_at_another_server_signs_in_and_is_never_read(ehr, registration):
    ehr.faults = ["id_token_fhir_user_other_host"]
    browser = make_browser()
    opened = launch(browser, ehr)
    url = f"{ehr.foreign_origin}/fhir/Practitioner/1"
    assert opened.fhir_user == url
    assert opened.identity is not None
    assert opened.identity.fhir_user == url
    assert opened.user is not None
    assert not ehr.requests_to("elsewhere")


def test_patient_of_fhir_user_counts_only_where_the_column_says_so(ehr, registration):
    ehr.quirks = ["patient_in_fhir_user"]
    person = f"Patient/{PATIENT}"
    browser = make_browser()
    refused = get_callback(browser, ehr.authorize(start_login(browser), user=person))
    assert b"<code>patient_missing</code>" in refused.content
    FHIRServer.objects.update(quirks={"patient_from_fhir_user": True})
    opened = connect(browser, ehr, user=person)
    assert opened.grant is not None
    assert (opened.grant.patient_id, opened.context["patient"]) == (PATIENT, PATIENT)
    # A clinician is nobody's patient.
    refused = get_callback(browser, ehr.authorize(start_login(browser)))
    assert b"<code>patient_missing</code>" in refused.content


def test_context_of_a_signed_access_token_counts_where_the_column_says_so(
    ehr, registration
):
    ehr.quirks = ["context_in_access_token"]
    browser = make_browser()
    url = ehr.authorize(start_ehr_launch(browser, ehr, tenant="north"))
    assert b"<code>patient_missing</code>" in get_callback(browser, url).content
    FHIRServer.objects.update(quirks={"context_in_access_token": True})
    # Absent in the response, whatever a server writes for that.
    answer(ehr, "/auth/token", patient=None, tenant="")
    opened = launch(browser, ehr, tenant="north")
    assert opened.grant is not None
    assert opened.grant.patient_id == opened.context["patient"] == PATIENT
    assert opened.context["tenant"] == "north"
    assert "client_id" not in opened.context


@pytest.mark.parametrize("wrong", ["opaque", "issuer", "client", "keys", "expired"])
def test_access_token_that_does_not_verify_names_nobody(
    ehr, registration, monkeypatch, wrong
):
    make = id_tokens.issue_access_token

    def forge(simulator, grant, expires_at):
        if wrong == "opaque":
            return "opaque"
        if wrong == "client":
            grant = dataclasses.replace(grant, client_id="another")
        other = EHRSimulator(base_url="https://elsewhere.example.net/fhir")
        if wrong == "keys":
            other = EHRSimulator(base_url=simulator.base_url)
            other.rotate_signing_key()
        at = 1_000_000_000 if wrong == "expired" else expires_at
        return make(other if wrong in {"issuer", "keys"} else simulator, grant, at)

    monkeypatch.setattr(
        "django_smart.testing.simulator.token.issue_access_token", forge
    )
    FHIRServer.objects.update(quirks={"context_in_access_token": True})
    ehr.quirks = ["context_in_access_token"]
    browser = make_browser()
    answer = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    assert answer.status_code == 502
    assert not TokenGrant.objects.active().exists()


@pytest.mark.parametrize("is_said_to_be_granted", [True, False])
def test_fhir_user_that_is_granted_and_does_not_come_is_noted(
    ehr, registration, is_said_to_be_granted
):
    browser, granted = make_browser(), "launch openid patient/Patient.rs"
    callback = ehr.authorize(start_ehr_launch(browser, ehr), scope=granted)
    if is_said_to_be_granted:
        answer(ehr, "/auth/token", scope=f"{granted} fhirUser")
    codes = [code for code, _ in get_launch(get_callback(browser, callback)).deviations]
    assert ("fhir_user_absent" in codes) is is_said_to_be_granted

"""Sign-in and sign-out by any view of a site, not ours alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from django.contrib.auth import get_user_model, user_logged_in, user_logged_out
from django.http import HttpRequest
from django.test import Client

from django_smart.backends import SMARTAuthenticationBackend
from django_smart.models import Launch, TokenGrant
from django_smart.signals import launch_completed
from django_smart.testing import EHRSimulator
from tests.celery import Broker
from tests.ehr import (
    connect,
    copy_browser,
    get_callback,
    get_launch,
    get_launch_cookies,
    launch,
    make_browser,
    start_ehr_launch,
    start_login,
)
from tests.factories import make_registration
from tests.launch_urls import get_code, open_page

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.launch_urls")]

_PLAIN_SCOPE = "launch/patient patient/Patient.rs"
_ONLINE_SCOPE = "launch openid fhirUser patient/Patient.rs online_access"


def _sign_in(browser: Client, username: str = "ada") -> Any:
    """By the admin's own form, as a site's staff does it."""
    user, is_new = get_user_model().objects.get_or_create(
        username=username, defaults={"is_staff": True, "is_superuser": True}
    )
    if is_new:
        user.set_password("a password")
        user.save()
    response = browser.post(
        "/admin/login/?next=/page/", {"username": username, "password": "a password"}
    )
    assert response.status_code == 302
    return user


@pytest.mark.usefixtures("registration")
def test_sign_in_of_another_user_ends_the_launches_without_a_sign_out(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    opened = launch(browser, ehr)
    _sign_in(browser)
    assert get_launch_cookies(browser) == {}
    assert open_page(browser, opened) == 410
    opened.refresh_from_db()
    assert opened.error_code == "user_changed"


@pytest.mark.usefixtures("registration")
def test_sign_in_of_the_same_user_leaves_the_launches(ehr: EHRSimulator) -> None:
    browser = make_browser()
    user = _sign_in(browser)
    opened = connect(browser, ehr)
    assert opened.user == user
    _sign_in(browser)
    assert open_page(browser, opened) == 200


def test_launch_of_nobody_is_left_when_somebody_signs_in(ehr: EHRSimulator) -> None:
    make_registration(standalone_scope=_PLAIN_SCOPE)
    browser = make_browser()
    opened = connect(browser, ehr)
    _sign_in(browser)
    assert open_page(browser, opened) == 403
    assert Launch.objects.get().status == "open"


def test_sign_in_and_out_in_a_browser_without_launches_sets_no_cookie() -> None:
    browser = make_browser()
    _sign_in(browser)
    browser.post("/sign-out/")
    assert "smart_browser" not in browser.cookies.output()


@pytest.mark.usefixtures("registration")
@pytest.mark.parametrize("signs_out", [False, True])
def test_sign_out_while_at_the_ehr_is_the_reason_that_the_callback_names(
    ehr: EHRSimulator, *, signs_out: bool
) -> None:
    browser = make_browser()
    user = _sign_in(browser)
    callback = ehr.authorize(start_login(browser))
    if not signs_out:
        assert get_launch(get_callback(browser, callback)).user == user
        return
    browser.post("/sign-out/")
    response = get_callback(browser, callback)
    assert (response.status_code, get_code(response)) == (409, "state_failed")
    assert response.context["nothing_done"] is True
    assert not TokenGrant.objects.exists()
    # Also when it is opened again.
    assert get_code(get_callback(browser, callback)) == "state_failed"


class _Filling(SMARTAuthenticationBackend):
    """Of a site whose ``fill_user`` takes its time."""

    meanwhile: ClassVar[list[Callable[[], None]]] = []

    def fill_user(self, *_args: Any) -> None:
        if self.meanwhile:
            self.meanwhile.pop()()


def _open_beside(
    browser: Client, ehr: EHRSimulator, *, signs_out: bool
) -> Callable[[], None]:
    """What happens in a second tab: a launch that began before, and a sign-out."""
    callback = ehr.authorize(start_ehr_launch(browser, ehr))
    tab = make_browser()
    tab.cookies = browser.cookies

    def act() -> None:
        opened = get_launch(get_callback(tab, callback))
        assert open_page(tab, opened) == 200
        if signs_out:
            tab.post("/sign-out/")

    return act


@pytest.mark.parametrize("signs_out", [False, True])
@pytest.mark.parametrize("where", ["fill_user", "launch_completed"])
def test_launch_that_completes_during_a_sign_out_signs_nobody_in(
    ehr: EHRSimulator, settings: Any, where: str, *, signs_out: bool
) -> None:
    make_registration(ehr_scope=_ONLINE_SCOPE)
    browser = make_browser()
    callback = ehr.authorize(start_ehr_launch(browser, ehr))
    act = _open_beside(browser, ehr, signs_out=signs_out)

    _Filling.meanwhile.append(act)

    def receive(**_values: Any) -> None:
        if _Filling.meanwhile:
            _Filling.meanwhile.pop()()

    if where == "fill_user":
        settings.AUTHENTICATION_BACKENDS = [f"{__name__}._Filling"]
    else:
        launch_completed.connect(receive)
    response = get_callback(browser, callback)
    launch_completed.disconnect(receive)
    first = Launch.objects.earliest("pk")
    if not signs_out:
        assert get_launch(response) == first
        assert open_page(browser, first) == 200
        return
    assert (response.status_code, get_code(response)) == (409, "state_failed")
    # A user was stored, and would be a grant with offline_access.
    assert response.context["nothing_done"] is False
    assert "_auth_user_id" not in browser.session
    assert (first.status, first.error_code) == ("ended", "signed_out")
    assert open_page(browser, first) == 410
    assert not TokenGrant.objects.active().exists()


def test_sign_out_ends_a_launch_whose_cookie_the_browser_does_not_have_yet(
    ehr: EHRSimulator,
) -> None:
    make_registration(standalone_scope=_PLAIN_SCOPE)
    browser = make_browser()
    _sign_in(browser)
    callback = ehr.authorize(start_login(browser))
    tab = copy_browser(browser)
    # Its response arrives after the other tab's request was sent.
    opened = get_launch(get_callback(browser, callback))
    tab.post("/sign-out/")
    opened.refresh_from_db()
    assert opened.status == "ended"
    assert not TokenGrant.objects.active().exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("registration")
def test_sign_out_does_not_depend_on_the_broker(
    ehr: EHRSimulator, broker: Broker
) -> None:
    browser = make_browser()
    launch(browser, ehr)
    assert "_auth_user_id" in browser.session
    broker.error = ConnectionError("refused")
    assert browser.post("/sign-out/").status_code == 302
    assert "_auth_user_id" not in browser.session
    assert TokenGrant.objects.get().is_revocation_pending
    # Nor does it wait for the EHR.
    assert ehr.requests_to("revoke") == []


def test_signals_without_a_request_are_harmless() -> None:
    user = get_user_model().objects.create(username="ada")
    for signal in (user_logged_in, user_logged_out):
        signal.send(sender=type(user), request=None, user=user)
    user_logged_out.send(sender=type(user), request=HttpRequest(), user=None)

"""Endings: sign-out, change of user, disconnect, and what each leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone

from django_smart.grants.ending import (
    disconnect_grant,
    end_unused_grants,
    revoke_pending,
    supersede_all,
    supersede_grants,
)
from django_smart.launches.purge import purge
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Launch,
    ServerState,
    TokenGrant,
)
from django_smart.signals import grant_revoked
from django_smart.testing import EHRSimulator
from tests.ehr import (
    connect,
    get_launch_cookies,
    launch,
    listening,
    make_browser,
)
from tests.factories import make_grant, make_identity, make_registration, make_user
from tests.launch_urls import open_page

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.launch_urls")]

_ONLINE = "launch openid fhirUser patient/Patient.rs online_access"


@pytest.fixture
def commit(django_capture_on_commit_callbacks: Any) -> Callable[[], Any]:
    """A ``with`` block after which what has ended is revoked."""

    @contextmanager
    def run() -> Iterator[None]:
        with django_capture_on_commit_callbacks(execute=True):
            yield
        revoke_pending()

    return run


def _second_clinician(ehr: EHRSimulator) -> str:
    return [name for name in ehr.users if name.startswith("Practitioner/")][1]


def _grant(opened: Launch) -> TokenGrant:
    assert opened.grant is not None
    opened.grant.refresh_from_db()
    return opened.grant


def _is_revoked_at(ehr: EHRSimulator, token: str) -> bool:
    grant = ehr.store.grant_of(token)
    assert grant is not None
    return grant.revoked


# Another user


@pytest.mark.compliance("EHRL-09")
def test_launch_of_another_user_ends_the_earlier_ones_of_the_browser(
    ehr: EHRSimulator, commit: Callable[[], Any]
) -> None:
    make_registration(ehr_scope=_ONLINE, user_switch="switch")
    browser = make_browser()
    first, second = launch(browser, ehr), launch(browser, ehr)
    tokens = [_grant(each).refresh_token for each in (first, second)]
    assert all(tokens)
    with commit():
        third = launch(browser, ehr, user=_second_clinician(ehr))
    assert third.user != first.user
    assert browser.session["_auth_user_id"] == str(third.user_id)
    assert len(get_launch_cookies(browser)) == 1
    assert [open_page(browser, each) for each in (first, second, third)] == [
        *(410, 410, 200),
    ]
    for opened, token in zip((first, second), tokens, strict=True):
        opened.refresh_from_db()
        assert (opened.status, opened.error_code) == ("ended", "user_changed")
        grant = _grant(opened)
        assert (grant.status, grant.access_token) == ("revoked", "")
        assert _is_revoked_at(ehr, token)
    assert _grant(third).status == "active"


def test_offline_grants_outlive_a_change_of_user(
    ehr: EHRSimulator, commit: Callable[[], Any]
) -> None:
    make_registration(user_switch="switch")
    browser = make_browser()
    first = connect(browser, ehr)
    assert _grant(first).is_offline
    with commit():
        launch(browser, ehr, user=_second_clinician(ehr))
    assert open_page(browser, first) == 410
    assert _grant(first).status == "active"
    assert not ehr.requests_to("revoke")


# Sign-out


@pytest.mark.parametrize("path", ["/smart/logout/", "/sign-out/"])
def test_sign_out_ends_the_launches_and_the_grants_that_are_not_offline(
    ehr: EHRSimulator, commit: Callable[[], Any], path: str
) -> None:
    make_registration(ehr_scope=_ONLINE)
    browser, elsewhere = make_browser(), make_browser()
    online, offline = launch(browser, ehr), connect(browser, ehr)
    other = launch(elsewhere, ehr)
    token = _grant(online).refresh_token
    with listening(grant_revoked) as revoked, commit():
        assert browser.post(path).status_code == 302
    assert open_page(browser, online) == open_page(browser, offline) == 410
    assert open_page(elsewhere, other) == 200
    assert get_launch_cookies(browser) == {}
    grant = _grant(online)
    assert (grant.status, grant.is_revocation_pending) == ("revoked", False)
    assert (grant.access_token, grant.refresh_token) == ("", "")
    assert _is_revoked_at(ehr, token)
    assert [each["grant"].pk for each in revoked] == [grant.pk]
    assert _grant(offline).status == _grant(other).status == "active"
    assert {request.status for request in ehr.requests_to("revoke")} == {200}


@pytest.mark.django_db(transaction=True)
def test_failing_receiver_stops_neither_a_sign_out_nor_the_purge(
    ehr: EHRSimulator, registration: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> None:
        raise LookupError("the site's own table is gone")

    registration.ehr_scope = _ONLINE
    registration.save()
    browser = make_browser()
    for number in (0, 1):
        launch(browser, ehr, patient=list(ehr.data["Patient"])[number])
    grant_revoked.connect(fail)
    try:
        assert browser.post("/smart/logout/").status_code == 302
        assert "_auth_user_id" not in browser.session
        assert not TokenGrant.objects.active().exists()
        TokenGrant.objects.update(status="active", ended_at=None)
        purge()
    finally:
        grant_revoked.disconnect(fail)
    assert not TokenGrant.objects.active().exists()
    assert "table is gone" in caplog.text


@pytest.mark.usefixtures("registration")
def test_sign_out_by_get_is_not_offered(ehr: EHRSimulator) -> None:
    browser = make_browser()
    opened = launch(browser, ehr)
    assert browser.get("/smart/logout/").status_code == 405
    assert open_page(browser, opened) == 200


@pytest.mark.usefixtures("registration")
def test_deactivated_user_cannot_use_the_launches(ehr: EHRSimulator) -> None:
    browser = make_browser()
    opened = launch(browser, ehr)
    get_user_model().objects.update(is_active=False)
    assert open_page(browser, opened) == 403


# Superseding (design decision 10)


@pytest.mark.usefixtures("registration")
def test_two_tabs_on_one_patient_keep_a_grant_each(ehr: EHRSimulator) -> None:
    browser = make_browser()
    first, second = connect(browser, ehr), connect(browser, ehr)
    assert first.grant_id != second.grant_id
    assert _grant(first).status == _grant(second).status == "active"
    assert open_page(browser, first) == open_page(browser, second) == 200


@pytest.mark.usefixtures("registration")
def test_new_offline_grant_supersedes_those_that_no_live_launch_uses(
    ehr: EHRSimulator, commit: Callable[[], Any]
) -> None:
    browser = make_browser()
    first = connect(browser, ehr)
    token = _grant(first).refresh_token
    browser.post("/smart/logout/")
    assert _grant(first).status == "active"
    with commit():
        second = connect(browser, ehr)
    assert second.user == first.user
    assert _grant(first).status == "revoked"
    assert _is_revoked_at(ehr, token)
    assert _grant(second).status == "active"


@pytest.mark.usefixtures("registration")
def test_only_grants_of_the_same_user_registration_and_patient_are_superseded(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    patients = list(ehr.data["Patient"])
    clinician = _second_clinician(ehr)
    kept = [connect(browser, ehr, patient=patients[0])]
    browser.post("/smart/logout/")
    kept.append(connect(browser, ehr, patient=patients[1]))
    browser.post("/smart/logout/")
    kept.append(connect(browser, ehr, patient=patients[0], user=clinician))
    assert {_grant(each).status for each in kept} == {"active"}
    # Ids that differ in case alone are ids of two patients.
    grant = _grant(kept[2])
    TokenGrant.objects.filter(pk=_grant(kept[0]).pk).update(
        patient_id=grant.patient_id.upper(), user=grant.user
    )
    supersede_grants(grant, now=timezone.now())
    assert not TokenGrant.objects.awaiting_revocation().exists()


@pytest.mark.parametrize(
    ("patient_id", "accounts", "left"),
    [
        ("", ["clinic", "hospital"], [0, 1]),
        ("", ["clinic", "clinic"], [1]),
        ("", ["clinic", "hospital", "clinic", "hospital"], [2, 3]),
        # Nothing says that it was another account.
        ("", [None, "clinic"], [1]),
        ("", ["clinic", None], [1]),
        ("", ["clinic", "clinic", None, "hospital"], [1, 3]),
        # The record is the same for everybody who may read it.
        ("p", ["clinic", "hospital"], [1]),
        ("p", ["clinic", "hospital", "clinic"], [2]),
    ],
)
def test_without_a_patient_a_grant_supersedes_only_those_of_its_ehr_account(
    registration: ClientRegistration,
    patient_id: str,
    accounts: list[str | None],
    left: list[int],
) -> None:
    user = make_user()
    known = {name: make_identity(user, subject=name) for name in set(accounts) if name}
    grants = [
        make_grant(
            registration,
            user=user,
            patient_id=patient_id,
            identity=known.get(name or ""),
        )
        for name in accounts
    ]
    supersede_all(now=timezone.now())
    found = set(TokenGrant.objects.active())
    assert [grants.index(each) for each in grants if each in found] == left


# Disconnecting and telling the EHR


@pytest.mark.usefixtures("registration")
def test_disconnecting_ends_the_grant_and_its_launches(
    ehr: EHRSimulator, commit: Callable[[], Any]
) -> None:
    browser = make_browser()
    opened = connect(browser, ehr)
    grant = _grant(opened)
    token = grant.refresh_token
    with commit():
        response = browser.post("/smart/connections/", {"grant": grant.pk})
    assert response.status_code == 302
    assert open_page(browser, opened) == 410
    assert _grant(opened).status == "revoked"
    assert _is_revoked_at(ehr, token)
    disconnect_grant(grant)
    assert not TokenGrant.objects.awaiting_revocation().exists()


@pytest.mark.usefixtures("registration")
def test_server_that_issues_the_same_refresh_token_again_keeps_it(
    ehr: EHRSimulator, commit: Callable[[], Any]
) -> None:
    browser = make_browser()
    first = _grant(connect(browser, ehr))
    browser.post("/smart/logout/")
    token = first.refresh_token
    with commit():
        second = _grant(connect(browser, ehr))
        second.set_tokens(access_token=second.access_token, refresh_token=token)
        second.save()
    first.refresh_from_db()
    assert (first.status, first.refresh_token) == ("revoked", "")
    assert not _is_revoked_at(ehr, token)
    with commit():
        browser.post("/smart/connections/", {"grant": second.pk})
    assert _is_revoked_at(ehr, token)


@pytest.mark.usefixtures("registration")
@pytest.mark.parametrize("status", ["active", "held"])
def test_refresh_token_that_another_grant_has_is_kept_whoever_its_user_is(
    ehr: EHRSimulator, commit: Callable[[], Any], status: str
) -> None:
    grant = _grant(connect(make_browser(), ehr))
    token = grant.refresh_token
    TokenGrant.objects.update(status=status)
    # Of a question that no one answered, so it has no user.
    unanswered = make_grant(grant.registration, refresh_token=token, status="held")
    with commit():
        row = TokenGrant.objects.filter(pk=unanswered.pk)
        row.end_pending_revocation(now=timezone.now())
    unanswered.refresh_from_db()
    assert (unanswered.status, unanswered.refresh_token) == ("revoked", "")
    assert not _is_revoked_at(ehr, token)


@pytest.mark.usefixtures("registration")
def test_server_without_revocation_has_the_tokens_forgotten(
    ehr: EHRSimulator,
) -> None:
    grant = _grant(connect(make_browser(), ehr))
    document: Any = FHIRServer.objects.get().state.configuration
    del document["revocation_endpoint"]
    ServerState.objects.update(configuration=document)
    grant = TokenGrant.objects.get(pk=grant.pk)
    disconnect_grant(grant)
    assert revoke_pending() == 1
    grant.refresh_from_db()
    assert (grant.status, grant.refresh_token) == ("revoked", "")
    assert not ehr.requests_to("revoke")


@pytest.mark.usefixtures("registration")
@pytest.mark.parametrize("is_deleted", [False, True])
def test_grant_without_launch_is_ended(ehr: EHRSimulator, is_deleted: bool) -> None:
    browser: Client = make_browser()
    opened = launch(browser, ehr)
    now = timezone.now()
    end_unused_grants(now=now)
    assert TokenGrant.objects.active().get() == opened.grant
    if is_deleted:
        Launch.objects.filter(pk=opened.pk).delete()
    end_unused_grants(now=now if is_deleted else now + timedelta(hours=13))
    assert not TokenGrant.objects.active().exists()

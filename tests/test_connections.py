"""``connections/``: what a user has connected, and how it ends."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.test import Client
from django.utils import timezone
from django.utils.formats import date_format

from django_smart.grants.ending import end_changed_grant, revoke_pending
from django_smart.models import ClientRegistration, Launch, TokenGrant
from django_smart.signals import launch_completed
from tests.ehr import PATIENT, get_callback, get_launch, make_browser, start_login
from tests.factories import make_grant, make_identity, make_registration
from tests.grants.working import refresh_grants
from tests.site.browsers import SITE_MARKS, open_chart

pytestmark = SITE_MARKS


AGAIN = 'href="/smart/login/?server=harbour"'


def text_of(response: Any) -> str:
    return str(response.content.decode())


@pytest.fixture
def browser(user: Any) -> Client:
    """Where *user* is signed in."""
    browser = make_browser()
    browser.force_login(user)
    return browser


def connect(browser: Client, ehr: Any, **values: Any) -> Launch:
    """Connect the records of the signed-in user."""
    url = ehr.authorize(
        start_login(browser), **{"user": f"Patient/{PATIENT}", **values}
    )
    return get_launch(get_callback(browser, url))


@pytest.mark.parametrize(("days", "is_soon"), [(1, True), (90, False)])
def test_known_end_is_shown_and_soon_one_can_connect_again(ehr, browser, days, is_soon):
    connect(browser, ehr)
    page = text_of(browser.get("/smart/connections/"))
    now = timezone.now()
    ends_at = now + timedelta(days=days)
    written = date_format(ends_at, "DATE_FORMAT")
    assert written not in page.replace(date_format(now, "DATE_FORMAT"), "")
    TokenGrant.objects.update(ends_at=ends_at, ends_soon_at=ends_at - timedelta(days=7))
    page = text_of(browser.get("/smart/connections/"))
    assert written in page
    assert (AGAIN in page) is is_soon


def test_page_leads_to_no_choice_where_nothing_can_be_chosen(browser):
    link = 'href="/smart/login/"'
    assert link in text_of(browser.get("/smart/connections/"))
    ClientRegistration.objects.update(standalone_scope="")
    assert link not in text_of(browser.get("/smart/connections/"))
    # Whoever gets there all the same is told what to do.
    page = text_of(make_browser().get("/smart/login/"))
    assert "support" in page
    assert "open it there" in page


def test_own_connections_are_listed_and_can_be_ended(ehr, browser):
    launch = connect(browser, ehr)
    page = text_of(browser.get("/smart/connections/"))
    assert "Harbour Hospital" in page
    assert launch.grant is not None
    for secret in (launch.grant.access_token, launch.grant.refresh_token, PATIENT):
        assert secret not in page
    shown = set(re.findall(r'name="grant" value="(\d+)"', page))
    assert shown == {str(launch.grant_id)}

    ehr.clear_requests()
    response = browser.post("/smart/connections/", {"grant": launch.grant_id})
    assert response["Location"] == "/smart/connections/"
    # No page waits for an EHR.
    assert ehr.requests_to("revoke") == []
    assert revoke_pending() == 1
    launch.grant.refresh_from_db()
    assert launch.grant.status == "revoked"
    assert launch.grant.access_token == launch.grant.refresh_token == ""
    assert len(ehr.requests_to("revoke")) == 2
    assert browser.get(f"/~{launch.key}/links/").status_code == 410
    assert "Disconnect" not in text_of(browser.get("/smart/connections/"))
    # A second click: it is over, and nothing is sent.
    again = browser.post("/smart/connections/", {"grant": launch.grant_id})
    assert (again.status_code, again["Location"]) == (302, "/smart/connections/")
    assert len(ehr.requests_to("revoke")) == 2


def test_connections_of_others_are_neither_shown_nor_ended(
    ehr, browser, django_user_model
):
    launch = connect(browser, ehr)
    other = make_browser()
    for signed_in in (False, True):
        if signed_in:
            other.force_login(django_user_model.objects.create_user("sam"))
        assert "Harbour" not in text_of(other.get("/smart/connections/"))
        # The page of someone else's connection is that of an unknown one.
        for grant in (launch.grant_id, 10**9):
            response = other.post("/smart/connections/", {"grant": grant})
            assert response.status_code == 404
            assert listed(response) == []
            assert get_levels(response) == ["warning"]
    assert launch.grant is not None
    TokenGrant.objects.update(status=TokenGrant.Status.REVOKED)
    gone = other.post("/smart/connections/", {"grant": launch.grant_id})
    assert (gone.status_code, get_levels(gone)) == (404, ["warning"])
    TokenGrant.objects.update(status=TokenGrant.Status.ACTIVE)
    launch.grant.refresh_from_db()
    assert launch.grant.status == "active"
    assert browser.get(f"/~{launch.key}/links/").status_code == 200


def test_connection_can_be_ended_where_numbers_have_separators(
    user, browser, registration, settings, admin_client
):
    settings.USE_THOUSAND_SEPARATOR = True
    make_grant(registration, user=user, pk=12345, scope="user/*.rs offline_access")
    page = text_of(admin_client.get("/admin/django_smart/tokengrant/12345/change/"))
    assert 'name="_selected_action" value="12345"' in page
    page = text_of(browser.get("/smart/connections/"))
    (pk,) = re.findall(r'name="grant" value="([^"]*)"', page)
    browser.post("/smart/connections/", {"grant": pk})
    assert TokenGrant.objects.get().status == "revoked"


@pytest.mark.parametrize("grant", ["", "x", "-1", "0", "1.5", "9" * 40, "²", "\x00"])
def test_connections_that_cannot_be_are_not_found(browser, grant):
    response = browser.post("/smart/connections/", {"grant": grant})
    assert response.status_code == 404
    assert get_levels(response) == ["warning"]


def test_disconnecting_after_the_session_ran_out_says_that_nothing_was_done(
    ehr, user, browser
):
    launch = connect(browser, ehr)
    browser.session.flush()
    response = browser.post("/smart/connections/", {"grant": launch.grant_id})
    assert (response.status_code, listed(response)) == (404, [])
    assert "no-store" in response["Cache-Control"]
    assert get_levels(response) == ["warning"]
    assert "smart-message" in text_of(response)
    assert 'href="/smart/login/"' in text_of(response)
    grant = TokenGrant.objects.get()
    assert grant.status == "active"
    # After signing in again, the same button works.
    browser.force_login(user)
    browser.post("/smart/connections/", {"grant": grant.pk})
    grant.refresh_from_db()
    assert grant.status == "revoked"


def listed(response: Any) -> list[tuple[Any, str]]:
    """The connections that a page shows, and how each is doing."""
    return [(grant.pk, grant.status) for grant in response.context["grants"]]


def get_levels(response: Any) -> list[str]:
    """Those of the messages that a page shows."""
    return [each.level_tag for each in response.context["messages"]]


def end_at_the_ehr(launch: Launch) -> None:
    """As the refusal of its refresh token does."""
    grant = TokenGrant.objects.filter(launches=launch)
    assert grant.end("needs_reauthorization", now=timezone.now()) == 1


def test_connection_that_ended_is_told_of_until_it_is_renewed(ehr, browser):
    ended = connect(browser, ehr)
    end_at_the_ehr(ended)
    response = browser.get("/smart/connections/")
    assert listed(response) == [(ended.grant_id, "needs_reauthorization")]
    page = text_of(response)
    assert AGAIN in page
    assert page.count('name="grant"') == 1

    renewed = connect(browser, ehr)
    response = browser.get("/smart/connections/")
    assert listed(response) == [(renewed.grant_id, "active")]
    page = text_of(response)
    assert page.count(">Disconnect<") == page.count('<h2 id="connection-') == 1
    assert AGAIN not in page


def test_connection_that_the_ehr_ended_can_be_ended_for_good(ehr, browser):
    ended = connect(browser, ehr)
    TokenGrant.objects.all().lose(error="invalid_grant")
    browser.post("/smart/connections/", {"grant": ended.grant_id})
    assert listed(browser.get("/smart/connections/")) == []
    grant = TokenGrant.objects.get()
    assert (grant.status, grant.is_revocation_pending) == ("revoked", True)
    assert TokenGrant.objects.restore_lost() == 0


@pytest.mark.parametrize("other", ["patient", "letter", "user", "visit"])
def test_connection_that_ended_is_not_renewed_by_another(
    ehr, user, browser, django_user_model, other
):
    ended = connect(browser, ehr)
    end_at_the_ehr(ended)
    newer = connect(browser, ehr)
    # Not every database compares exactly.
    patient = {"patient": "another", "letter": PATIENT.swapcase()}.get(other, PATIENT)
    TokenGrant.objects.filter(launches=newer).update(
        patient_id=patient,
        user=django_user_model.objects.create_user("sam") if other == "user" else user,
        is_offline=other != "visit",
    )
    response = browser.get("/smart/connections/")
    assert (ended.grant_id, "needs_reauthorization") in listed(response)
    assert text_of(response).count('<h2 id="connection-') == (
        1 if other == "user" else 2
    )


@pytest.mark.parametrize("is_of_another", [True, False])
def test_connection_of_another_account_at_the_ehr_renews_none(
    user, browser, registration, is_of_another
):
    own = make_identity(user)
    other = make_identity(user) if is_of_another else own
    values = {"user": user, "scope": "user/*.rs offline_access"}
    ended = make_grant(registration, identity=own, **values)
    TokenGrant.objects.all().lose(error="invalid_grant")
    make_grant(registration, identity=other, **values)
    shown = listed(browser.get("/smart/connections/"))
    assert ((ended.pk, "needs_reauthorization") in shown) is is_of_another


@pytest.mark.parametrize(
    "values",
    [{"standalone_scope": ""}, {"is_active": False}, {"server__is_active": False}],
)
def test_connection_that_nobody_can_make_here_has_no_button(
    ehr, browser, registration, values
):
    ended = connect(browser, ehr)
    end_at_the_ehr(ended)
    assert AGAIN in text_of(browser.get("/smart/connections/"))
    for name, value in values.items():
        row = registration.server if name.startswith("server__") else registration
        setattr(row, name.removeprefix("server__"), value)
        row.save()
    response = browser.get("/smart/connections/")
    assert listed(response) == [(ended.grant_id, "needs_reauthorization")]
    assert AGAIN not in text_of(response)


def test_connections_for_one_visit_are_not_listed(ehr):
    chart = open_chart(ehr)
    page = text_of(chart.browser.get("/smart/connections/"))
    assert "Harbour" not in page
    response = chart.browser.post(
        "/smart/connections/", {"grant": chart.launch.grant_id}
    )
    assert response.status_code == 404


def test_what_was_not_granted_is_shown_logged_and_signaled(
    ehr, user, admin_client, caplog
):
    seen = []

    def note(missing_scope, **kwargs):
        seen.append(missing_scope)

    launch_completed.connect(note)
    try:
        whole = connect_as(user, ehr)[1]
        ehr.quirks = ["scopes_trimmed", "offline_refused"]
        browser, trimmed = connect_as(user, ehr)
    finally:
        launch_completed.disconnect(note)
    missing = "patient/Patient.rs offline_access"
    assert seen == [whole.missing_scope, trimmed.missing_scope] == ["", missing]
    (warning,) = [each for each in caplog.messages if "did not grant" in each]
    assert missing in warning

    response = browser.get("/smart/connections/")
    lost = TokenGrant.objects.get(launches=trimmed)
    assert (lost.pk, "active") in listed(response)
    page = text_of(response)
    assert page.count("ends when you sign out") >= 1
    assert "name, date of birth and other details" in page
    for row, name in ((trimmed, "launch"), (lost, "tokengrant")):
        url = f"/admin/django_smart/{name}/{row.pk}/change/"
        assert "requested but not granted" in text_of(admin_client.get(url)).lower()
    said = [str(each) for each in get_messages(response.wsgi_request)]
    assert any("Harbour Hospital did not grant" in each for each in said) or (
        "Harbour Hospital did not grant" in page
    )
    assert browser.post("/smart/connections/", {"grant": lost.pk}).status_code == 302
    assert (lost.pk, "active") not in listed(browser.get("/smart/connections/"))


def connect_as(user: Any, ehr: Any) -> tuple[Client, Launch]:
    """A browser of *user*'s that has connected just now."""
    browser = make_browser()
    browser.force_login(user)
    return browser, connect(browser, ehr)


def test_lost_connection_is_listed_until_its_token_ends(ehr, user):
    ehr.quirks = ["offline_refused"]
    browser, launch = connect_as(user, ehr)
    assert listed(browser.get("/smart/connections/")) == [(launch.grant_id, "active")]
    TokenGrant.objects.update(expires_at=timezone.now())
    assert listed(browser.get("/smart/connections/")) == []


def test_two_patients_at_one_hospital_are_told_apart(ehr, user):
    browser, first = connect_as(user, ehr)
    other = "1c6a5a3e-4d2b-4c8e-9a70-0f5b7d1e9b11"
    ehr.clear_requests()
    second = connect(browser, ehr, user=f"Patient/{other}")
    for _ in range(2):
        page = text_of(browser.get("/smart/connections/"))
        headings = re.findall(r'<h2 id="connection-(\d+)"><bdi>(.*?)</bdi>', page)
        assert headings == [
            (str(first.grant_id), "Marisol Jean Quillfeather"),
            (str(second.grant_id), "Søren Ægir Løvenskiold-Å"),
        ]
        assert f'aria-describedby="connection-{first.grant_id}"' in page
    # Each name was read once, with the token of its own patient.
    reads = [each.patient for each in ehr.requests_to("fhir")]
    assert sorted(reads) == sorted([PATIENT, other])
    browser.post("/smart/connections/", {"grant": first.grant_id})
    assert first.grant_id not in dict(listed(browser.get("/smart/connections/")))
    assert TokenGrant.objects.get(launches=first).patient_name == ""


def test_without_names_connections_are_told_apart_by_when_and_how_long(ehr, user):
    browser, first = connect_as(user, ehr)
    TokenGrant.objects.update(scope="patient/Observation.rs", patient_id="another")
    connect(browser, ehr)
    TokenGrant.objects.filter(launches=first).update(
        created_at=timezone.now() - timedelta(days=40),
        ends_at=timezone.now() + timedelta(days=200),
    )
    page = text_of(browser.get("/smart/connections/"))
    since = re.findall(r"Connected since ([^<]*)<", page)
    assert len(set(since)) == 2
    # On the hour, Django writes no minutes.
    assert re.search(r"(\d:\d\d|[ap]\.m\.|noon|midnight)", since[0])
    ends = date_format(timezone.now() + timedelta(days=200), "DATE_FORMAT")
    assert ends in page


def test_all_grants_of_a_connection_are_one_entry_and_end_together(ehr, user):
    browser, first = connect_as(user, ehr)
    second = connect(browser, ehr)
    assert TokenGrant.objects.active().count() == 2
    shown = listed(browser.get("/smart/connections/"))
    assert shown == [(second.grant_id, "active")]
    browser.post("/smart/connections/", {"grant": second.grant_id})
    assert TokenGrant.objects.active().count() == 0
    assert browser.get(f"/~{first.key}/links/").status_code == 410


def test_clinicians_and_patients_read_other_texts(ehr, user):
    browser, launch = connect_as(user, ehr)
    page = text_of(browser.get("/smart/connections/"))
    assert "access these records" in page
    assert "member of their staff" not in page
    assert launch.identity is not None
    launch.identity.fhir_user = "Practitioner/1"
    launch.identity.save()
    page = text_of(browser.get("/smart/connections/"))
    assert "access these records" not in page
    assert "member of their staff" in page
    end_at_the_ehr(launch)
    page = text_of(browser.get("/smart/connections/"))
    assert "even when you are not signed in" not in page


def test_ehr_launch_with_offline_access_is_listed_as_such(ehr, user, registration):
    registration.ehr_scope = f"{registration.ehr_scope} offline_access"
    registration.save()
    chart = open_chart(ehr)
    page = text_of(chart.browser.get("/smart/connections/"))
    assert "opened from a chart" in page


# Ended because of another patient


def test_connection_that_ended_because_of_another_patient_is_listed(ehr, user):
    browser, launch = connect_as(user, ehr)
    ehr.faults.add("refresh_other_patient")
    TokenGrant.objects.update(refresh_due_at=timezone.now(), expires_at=timezone.now())
    # By a worker: no page has said so.
    grant = TokenGrant.objects.get()
    refresh_grants([grant.pk])
    response = browser.get("/smart/connections/")
    assert listed(response) == [(grant.pk, "revoked")]
    assert AGAIN in text_of(response)
    assert TokenGrant.objects.get().last_error == "context_changed"
    # Until its owner says so.
    browser.post("/smart/connections/", {"grant": launch.grant_id})
    assert listed(browser.get("/smart/connections/")) == []


def test_connection_that_ended_because_of_another_patient_is_renewed(ehr, user):
    browser, launch = connect_as(user, ehr)
    assert launch.grant is not None
    end_changed_grant(launch.grant, now=timezone.now())
    renewed = connect(browser, ehr)
    shown = listed(browser.get("/smart/connections/"))
    assert shown == [(renewed.grant_id, "active")]


# Several at one organization


@pytest.mark.parametrize("same", ["server", "name"])
def test_organization_with_another_connection_is_not_said_to_be_disconnected(
    registration, user, browser, same
):
    other = registration if same == "server" else make_same_name()
    first = make_grant(registration, user=user, patient_id="ada")
    second = make_grant(other, user=user, patient_id="ben")
    said = [
        str(each)
        for grant in (first, second)
        for each in get_messages(
            browser.post(
                "/smart/connections/", {"grant": grant.pk}, follow=True
            ).wsgi_request
        )
    ]
    assert ["is disconnected" in each for each in said] == [False, True]
    assert all("Harbour Hospital" in each for each in said)


def make_same_name() -> ClientRegistration:
    return make_registration(
        server__slug="harbour-2",
        server__name="Harbour Hospital",
        server__base_url="https://other.example.org/fhir",
    )


def test_servers_of_one_name_are_told_apart(registration, user, browser):
    other = make_same_name()
    grants = [
        make_grant(at, user=user, patient_id=patient)
        for at, patient in (
            (registration, "ada"),
            (other, "ada"),
            (registration, "ben"),
        )
    ]
    # Those at one server are together.
    shown = [pk for pk, _ in listed(browser.get("/smart/connections/"))]
    assert shown == [grants[0].pk, grants[2].pk, grants[1].pk]
    for url in ("/smart/connections/", "/smart/login/"):
        page = text_of(browser.get(url))
        assert "Harbour Hospital (harbour)" in page
        assert "Harbour Hospital (harbour-2)" in page


@pytest.mark.parametrize("is_off", ["registration", "server"])
def test_connection_that_is_turned_off_gives_no_access(
    registration, user, browser, is_off
):
    make_grant(registration, user=user, scope="patient/Patient.rs offline_access")
    row = registration if is_off == "registration" else registration.server
    for row.is_active in (True, False):
        row.save()
        page = text_of(browser.get("/smart/connections/"))
        assert ("smart-access" in page) is row.is_active
        assert ("even when you are not signed in" in page) is row.is_active
        # The organization is not, if only the registration is.
        assert f"{registration.server} is turned off" not in page


# Signed out


def test_site_s_own_sign_in_leads_back_to_the_list(settings):
    own = "/accounts/login/?next=/smart/connections/"
    page = text_of(make_browser().get("/smart/connections/"))
    assert f'href="{own}"' in page
    assert 'href="/smart/login/"' in page
    settings.LOGIN_URL = "/smart/login/"
    assert "?next=" not in text_of(make_browser().get("/smart/connections/"))

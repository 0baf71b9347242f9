"""``connections/``: what a user has connected, and how it ends."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from django_smart.models import Launch, TokenGrant
from tests.ehr import PATIENT, get_callback, get_launch, make_browser
from tests.site.browsers import open_chart

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.site.urls"),
    pytest.mark.usefixtures("registration"),
]


AGAIN = 'href="/smart/login/?server=harbour"'


def text_of(response: Any) -> str:
    return str(response.content.decode())


def connect(browser: Client, ehr: Any, **values: Any) -> Launch:
    """Connect the records of the signed-in user."""
    started = browser.post("/smart/login/", {"server": "harbour"})
    url = ehr.authorize(started["Location"], **{"user": f"Patient/{PATIENT}", **values})
    return get_launch(get_callback(browser, url))


def test_own_connections_are_listed_and_can_be_ended(
    ehr, user, django_capture_on_commit_callbacks
):
    browser = make_browser()
    browser.force_login(user)
    launch = connect(browser, ehr)
    page = text_of(browser.get("/smart/connections/"))
    assert "Harbour Hospital" in page
    assert launch.grant is not None
    for secret in (launch.grant.access_token, launch.grant.refresh_token, PATIENT):
        assert secret not in page
    assert re.findall(r'name="grant" value="(\d+)"', page) == [str(launch.grant_id)]

    ehr.clear_requests()
    with django_capture_on_commit_callbacks(execute=True):
        response = browser.post("/smart/connections/", {"grant": launch.grant_id})
    assert response["Location"] == "/smart/connections/"
    launch.grant.refresh_from_db()
    assert launch.grant.status == "revoked"
    assert launch.grant.access_token == launch.grant.refresh_token == ""
    assert len(ehr.requests_to("revoke")) == 2
    assert browser.get(f"/~{launch.key}/links/").status_code == 410
    assert "Disconnect" not in text_of(browser.get("/smart/connections/"))
    # Again: it is over, and nothing is sent.
    again = browser.post("/smart/connections/", {"grant": launch.grant_id})
    assert again.status_code == 404
    assert len(ehr.requests_to("revoke")) == 2


def test_connections_of_others_are_neither_shown_nor_ended(
    ehr, user, django_user_model
):
    browser = make_browser()
    browser.force_login(user)
    launch = connect(browser, ehr)
    other = make_browser()
    for signed_in in (False, True):
        if signed_in:
            other.force_login(django_user_model.objects.create_user("sam"))
        assert "Harbour" not in text_of(other.get("/smart/connections/"))
        response = other.post("/smart/connections/", {"grant": launch.grant_id})
        assert response.status_code == 404
    assert launch.grant is not None
    launch.grant.refresh_from_db()
    assert launch.grant.status == "active"
    assert browser.get(f"/~{launch.key}/links/").status_code == 200


@pytest.mark.parametrize("grant", ["", "x", "-1", "0", "1.5", "9" * 40, "²", "\x00"])
def test_connections_that_cannot_be_are_not_found(user, grant):
    browser = make_browser()
    browser.force_login(user)
    response = browser.post("/smart/connections/", {"grant": grant})
    assert response.status_code == 404


def listed(response: Any) -> list[tuple[Any, str]]:
    """The connections that a page shows, and how each is doing."""
    return [(grant.pk, grant.status) for grant in response.context["grants"]]


def end_at_the_ehr(launch: Launch) -> None:
    """As the refusal of its refresh token does."""
    grant = TokenGrant.objects.filter(launches=launch)
    assert grant.end("needs_reauthorization", now=timezone.now()) == 1


def test_connection_that_ended_is_told_of_until_it_is_renewed(ehr, user):
    browser = make_browser()
    browser.force_login(user)
    ended = connect(browser, ehr)
    end_at_the_ehr(ended)
    response = browser.get("/smart/connections/")
    assert listed(response) == [(ended.grant_id, "needs_reauthorization")]
    page = text_of(response)
    assert AGAIN in page
    assert 'name="grant"' not in page

    renewed = connect(browser, ehr)
    response = browser.get("/smart/connections/")
    assert listed(response) == [(renewed.grant_id, "active")]
    page = text_of(response)
    assert page.count('name="grant"') == page.count("<h2>") == 1
    assert AGAIN not in page


@pytest.mark.parametrize("other", ["patient", "letter", "user", "visit"])
def test_connection_that_ended_is_not_renewed_by_another(
    ehr, user, django_user_model, other
):
    browser = make_browser()
    browser.force_login(user)
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
    assert text_of(response).count("<h2>") == (
        2 if other in {"patient", "letter"} else 1
    )


@pytest.mark.parametrize(
    "values",
    [{"standalone_scope": ""}, {"is_active": False}, {"server__is_active": False}],
)
def test_connection_that_nobody_can_make_here_has_no_button(
    ehr, user, registration, values
):
    browser = make_browser()
    browser.force_login(user)
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

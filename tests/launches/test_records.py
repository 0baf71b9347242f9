"""A patient who comes back: records open like charts, and no record of another."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from django_smart.grants.ending import disconnect_grant
from django_smart.launches.purge import purge
from django_smart.models import ClientRegistration, Launch, TokenGrant
from django_smart.signals import launch_completed
from django_smart.testing import EHRSimulator
from tests.ehr import (
    PATIENT,
    SITE,
    get_callback,
    get_launch,
    get_launch_cookies,
    listening,
    start_login,
)
from tests.ehr import make_browser as make_anonymous
from tests.factories import make_grant, make_identity, make_registration, make_user
from tests.site.browsers import SITE_MARKS, Chart, make_context, open_chart

pytestmark = SITE_MARKS

OTHER = "1c6a5a3e-4d2b-4c8e-9a70-0f5b7d1e9b11"
MARISOL = "Marisol Jean Quillfeather"
NAVIGATION = {"sec-fetch-dest": "document", "sec-fetch-mode": "navigate"}
CHART = "/chart/?a=1"
OPEN = "/smart/connections/open/"


def connect(browser: Client, ehr: EHRSimulator, patient: str = PATIENT) -> Launch:
    """Connect the record of a patient, who signs in at the EHR."""
    url = ehr.authorize(start_login(browser), user=f"Patient/{patient}")
    return get_launch(get_callback(browser, url))


def make_browser(user: User) -> Client:
    """A browser that has never been here, in which *user* signs in."""
    browser = make_anonymous()
    browser.force_login(user)
    return browser


@pytest.fixture
def record(ehr: EHRSimulator, user: User) -> TokenGrant:
    """What *user* connected earlier, in another browser."""
    grant = connect(make_browser(user), ehr).grant
    assert grant is not None
    ehr.clear_requests()
    return grant


def visit(browser: Client, path: str = CHART, **values: Any) -> Any:
    """Go to a page by a link."""
    return browser.get(path, headers=NAVIGATION, **values)


def get_pks(response: Any) -> list[int]:
    """The records that a page offers to open."""
    assert response.status_code == 403
    page = response.content.decode()
    return [int(pk) for pk in re.findall(r'name="grant" value="(\d+)"', page)]


def count_rows() -> tuple[int, int]:
    return Launch.objects.count(), TokenGrant.objects.count()


# One record


@pytest.mark.parametrize(
    "path", ["/chart/", "/chart/async/", "/chart/mixin/", "/chart/mixin/async/"]
)
def test_only_record_opens_by_itself_without_the_ehr(ehr, user, record, path):
    browser = make_browser(user)
    with listening(launch_completed) as completed:
        response = visit(browser, f"{path}?a=1")
    launch = Launch.objects.latest("pk")
    assert response.status_code == 302
    assert response["Location"] == f"/~{launch.key}{path}?a=1"
    assert (launch.kind, launch.grant_id, launch.user) == (
        "connection",
        record.pk,
        user,
    )
    assert [each["launch"].pk for each in completed] == [launch.pk]
    opened = browser.get(response["Location"])
    assert opened.json()["patient"] == PATIENT
    assert ehr.requests == []


def test_open_records_count_for_the_limit_of_a_browser(ehr, user, record, settings):
    settings.SMART_LAUNCHES_PER_BROWSER = 1
    connect(make_browser(user), ehr, OTHER)
    browser = make_browser(user)
    for grant in TokenGrant.objects.order_by("pk"):
        browser.post(OPEN, {"grant": grant.pk, "next": CHART})
    first, second = Launch.objects.filter(kind="connection").order_by("pk")
    assert (first.status, first.error_code) == ("ended", "too_many_open")
    assert second.status == "open"
    assert len(get_launch_cookies(browser)) == 1


def test_record_that_is_open_is_used_again(user, record):
    browser = make_browser(user)
    urls = {visit(browser)["Location"]}
    urls.add(browser.post(OPEN, {"grant": record.pk, "next": CHART})["Location"])
    assert len(urls) == 1
    assert Launch.objects.filter(kind="connection").count() == 1
    # Another browser has a launch of its own, which the first cannot use.
    other = make_browser(user)
    url = visit(other)["Location"]
    assert url not in urls
    assert browser.get(url).status_code == 403


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("get", {}),
        ("get", {"sec-fetch-dest": "empty"}),
        ("get", {"sec-fetch-dest": "iframe"}),
        ("get", {**NAVIGATION, "sec-purpose": "prefetch"}),
        ("head", NAVIGATION),
        ("post", NAVIGATION),
    ],
)
def test_record_opens_only_for_a_person_who_goes_to_the_page(
    user, record, method, headers
):
    browser, before = make_browser(user), count_rows()
    response = getattr(browser, method)(CHART, headers=headers)
    assert response.status_code == 403
    assert count_rows() == before
    if method == "post":
        assert response.context["form_was_sent"]


def test_browser_without_fetch_metadata_says_what_it_accepts(user, record):
    response = make_browser(user).get(CHART, headers={"accept": "text/html,*/*"})
    assert response.status_code == 302


def test_missing_scope_is_named_after_the_record_is_open(user, record):
    browser = make_browser(user)
    response = browser.get(visit(browser, "/chart/missing/")["Location"])
    assert response.status_code == 403
    assert response.context["missing_scopes"] == "patient/Condition.rs"
    again = response.context["retry"].url
    assert again.startswith("/smart/login/?server=harbour&next=")


# Signing in, and out


def test_anonymous_visitor_signs_in_and_comes_back(user, record):
    browser = make_anonymous()
    response = visit(browser)
    assert response["Location"] == "/accounts/login/?next=/chart/%3Fa%3D1"
    browser.force_login(user)
    assert visit(browser)["Location"].endswith(CHART)
    # The next day: what was open before does not count.
    browser.post("/smart/logout/")
    assert "/accounts/login/" in visit(browser)["Location"]
    browser.force_login(user)
    assert visit(browser)["Location"].startswith("/~")


def test_site_for_clinicians_sends_nobody_to_its_sign_in(user, record):
    ClientRegistration.objects.update(standalone_scope="")
    response = visit(make_anonymous())
    assert (response.status_code, response.context["code"]) == (403, "no_launch")


def test_sign_out_closes_the_record_and_keeps_the_connection(user, record):
    browser = make_browser(user)
    url = visit(browser)["Location"]
    browser.post("/smart/logout/")
    assert browser.get(url).status_code == 410
    browser.force_login(user)
    assert browser.get(url).status_code == 410
    record.refresh_from_db()
    assert (record.status, record.is_revocation_pending) == ("active", False)


def test_record_left_open_can_be_opened_again(user, record):
    browser = make_browser(user)
    url = visit(browser)["Location"]
    Launch.objects.update(last_used_at=timezone.now() - timedelta(days=2))
    purge()
    response = browser.get(url)
    assert response.status_code == 410
    assert response.context["retry"].url == CHART
    assert visit(browser)["Location"] != url
    assert TokenGrant.objects.get().status == "active"


# Several


@pytest.fixture
def records(ehr: EHRSimulator, user: User, record: TokenGrant) -> list[TokenGrant]:
    """Two of different patients."""
    other = connect(make_browser(user), ehr, OTHER).grant
    assert other is not None
    return [record, other]


def test_several_records_are_a_question(user, records):
    browser, before = make_browser(user), count_rows()
    response = visit(browser)
    assert get_pks(response) == [each.pk for each in records]
    assert count_rows() == before
    for grant in records:
        url = browser.post(OPEN, {"grant": grant.pk, "next": CHART})["Location"]
        assert browser.get(url).json()["patient"] == grant.patient_id
        # Without a prefix, the page asks again as soon as both are open.
    assert get_pks(visit(browser)) == [each.pk for each in records]


@pytest.mark.django_db(transaction=True)
def test_records_are_told_by_name(user, records):
    for _ in range(2):
        page = visit(make_browser(user)).content.decode()
        assert MARISOL in page
        assert "Harbour Hospital" in page
    TokenGrant.objects.update(patient_name="", scope="patient/Observation.rs")
    page = visit(make_browser(user)).content.decode()
    assert MARISOL not in page
    assert page.count("Connected since") == 2


def test_records_show_what_they_lack_and_whether_they_are_over(user, records):
    both, over = records
    TokenGrant.objects.filter(pk=over.pk).lose(error="invalid_grant")
    response = visit(make_browser(user), "/chart/missing/")
    assert get_pks(response) == []
    shown = [
        (each["grant"].pk, each["is_over"], each["missing"])
        for each in response.context["records"]
    ]
    assert shown == [
        (both.pk, False, "patient/Condition.rs"),
        (over.pk, True, "patient/Condition.rs"),
    ]
    assert (
        response.content.decode().count("/smart/login/?server=harbour&amp;next=") == 2
    )


def test_new_grant_continues_the_connection(ehr, user, record):
    TokenGrant.objects.filter(pk=record.pk).lose(error="invalid_grant")
    browser = make_browser(user)
    assert get_pks(visit(browser)) == []
    newer = connect(browser, ehr).grant
    assert newer is not None
    response = make_browser(user).post(OPEN, {"grant": record.pk, "next": CHART})
    assert Launch.objects.latest("pk").grant_id == newer.pk
    assert response.status_code == 302


def test_chart_of_a_clinician_is_asked_for_beside_records(ehr, user, record):
    chart = open_chart(ehr, patient=OTHER)
    User.objects.filter(pk=user.pk).update(password="!")
    clinician = chart.launch.user
    assert clinician is not None
    TokenGrant.objects.filter(pk=record.pk).update(user=clinician)
    browser = chart.browser
    opened = browser.post(OPEN, {"grant": record.pk, "next": CHART})["Location"]
    response = visit(browser)
    urls = {each.url for each in response.context["open_charts"]}
    assert urls == {chart.url(CHART), opened}
    assert get_pks(response) == []


# Refused


def test_what_a_clinician_opened_is_not_offered(registration, user):
    clinician = make_identity(user, fhir_user="Practitioner/1")
    for values in (
        {"kind": "ehr"},
        {"kind": "standalone", "identity": clinician},
        {"kind": "standalone"},
    ):
        make_grant(registration, user=user, patient_id=PATIENT, **values)
    browser, before = make_browser(user), count_rows()
    assert visit(browser).context["code"] == "no_launch"
    for grant in TokenGrant.objects.all():
        assert browser.post(OPEN, {"grant": grant.pk}).status_code == 404
    assert count_rows() == before


@pytest.mark.parametrize("whose", ["another user's", "nobody's", "unknown", "none"])
def test_connection_of_another_user_is_not_opened(user, record, whose):
    browser, before = make_browser(make_user("sam")), count_rows()
    if whose == "nobody's":
        TokenGrant.objects.update(user=None)
    grant = {"unknown": record.pk + 1, "none": "x"}.get(whose, record.pk)
    response = browser.post(OPEN, {"grant": grant, "next": CHART})
    assert response.status_code == 404
    assert count_rows() == before
    assert visit(browser).context["code"] == "no_launch"


def test_visitor_who_is_not_signed_in_opens_nothing(record):
    before = count_rows()
    response = make_anonymous().post(OPEN, {"grant": record.pk})
    assert response["Location"] == "/smart/connections/"
    assert count_rows() == before


@pytest.mark.parametrize("how", ["lost", "disconnected", "expired", "off"])
def test_connection_that_has_ended_is_not_opened(user, record, how):
    if how == "lost":
        TokenGrant.objects.filter(pk=record.pk).lose(error="invalid_grant")
    elif how == "disconnected":
        disconnect_grant(record)
    elif how == "expired":
        TokenGrant.objects.end("expired", now=timezone.now())
    else:
        ClientRegistration.objects.update(is_active=False)
    browser, before = make_browser(user), count_rows()
    response = browser.post(OPEN, {"grant": record.pk, "next": CHART})
    assert response.status_code == (403 if how == "lost" else 404)
    if how == "lost":
        assert response.context["code"] == "grant_lost"
        assert "next=%2Fchart" in response.context["retry"].url
    assert visit(browser).status_code == 403
    assert count_rows() == before


@pytest.mark.parametrize(
    "next_url", ["https://evil.example.org/", "//evil.example.org/", "/\\evil", ""]
)
def test_opened_record_leads_to_no_other_site(user, record, next_url, settings):
    settings.SMART_LAUNCH_REDIRECT_URL = "/links/"
    response = make_browser(user).post(OPEN, {"grant": record.pk, "next": next_url})
    key = Launch.objects.latest("pk").key
    assert response["Location"] == f"/~{key}/links/"


def test_key_of_another_browser_opens_nothing(user, record):
    url = visit(make_browser(user))["Location"]
    for browser in (make_browser(user), make_browser(make_user("sam"))):
        before = count_rows()
        assert browser.get(url).status_code == 403
        assert count_rows() == before


def test_link_from_a_page_of_get_opens_nothing(user, record):
    assert make_browser(user).get(OPEN, {"grant": record.pk}).status_code == 405


def test_without_prefix_a_second_record_waits_for_the_sign_out(
    ehr, user, records, settings
):
    settings.SMART_LAUNCH_PREFIX = ""
    browser = make_browser(user)
    first, second = records
    assert browser.post(OPEN, {"grant": first.pk, "next": CHART})["Location"] == CHART
    assert browser.get(CHART).json()["patient"] == PATIENT
    browser.post(OPEN, {"grant": second.pk, "next": CHART})
    response = visit(browser)
    assert (response.status_code, response.context["code"]) == (403, "ambiguous")
    browser.post("/smart/logout/")
    browser.force_login(user)
    disconnect_grant(first)
    assert visit(browser)["Location"] == CHART
    assert browser.get(CHART).json()["patient"] == OTHER


def test_registration_without_openid_is_a_patient_s_if_no_ehr_opens_it(ehr, user):
    registration = ClientRegistration.objects.get()
    registration.standalone_scope = "launch/patient patient/Patient.rs offline_access"
    registration.save()
    connect(make_browser(user), ehr)
    assert visit(make_browser(user)).status_code == 403
    registration.ehr_scope = ""
    registration.save()
    assert visit(make_browser(user)).status_code == 302


def test_records_of_two_hospitals_are_both_offered(registration, user, record):
    lake = make_registration(
        server__slug="lake",
        server__name="Lakeside Clinic",
        server__base_url="https://lake.example.org/fhir",
        ehr_scope="",
    )
    there = make_grant(lake, user=user, patient_id=PATIENT, kind="standalone")
    response = visit(make_browser(user))
    assert get_pks(response) == [record.pk, there.pk]
    assert "Lakeside Clinic" in response.content.decode()
    lake.server.name = record.registration.server.name
    lake.server.save()
    names = {each["name"] for each in visit(make_browser(user)).context["records"]}
    assert names == {"Harbour Hospital (harbour)", "Harbour Hospital (lake)"}


@pytest.mark.compliance("STATE-17")
def test_app_state_of_a_record_has_the_origin_of_this_site(ehr, user, record):
    browser = make_browser(user)
    visit(browser)
    opened = Launch.objects.with_related().get(kind="connection")
    smart = make_context(Chart(browser, opened, "/"), user=user)
    assert smart.app_state.system == SITE

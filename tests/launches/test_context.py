"""``request.smart``: which launch it is, or why there is none."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import SynchronousOnlyOperation
from django.utils import timezone

from django_smart.exceptions import (
    NoLaunchError,
    PrefixError,
)
from django_smart.fields import digest
from django_smart.launches.context import SMARTContext
from django_smart.models import ClientRegistration, Launch, TokenGrant
from tests.ehr import EHR_SCOPE, PATIENT, get_callback, make_browser, start_ehr_launch
from tests.errors import raises_code
from tests.factories import make_launch, make_registration
from tests.site.browsers import SITE_MARKS, Chart, make_context, open_chart

pytestmark = SITE_MARKS

OTHER_PATIENT = "1c6a5a3e-4d2b-4c8e-9a70-0f5b7d1e9b11"
STRANGE_KEY = "k" * 24
stacks = pytest.mark.parametrize("method", ["get", "aget"])


def whoami(chart: Chart, method: str = "get", **headers: str) -> dict[str, Any]:
    """What a page without the prefix learns, in *chart*'s browser."""
    plain = Chart(chart.browser, chart.launch, "/")
    path = "/whoami/" if method == "get" else "/awhoami/"
    got: dict[str, Any] = getattr(plain, method)(path, headers=headers).json()
    del got["url"]
    return got


def refused(reason: str) -> dict[str, Any]:
    """What a page learns that belongs to no launch."""
    return {"launched": False, "patient": None, "reason": reason}


LAUNCHED = {"launched": True, "patient": PATIENT, "reason": ""}


# Without a prefix


@stacks
def test_browser_that_never_launched_has_none(method):
    stranger = Chart(make_browser(), Launch(), "/")
    assert whoami(stranger, method) == refused("no_launch")


@stacks
def test_launch_that_has_only_begun_is_none(ehr, method):
    browser = make_browser()
    start_ehr_launch(browser, ehr)
    assert whoami(Chart(browser, Launch(), "/"), method) == refused("no_launch")


@stacks
def test_second_launch_makes_it_a_guess(ehr, method):
    chart = open_chart(ehr)
    open_chart(ehr, chart.browser, patient=OTHER_PATIENT)
    assert whoami(chart, method) == refused("ambiguous")


@pytest.mark.parametrize("ended", [0, 1])
def test_second_launch_makes_it_a_guess_also_when_one_has_ended(ehr, ended):
    # The page of the ended launch can still be open, with forms on it.
    chart = open_chart(ehr)
    charts = [chart, open_chart(ehr, chart.browser, patient=OTHER_PATIENT)]
    Launch.objects.filter(pk=charts[ended].launch.pk).end(
        reason="test", now=timezone.now()
    )
    assert whoami(chart) == refused("ambiguous")


@stacks
def test_second_launch_makes_it_a_guess_also_when_the_first_one_was_purged(ehr, method):
    # Its tab may be open for longer than the row is kept.
    chart = open_chart(ehr)
    assert whoami(chart, method) == LAUNCHED
    Launch.objects.all().delete()
    again = open_chart(ehr, chart.browser, patient=OTHER_PATIENT)
    assert whoami(chart, method) == refused("ambiguous")
    assert again.get("/whoami/").json()["patient"] == OTHER_PATIENT


@stacks
def test_launch_after_a_sign_out_is_a_guess(ehr, method):
    # A tab from before it, without a prefix, would show the next person's patient.
    chart = open_chart(ehr)
    chart.browser.post("/smart/logout/")
    again = open_chart(ehr, chart.browser, patient=OTHER_PATIENT)
    assert whoami(chart, method) == refused("ambiguous")
    assert again.get("/whoami/").json()["patient"] == OTHER_PATIENT


@stacks
def test_launch_after_a_change_of_user_is_a_guess(ehr, registration, method):
    registration.user_switch = "switch"
    registration.save()
    chart = open_chart(ehr)
    again = open_chart(
        ehr, chart.browser, patient=OTHER_PATIENT, user=list(ehr.users)[1]
    )
    assert again.launch.user_id != chart.launch.user_id
    assert whoami(chart, method) == refused("ambiguous")


def test_site_without_prefixes_uses_one_launch_until_then(ehr, settings):
    # A tab that still shows the first patient would write to the second one.
    settings.SMART_LAUNCH_PREFIX = ""
    chart = open_chart(ehr)
    Launch.objects.end(reason="idle", now=timezone.now())
    open_chart(ehr, chart.browser, patient=OTHER_PATIENT)
    assert whoami(chart) == refused("ambiguous")
    # Nothing but signing out helps, and that is what the page offers.
    page = chart.browser.get("/chart/")
    assert (page.context["code"], page.context["retry"]) == ("ambiguous", None)
    assert 'action="/smart/logout/"' in page.text
    chart.browser.post("/smart/logout/")
    open_chart(ehr, chart.browser, patient=OTHER_PATIENT)
    assert chart.browser.get("/whoami/").json()["patient"] == OTHER_PATIENT


def test_site_without_prefixes_can_be_used_after_a_change_of_user(
    ehr, registration, settings
):
    settings.SMART_LAUNCH_PREFIX = ""
    registration.user_switch = "switch"
    registration.save()
    chart = open_chart(ehr)
    open_chart(ehr, chart.browser, patient=OTHER_PATIENT, user=list(ehr.users)[1])
    assert chart.browser.get("/whoami/").json()["patient"] == OTHER_PATIENT


def test_launch_that_did_not_succeed_is_not_counted(ehr):
    chart = open_chart(ehr)
    denied = ehr.authorize(start_ehr_launch(chart.browser, ehr), approve=False)
    assert get_callback(chart.browser, denied).status_code == 403
    assert whoami(chart) == LAUNCHED
    start_ehr_launch(chart.browser, ehr, patient=OTHER_PATIENT)
    assert Launch.objects.count() == 3
    assert whoami(chart) == LAUNCHED


@stacks
def test_ended_launch_is_not_used(ehr, method):
    chart = open_chart(ehr)
    Launch.objects.end(reason="test", now=timezone.now())
    assert whoami(chart, method) == refused("no_launch")


@stacks
def test_launch_of_another_user_is_not_used(ehr, method, django_user_model):
    chart = open_chart(ehr)
    other = make_browser()
    other.force_login(django_user_model.objects.create_user("sam"))
    chart.browser.cookies["sessionid"] = other.cookies["sessionid"].value
    assert whoami(chart, method) == refused("no_launch")
    del chart.browser.cookies["sessionid"]
    assert whoami(chart, method) == refused("no_launch")


@pytest.mark.parametrize(
    "path",
    [
        f"/~{STRANGE_KEY}/",
        f"/~{STRANGE_KEY}",
        f"/~{STRANGE_KEY}/a/?b=1",
        f"/%7E{STRANGE_KEY}/form/",
        f"/%7e{STRANGE_KEY.replace('k', '%6B')}/form/",
    ],
)
@stacks
def test_page_of_another_launch_is_not_served_this_one(ehr, method, path):
    # A form or link without the prefix, on a page that was opened with another chart.
    chart = open_chart(ehr)
    referer = f"https://app.example.org{path}"
    assert whoami(chart, method, referer=referer) == refused("ambiguous")


@pytest.mark.parametrize(
    "referer",
    [
        "",
        "https://app.example.org/",
        "https://app.example.org/chart/?next=/~x",
        "https://ehr.example.org/chart",
        f"https://app.example.org/a/~{STRANGE_KEY}/",
        "https://[",
        "::",
        "\xff",
    ],
)
def test_other_referers_change_nothing(ehr, referer):
    chart = open_chart(ehr)
    assert whoami(chart, referer=referer) == LAUNCHED


def test_page_of_the_launch_itself_may_forget_the_prefix(ehr):
    chart = open_chart(ehr)
    referer = f"https://app.example.org{chart.url('/form/')}"
    assert whoami(chart, referer=referer) == LAUNCHED


# With a prefix


def test_every_refusal_of_a_key_has_a_code_and_a_reason(ehr, django_user_model):
    chart = open_chart(ehr)
    user, key = chart.launch.user, chart.launch.key
    context = make_context(chart, user=user, key=key)
    context.check_prefix()
    assert context
    assert (context.launch, context.reason) == (chart.launch, "")

    unknown = make_context(chart, user=user, key="u" * 24)
    with pytest.raises(PrefixError) as caught:
        unknown.check_prefix()
    assert caught.value.code == "launch_unknown"
    assert (bool(unknown), unknown.reason) == (False, "launch_unknown")

    sam = django_user_model.objects.create_user("sam")
    for other, code in ((AnonymousUser(), "signed_out"), (sam, "foreign")):
        refused = make_context(chart, user=other, key=key)
        with pytest.raises(PrefixError) as caught:
            refused.check_prefix()
        assert caught.value.code == f"launch_{code}"
        assert (bool(refused), refused.reason) == (False, f"launch_{code}")

    Launch.objects.end(reason="test", now=timezone.now())
    ended = make_context(chart, user=user, key=key)
    with raises_code("launch_ended"):
        ended.check_prefix()
    assert (bool(ended), ended.reason) == (False, "launch_ended")


def test_site_without_users_can_launch(ehr):
    ClientRegistration.objects.update(ehr_scope="launch patient/Patient.rs")
    chart = open_chart(ehr)
    context = make_context(chart, user=None, key=chart.launch.key)
    del context._request.user
    assert context.patient_id == PATIENT


def test_launch_is_found_once(ehr, django_assert_num_queries):
    chart = open_chart(ehr)
    context = make_context(chart, user=chart.launch.user, key=chart.launch.key)
    with django_assert_num_queries(1):
        assert context
        assert context.grant == chart.launch.grant
        assert context.server == chart.launch.registration.server
        assert context.patient_id == PATIENT
        assert context.scopes.covers("patient/Patient.r")
        _ = context.fhir


def test_context_is_lazy(ehr, django_assert_num_queries):
    chart = open_chart(ehr)
    user = chart.launch.user
    with django_assert_num_queries(0):
        repr(make_context(chart, user=user))


def test_representation_shows_no_key(ehr):
    chart = open_chart(ehr)
    context = make_context(chart, user=chart.launch.user, key=chart.launch.key)
    assert chart.launch.key not in repr(context)
    assert "prefixed" in repr(context)


# In asynchronous code


def test_asynchronous_code_waits_first(ehr):
    chart = open_chart(ehr)

    async def use(context: SMARTContext) -> str | None:
        with pytest.raises(SynchronousOnlyOperation, match="asmart"):
            bool(context)
        assert await context.aload() is context
        assert context.grant == chart.launch.grant
        return context.patient_id

    assert async_to_sync(use)(make_context(chart, user=chart.launch.user)) == PATIENT


# What the launch says


@pytest.mark.compliance("RESP-11", "RESP-12", "RESP-14", "RESP-17")
def test_context_tells_what_the_ehr_told(ehr):
    encounter = next(iter(ehr.data["Encounter"]))
    items = [{"reference": "ImagingStudy/1"}]
    chart = open_chart(
        ehr,
        encounter=encounter,
        intent="reconcile-medications",
        tenant="north",
        need_patient_banner=False,
        fhir_context=items,
        smart_style_url="https://ehr.example.org/style.json",
    )
    context = make_context(chart, user=chart.launch.user)
    assert context.patient_id == PATIENT
    assert context.encounter_id == encounter
    assert context.intent == "reconcile-medications"
    assert context.tenant == "north"
    assert context.need_patient_banner is False
    assert context.context["smart_style_url"] == "https://ehr.example.org/style.json"
    assert [item.reference for item in context.fhir_context] == ["ImagingStudy/1"]
    assert context.fhir_user == next(iter(ehr.users))
    assert context.context["fhirContext"] == items
    assert set(context.context) & {"access_token", "refresh_token", "id_token"} == set()
    assert set(EHR_SCOPE.split()) <= set(str(context.scopes).split())


def test_no_launch_says_nothing():
    context = make_context(Chart(make_browser(), Launch(), "/"), user=AnonymousUser())
    assert not context
    assert context.reason == "no_launch"
    for name in (
        *("launch", "grant", "server", "patient_id", "encounter_id", "fhir_user"),
        *("intent", "tenant", "need_patient_banner", "style"),
    ):
        assert getattr(context, name) is None
    assert context.context == {}
    assert context.fhir_context == ()
    assert str(context.scopes) == ""
    with pytest.raises(NoLaunchError):
        _ = context.fhir


def test_launch_whose_grant_was_deleted_has_no_client(ehr):
    chart = open_chart(ehr)
    TokenGrant.objects.all().delete()
    context = make_context(chart, user=chart.launch.user)
    assert context
    assert str(context.scopes) == ""
    with pytest.raises(NoLaunchError):
        _ = context.fhir


def test_registrations_keep_their_launches_apart(ehr):
    other = make_registration(
        server__slug="lake", server__base_url="https://lake.example.org/fhir"
    )
    chart = open_chart(ehr)
    make_launch(other, browser_digest=digest("another browser"))
    assert whoami(chart) == LAUNCHED

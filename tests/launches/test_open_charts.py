"""The page that asks which chart is meant: names, failures, and nothing guessed."""

from __future__ import annotations

import re
import threading
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from django_smart.models import ClientRegistration, Launch, TokenGrant
from tests.answers import answer
from tests.ehr import PATIENT, connect
from tests.site.browsers import Chart, open_chart

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.site.urls"),
    pytest.mark.usefixtures("registration"),
]

MARISOL = "Marisol Jean Quillfeather"
OTHER = "1c6a5a3e-4d2b-4c8e-9a70-0f5b7d1e9b11"
SOREN = "Søren Ægir Løvenskiold-Å"
stacks = pytest.mark.parametrize("method", ["get", "aget"])


def open_two(ehr: Any, **values: Any) -> tuple[Chart, Chart, Chart]:
    """Charts of two patients in one browser, and the browser without a prefix."""
    one = open_chart(ehr, **values)
    two = open_chart(ehr, one.browser, patient=OTHER, **values)
    ehr.clear_requests()
    return one, two, Chart(one.browser, one.launch, "/")


def read_choices(response: Any) -> dict[str, str]:
    """The words of each choice, by where it leads."""
    assert response.status_code == 403
    found = re.findall(
        r'<a class="smart-chart" href="([^"]+)">(.*?)</a>',
        response.content.decode(),
        re.DOTALL,
    )
    return {
        unescape(url): " ".join(unescape(re.sub(r"<[^>]+>", " ", words)).split())
        for url, words in found
    }


@stacks
@pytest.mark.parametrize("path", ["/chart/", "/chart/mixin/", "/chart/mixin/async/"])
def test_open_charts_are_told_by_name_and_birth(ehr, method, path):
    one, two, plain = open_two(ehr)
    choices = read_choices(getattr(plain, method)(f"{path}?a=1"))
    assert set(choices) == {one.url(f"{path}?a=1"), two.url(f"{path}?a=1")}
    assert choices[one.url(f"{path}?a=1")].startswith(
        f"{MARISOL} born April 19, 1967 Harbour Hospital "
    )
    assert choices[two.url(f"{path}?a=1")].startswith(SOREN)
    # Each name was read with the token of its own patient.
    assert {(each.path.split("/")[-1], each.patient) for each in ehr.requests} == {
        (PATIENT, PATIENT),
        (OTHER, OTHER),
    }


def test_charts_of_this_site_are_told_from_those_of_the_ehr(ehr):
    one = open_chart(ehr)
    two = connect(one.browser, ehr, patient=OTHER, user=f"Patient/{OTHER}")
    # A connection belongs to who was signed in; so does the chart.
    assert two.user_id == one.launch.user_id
    response = one.browser.get("/chart/")
    kinds = {each.url: each.kind for each in response.context["open_charts"]}
    assert kinds == {one.url("/chart/"): "ehr", f"/~{two.key}/chart/": "standalone"}
    choices = read_choices(response)
    words = {
        choice.split("Harbour Hospital")[1].split(",")[0] for choice in choices.values()
    }
    assert len(words) == 2


def test_older_charts_show_the_day_as_well(ehr, settings):
    settings.SMART_LAUNCH_LIFETIME = 7 * 24 * 3600
    _one, two, plain = open_two(ehr)
    Launch.objects.filter(pk=two.launch.pk).update(
        completed_at=timezone.now() - timedelta(days=1)
    )
    words = read_choices(plain.get("/chart/"))[two.url("/chart/")]
    assert re.search(r", \d\d/\d\d/\d{4}", words)


@stacks
def test_each_chart_has_its_own_failure(ehr, method):
    one, two, plain = open_two(ehr)
    ehr.revoke_grant(token_of(two))
    choices = read_choices(getattr(plain, method)("/chart/"))
    assert choices[one.url("/chart/")].startswith(MARISOL)
    assert choices[two.url("/chart/")].startswith("Harbour Hospital ")
    assert "Søren" not in str(choices)


@pytest.mark.parametrize("scope", ["launch openid patient/Observation.rs"])
def test_names_that_may_not_be_read_are_not_shown(ehr, scope):
    ClientRegistration.objects.update(ehr_scope=scope)
    _one, _two, plain = open_two(ehr)
    choices = read_choices(plain.get("/chart/"))
    assert len(choices) == 2
    assert all(words.startswith("Harbour Hospital") for words in choices.values())


def test_chart_without_a_patient_is_asked_no_name(ehr):
    ClientRegistration.objects.update(ehr_scope="launch openid user/Patient.rs")
    one = open_chart(ehr)
    two = open_chart(ehr, one.browser, patient=None)
    ehr.clear_requests()
    choices = read_choices(one.browser.get("/chart/"))
    assert choices[two.url("/chart/")].startswith("Harbour Hospital")
    assert len(ehr.requests) == 1


def test_answer_about_somebody_else_gives_no_name(ehr):
    one, two, plain = open_two(ehr)
    ehr.data["Patient"][OTHER] = ehr.data["Patient"][PATIENT]
    choices = read_choices(plain.get("/chart/"))
    assert choices[one.url("/chart/")].startswith(MARISOL)
    assert choices[two.url("/chart/")].startswith("Harbour Hospital")


def test_names_are_fetched_at_the_same_time(ehr):
    one, two, plain = open_two(ehr)
    together = threading.Barrier(2)
    ehr.on_request = lambda request: together.wait(60) and None
    choices = read_choices(plain.get("/chart/"))
    assert choices[one.url("/chart/")].startswith(MARISOL)
    assert choices[two.url("/chart/")].startswith(SOREN)


def test_nobody_waits_for_a_slow_name(ehr):
    one, two, plain = open_two(ehr)
    released = threading.Event()

    def hold(request: Any) -> None:
        if request.patient == OTHER:
            released.wait(60)

    ehr.on_request = hold
    try:
        choices = read_choices(plain.get("/chart/"))
        assert not released.is_set()
    finally:
        released.set()
    assert choices[one.url("/chart/")].startswith(MARISOL)
    assert choices[two.url("/chart/")].startswith("Harbour Hospital")


def test_ended_tokens_are_refreshed_for_the_name(ehr):
    ClientRegistration.objects.update(
        ehr_scope="launch openid patient/Patient.rs online_access"
    )
    one, two, plain = open_two(ehr)
    expire(ehr)
    choices = read_choices(plain.get("/chart/"))
    assert choices[one.url("/chart/")].startswith(MARISOL)
    assert choices[two.url("/chart/")].startswith(SOREN)


def test_within_a_transaction_of_sqlite_no_token_is_refreshed(ehr, settings):
    one, _two, plain = open_two(ehr)
    expire(ehr)
    if settings.DATABASES["default"]["ENGINE"] != "django.db.backends.sqlite3":
        pytest.skip("the other databases can")
    with transaction.atomic():
        choices = read_choices(plain.get("/chart/"))
    assert choices[one.url("/chart/")].startswith("Harbour Hospital")
    assert ehr.requests == []


def test_launch_that_its_refresh_ended_is_not_offered(ehr):
    ClientRegistration.objects.update(
        ehr_scope="launch openid patient/Patient.rs online_access"
    )
    one, _two, plain = open_two(ehr)
    expire(ehr)
    # For the other launch this is another patient.
    answer(ehr, "/auth/token", patient=PATIENT)
    choices = read_choices(plain.get("/chart/"))
    assert list(choices) == [one.url("/chart/")]


def test_scripts_get_no_names(ehr):
    _one, _two, plain = open_two(ehr)
    response = plain.get("/chart/", headers={"sec-fetch-dest": "empty"})
    assert len(read_choices(response)) == 2
    assert ehr.requests == []


@pytest.mark.parametrize(
    ("referer", "expected"),
    [
        ("https://app.example.org/~{key}/form/?a=1#b", "/form/?a=1"),
        ("https://app.example.org/form/", "/form/"),
        ("https://evil.example/form/", "/"),
        ("", "/"),
    ],
)
def test_form_without_prefix_is_not_taken_for_any_chart(ehr, referer, expected):
    one, two, plain = open_two(ehr)
    headers = {"referer": referer.format(key=two.launch.key)} if referer else {}
    response = plain.post("/chart/", headers=headers)
    assert set(read_choices(response)) == {one.url(expected), two.url(expected)}
    assert "<p><strong>" in response.content.decode()
    assert "<p><strong>" not in plain.get("/chart/").content.decode()


def test_nobody_else_s_name_is_read(ehr, django_user_model):
    _one, _two, plain = open_two(ehr)
    plain.browser.force_login(django_user_model.objects.create_user("sam"))
    response = plain.get("/chart/")
    assert read_choices(response) == {}
    assert ehr.requests == []


def token_of(chart: Chart) -> str:
    """The access token of a chart's launch."""
    assert chart.launch.grant is not None
    return chart.launch.grant.access_token


def expire(ehr: Any) -> None:
    """Let every token end, there and here."""
    ehr.expire_access_tokens()
    TokenGrant.objects.update(expires_at=timezone.now() - timedelta(minutes=5))

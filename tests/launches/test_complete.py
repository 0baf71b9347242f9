"""The callback: one use of one state in one browser, and what is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit

import pytest
import time_machine
from django.contrib.auth import get_user_model
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from django_smart import transport
from django_smart.clients import fhir_client_for
from django_smart.models import ClientRegistration, Identity, Launch, TokenGrant
from django_smart.signals import launch_failed
from django_smart.testing import EHRSimulator
from tests.answers import answer
from tests.ehr import (
    CLIENT_ID,
    PATIENT,
    REDIRECT_URI,
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
from tests.threads import run_together

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.launch_urls"),
    pytest.mark.usefixtures("registration"),
]

User: Any = get_user_model()
OPENID_URI = "http://openid.net/specs/openid-connect-core-1_0#"
PLAIN_SCOPE = "launch/patient patient/Patient.rs offline_access"


# State


@pytest.mark.compliance("CALL-01", "CALL-03", "CALL-04")
def test_state_is_used_once_and_the_finished_launch_is_left_alone(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    callback = ehr.authorize(start_ehr_launch(browser, ehr))
    finished = get_launch(get_callback(browser, callback))
    again = get_callback(browser, callback)
    assert (again.status_code, get_code(again)) == (409, "state_used")
    assert again.context["nothing_done"] is False
    assert len(ehr.requests_to("token")) == 1
    finished.refresh_from_db()
    assert (finished.status, finished.error_code) == ("open", "")
    assert open_page(browser, finished) == 200
    # The EHR takes back what a code brought that is shown twice: nobody showed it.
    assert finished.grant is not None
    assert fhir_client_for(grant=finished.grant).read("Patient", PATIENT)


def test_reload_while_the_ehr_is_slow_is_not_told_that_the_launch_is_complete(
    ehr: EHRSimulator,
) -> None:
    browser, pages = make_browser(), []
    callback = ehr.authorize(start_login(browser))

    def reload(respond: Any, request: Any) -> Any:
        ehr.interceptors.clear()
        pages.append(get_callback(browser, callback))
        return respond(request)

    ehr.interceptors.append(reload)
    assert get_launch(get_callback(browser, callback)).status == "open"
    (page,) = pages
    assert (page.status_code, get_code(page)) == (409, "state_used")
    assert page.context["nothing_done"] is False
    assert page.context["retry"].url == "/smart/login/?server=harbour"


@pytest.mark.compliance("CALL-03")
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "POST"])
def test_looking_at_the_callback_does_not_use_the_state(
    ehr: EHRSimulator, method: str
) -> None:
    browser = make_browser()
    callback = ehr.authorize(start_ehr_launch(browser, ehr))
    parts = urlsplit(callback)
    response = browser.generic(method, f"{parts.path}?{parts.query}")
    assert response.status_code == (200 if method == "OPTIONS" else 405)
    assert Launch.objects.get().status == "pending"
    assert not ehr.requests_to("token")
    assert get_launch(get_callback(browser, callback)).status == "open"


@pytest.mark.compliance("CALL-01")
@pytest.mark.parametrize(
    "query",
    [
        {},
        {"code": "x"},
        {"code": "x", "state": ""},
        {"code": "x", "state": ["a", "b"]},
        {"code": "x", "state": "made-up"},
        {"code": "x", "state": "s" * 100_000},
        {"code": "x", "state": "\0"},
        {"error": "access_denied", "state": "made-up"},
    ],
)
def test_callback_without_a_known_state_is_refused(
    ehr: EHRSimulator, query: dict[str, Any]
) -> None:
    browser = make_browser()
    start_ehr_launch(browser, ehr)
    response = browser.get("/smart/callback/", query)
    assert response.status_code == 400
    assert get_code(response) == "state_unknown"
    assert Launch.objects.get().status == "pending"
    assert not ehr.requests_to("token")


@pytest.mark.usefixtures("registration")
def test_server_does_not_fill_the_log_with_a_broken_context(
    ehr: EHRSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "django_smart.launches")
    answer(ehr, "/auth/token", fhirContext=[1] * 10_000)
    launch(make_browser(), ehr)
    assert caplog.text.count("context_ignored") == 20


@pytest.mark.compliance("CALL-03")
def test_expired_state_is_rejected(ehr: EHRSimulator) -> None:
    browser = make_browser()
    with time_machine.travel(timezone.now(), tick=False) as clock:
        url = start_ehr_launch(browser, ehr)
        clock.shift(901)
        query = {"code": "x", "state": parse_qs(urlsplit(url).query)["state"][0]}
        response = browser.get("/smart/callback/", query)
        again = browser.get("/smart/callback/", query)
    for each in (response, again):
        assert (each.status_code, get_code(each)) == (400, "state_expired")
    row = Launch.objects.get()
    assert (row.status, row.error_code) == ("failed", "state_expired")
    assert not ehr.requests_to("token")


@pytest.mark.compliance("CALL-02", "AUTH-07")
@pytest.mark.parametrize("has_cookie", [True, False])
def test_state_of_another_browser_is_rejected(
    ehr: EHRSimulator, has_cookie: bool
) -> None:
    victim, attacker = make_browser(), make_browser()
    if has_cookie:
        start_ehr_launch(victim, ehr)
    callback = ehr.authorize(start_ehr_launch(attacker, ehr))
    response = get_callback(victim, callback)
    assert (response.status_code, get_code(response)) == (403, "state_foreign")
    row = Launch.objects.order_by("pk").last()
    assert row is not None
    assert (row.status, row.error_code) == ("failed", "state_foreign")
    assert not ehr.requests_to("token")
    assert "_auth_user_id" not in victim.session


@pytest.mark.compliance("CALL-09")
def test_code_goes_to_the_server_of_its_state(ehr: EHRSimulator) -> None:
    other = EHRSimulator(base_url="https://other.example.org/r4")
    register_at(other, client_secret="another secret")
    make_registration(
        server__slug="other",
        server__base_url=other.base_url,
        client_secret="another secret",
    )
    browser = make_browser()
    with transport.mounted("https://other.example.org", other.adapter()):
        first = ehr.authorize(start_ehr_launch(browser, ehr))
        launch(browser, other)
        # The code of one server, with the state of the launch at the other.
        mixed = other.authorize(start_ehr_launch(browser, other))
        query = dict(parse_qsl(urlsplit(mixed).query))
        query["state"] = parse_qs(urlsplit(first).query)["state"][0]
        response = browser.get("/smart/callback/", query)
    assert (response.status_code, get_code(response)) == (400, "issuer_mismatch")
    assert not ehr.requests_to("token")
    assert len(other.requests_to("token")) == 1


@pytest.mark.compliance("CALL-04")
@pytest.mark.parametrize(
    "extra",
    [
        {"code": ""},
        {"code": ["a", "b"]},
        {"code": "x", "error": "access_denied"},
        {"code": "x" * 100_000},
        {"code": "x\0y"},
        {"error": ""},
        {"error": "no\nsuch"},
        {"code": "x", "unknown": "y" * 100_000},
        {},
    ],
)
def test_malformed_callback_fails_its_launch(
    ehr: EHRSimulator, extra: dict[str, Any]
) -> None:
    browser = make_browser()
    url = start_ehr_launch(browser, ehr)
    state = parse_qs(urlsplit(url).query)["state"][0]
    query = urlencode({"state": state, "iss": ehr.issuer, **extra}, doseq=True)
    response = browser.get(f"/smart/callback/?{query}")
    assert response.status_code == 400
    assert get_code(response) == "authorization_response_malformed"
    row = Launch.objects.get()
    assert (row.status, row.error_code) == (
        "failed",
        "authorization_response_malformed",
    )
    assert not ehr.requests_to("token")


_NAMES = st.sampled_from(
    ["state", "code", "error", "error_description", "error_uri", "iss", "x"]
)
_VALUES = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["\0", "a\x1fb", "'; DROP TABLE x; --", "<script>", "v" * 100_000]),
)


@pytest.mark.compliance("CALL-07")
@given(pairs=st.lists(st.tuples(_NAMES, _VALUES), max_size=6), with_state=st.booleans())
def test_no_value_breaks_the_callback(
    ehr: EHRSimulator, pairs: list[tuple[str, str]], with_state: bool
) -> None:
    browser = make_browser()
    if with_state:
        url = start_login(browser)
        pairs = [("state", parse_qs(urlsplit(url).query)["state"][0]), *pairs]
    response = browser.get(f"/smart/callback/?{urlencode(pairs)}")
    assert 400 <= response.status_code < 500
    assert "<script>" not in response.content.decode().replace("<script src=", "")
    assert not User.objects.exists()
    assert not TokenGrant.objects.active().exists()


@pytest.mark.compliance("CALL-03")
@pytest.mark.django_db(transaction=True)
def test_of_callbacks_in_parallel_with_one_state_one_wins(ehr: EHRSimulator) -> None:
    browser = make_browser()
    callback = ehr.authorize(start_ehr_launch(browser, ehr))

    def call() -> int:
        twin = make_browser()
        twin.cookies.update(browser.cookies)
        return int(get_callback(twin, callback).status_code)

    assert sorted(run_together(*[call] * 4)) == [302, 409, 409, 409]
    assert len(ehr.requests_to("token")) == 1
    row = Launch.objects.get()
    assert (row.status, row.error_code) == ("open", "")
    assert User.objects.count() == Identity.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_callbacks_in_parallel_of_one_new_identity_make_one_user(
    ehr: EHRSimulator,
) -> None:
    browsers = [make_browser() for _ in range(3)]
    callbacks = [ehr.authorize(start_ehr_launch(browser, ehr)) for browser in browsers]

    def call(number: int) -> Callable[[], int]:
        return lambda: int(
            get_callback(browsers[number], callbacks[number]).status_code
        )

    assert run_together(*map(call, range(3))) == [302, 302, 302]
    assert User.objects.count() == Identity.objects.count() == 1
    assert set(Launch.objects.values_list("status", flat=True)) == {"open"}


# Switched off meanwhile


@pytest.mark.parametrize("is_connection", [False, True])
@pytest.mark.parametrize("what", ["registration", "server", None])
def test_launch_of_what_was_switched_off_meanwhile_is_not_completed(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    what: str | None,
    *,
    is_connection: bool,
) -> None:
    browser = make_browser()
    start = start_login(browser) if is_connection else start_ehr_launch(browser, ehr)
    callback = ehr.authorize(start)
    if what is not None:
        row: Any = registration if what == "registration" else registration.server
        row.is_active = False
        row.save()
    response = get_callback(browser, callback)
    if what is None:
        assert get_launch(response).user == User.objects.get()
        return
    assert (response.status_code, get_code(response)) == (403, "registration_inactive")
    assert b"Harbour Hospital" in response.content
    # A button that leads to the same refusal would be none.
    assert b"Connect again" not in response.content
    assert not ehr.requests_to("token")
    failed = Launch.objects.get()
    assert (failed.status, failed.error_code) == ("failed", "registration_inactive")
    assert "_auth_user_id" not in browser.session
    assert not TokenGrant.objects.active().exists()
    assert not User.objects.exists()
    # On again, the state is used all the same, but nothing was completed with it.
    row.is_active = True
    row.save()
    with listening(launch_failed) as reported:
        again = get_callback(browser, callback)
    assert (again.status_code, get_code(again)) == (409, "state_failed")
    assert again.context["nothing_done"] is True
    assert [each["launch"] for each in reported] == [None]


@pytest.mark.parametrize("what", ["registration", "server"])
def test_what_is_open_goes_on_when_it_is_switched_off(
    ehr: EHRSimulator, registration: ClientRegistration, what: str
) -> None:
    browser = make_browser()
    opened = connect(browser, ehr)
    row: Any = registration if what == "registration" else registration.server
    row.is_active = False
    row.save()
    assert open_page(browser, opened) == 200
    assert opened.grant is not None
    grant = TokenGrant.objects.get(pk=opened.grant.pk)
    assert fhir_client_for(grant=grant).read("Patient", grant.patient_id)
    launch_id = ehr.create_launch(CLIENT_ID, patient=PATIENT)
    response = browser.get("/smart/launch/", {"iss": ehr.base_url, "launch": launch_id})
    assert get_code(response) == "registration_inactive"


# What is stored


@pytest.mark.compliance("RESP-03", "RESP-10", "RESP-11", "RESP-12")
def test_context_and_granted_scope_are_stored_as_they_came(ehr: EHRSimulator) -> None:
    browser = make_browser()
    encounter = next(
        resource["id"]
        for resource in ehr.data["Encounter"].values()
        if resource["subject"]["reference"] == f"Patient/{PATIENT}"
    )
    url = start_ehr_launch(
        browser,
        ehr,
        encounter=encounter,
        need_patient_banner=False,
        intent="reconcile-medications",
        tenant="harbour-7",
    )
    granted = "launch openid fhirUser patient/Patient.r"
    finished = get_launch(get_callback(browser, ehr.authorize(url, scope=granted)))
    assert finished.context["need_patient_banner"] is False
    assert finished.context["intent"] == "reconcile-medications"
    assert finished.context["tenant"] == "harbour-7"
    assert not {"access_token", "refresh_token", "id_token"} & set(finished.context)
    grant = finished.grant
    assert grant is not None
    assert (grant.patient_id, grant.encounter_id) == (PATIENT, encounter)
    assert (grant.scope, grant.scope_granted) == (granted, granted)
    assert grant.is_offline is False
    assert grant.refresh_due_at is None
    lifetime = grant.expires_at - grant.received_at
    assert timedelta(0) <= timedelta(hours=1) - lifetime < timedelta(seconds=60)
    assert finished.code_verifier == ""


@pytest.mark.compliance("REF-01", "REF-02")
def test_grant_is_offline_only_if_it_was_asked_and_a_refresh_token_came(
    ehr: EHRSimulator,
) -> None:
    ehr.echo_offline_access = False
    asked = connect(make_browser(), ehr).grant
    assert asked is not None
    assert asked.is_offline is True
    assert asked.refresh_token
    due_at: Any = asked.refresh_due_at
    assert asked.received_at < due_at < asked.expires_at
    granted = "openid fhirUser launch/patient patient/Patient.rs"
    refused = connect(make_browser(), ehr, scope=granted).grant
    assert refused is not None
    assert (refused.is_offline, refused.refresh_token) == (False, "")


@pytest.mark.compliance("SCOPE-18")
def test_scopes_in_uri_form_work_as_their_short_forms(ehr: EHRSimulator) -> None:
    smart, openid = "http://smarthealthit.org/fhir/scopes/", OPENID_URI
    asked = "{1}openid fhirUser {0}launch {0}patient/Patient.rs {0}offline_access"
    ClientRegistration.objects.update(ehr_scope=asked.format(smart, openid))
    browser = make_browser()
    url = start_ehr_launch(browser, ehr)
    query = dict(parse_qsl(urlsplit(url).query))
    assert query["scope"] == asked.format(smart, openid)
    assert query["nonce"]
    # The simulated EHR knows only the short forms.
    for prefix in (smart, openid):
        url = url.replace(quote(prefix, safe=""), "")
    finished = get_launch(get_callback(browser, ehr.authorize(url)))
    assert finished.identity is not None
    assert finished.grant is not None
    assert finished.grant.is_offline
    assert finished.missing_scope == ""


@pytest.mark.compliance("RESP-19")
def test_patient_scope_without_a_patient_is_refused(ehr: EHRSimulator) -> None:
    browser = make_browser()
    url = start_ehr_launch(browser, ehr, patient=None)
    response = get_callback(browser, ehr.authorize(url))
    assert (response.status_code, get_code(response)) == (502, "patient_missing")
    assert not TokenGrant.objects.active().exists()
    # Without such a scope it is a launch outside of a chart.
    ClientRegistration.objects.update(ehr_scope="launch openid fhirUser user/*.rs")
    finished = launch(browser, ehr, patient=None)
    assert finished.grant is not None
    assert finished.grant.patient_id == ""


@pytest.mark.compliance("RESP-19")
@pytest.mark.parametrize(
    "granted",
    [
        "PATIENT/PATIENT.READ",
        "http://smarthealthit.org/fhir/scopes/patient/Patient.rs",
        "patient/Patient.unknown",
    ],
)
def test_patient_scope_without_a_patient_is_refused_in_any_spelling(
    ehr: EHRSimulator, granted: str
) -> None:
    browser = make_browser()
    url = start_ehr_launch(browser, ehr, patient=None)
    answer(ehr, "/token", scope=granted)
    assert get_code(get_callback(browser, ehr.authorize(url))) == "patient_missing"


@pytest.mark.parametrize(
    ("values", "choices", "code", "error"),
    [
        ({"client_secret": "wrong"}, {}, "token_refused", "invalid_client"),
        ({}, {"error": "invalid_scope"}, "authorization_refused", "invalid_scope"),
    ],
)
def test_log_has_the_error_of_the_ehr(
    ehr: EHRSimulator,
    caplog: pytest.LogCaptureFixture,
    values: dict[str, str],
    choices: dict[str, str],
    code: str,
    error: str,
) -> None:
    ClientRegistration.objects.update(**values)
    browser = make_browser()
    callback = ehr.authorize(start_login(browser))
    if choices:
        query = {**dict(parse_qsl(urlsplit(callback).query)), **choices}
        del query["code"]
        callback = f"{REDIRECT_URI}?{urlencode(query)}"
    assert get_code(get_callback(browser, callback)) == code
    (line,) = [each for each in caplog.messages if each.startswith("Launch ")]
    assert code in line
    assert error in line


@pytest.mark.compliance("EHRL-07")
@pytest.mark.parametrize("hint", ["", "launch/patient"])
def test_launch_works_without_the_context_it_hinted_at(
    ehr: EHRSimulator, hint: str
) -> None:
    scope = "launch launch/patient launch/encounter launch/list user/Patient.rs"
    ClientRegistration.objects.update(
        ehr_scope=scope, standalone_scope="launch/patient user/*.rs"
    )
    browser = make_browser()
    url = start_ehr_launch(browser, ehr, patient=None)
    granted = f"launch launch/encounter user/Patient.rs {hint}".strip()
    finished = get_launch(get_callback(browser, ehr.authorize(url, scope=granted)))
    assert finished.grant is not None
    assert "patient" not in finished.context
    assert "encounter" not in finished.context
    # A launch from this site lets somebody choose one.
    answer(ehr, "/token", remove=("patient",))
    response = get_callback(browser, ehr.authorize(start_login(browser)))
    assert get_code(response) == "patient_missing"


@pytest.mark.compliance("RESP-08")
def test_no_cookie_holds_a_token(ehr: EHRSimulator, settings: Any) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    browser = make_browser()
    grant = connect(browser, ehr).grant
    assert grant is not None
    sent = " ".join(morsel.OutputString() for morsel in browser.cookies.values())
    inside = json.dumps(dict(browser.session))
    assert "_auth_user_id" in inside
    for secret in (grant.access_token, grant.refresh_token):
        assert secret
        assert secret not in sent
        assert secret not in inside


@pytest.mark.compliance("CALL-06", "CALL-10")
def test_warm_login_makes_one_request(ehr: EHRSimulator) -> None:
    launch(make_browser(), ehr)
    ehr.clear_requests()
    response = get_callback(
        browser := make_browser(), ehr.authorize(start_ehr_launch(browser, ehr))
    )
    assert response.status_code == 302
    assert "code=" not in response["Location"]
    assert [each.exchange for each in ehr.requests] == ["authorize", "token"]


def test_launch_that_its_browser_signed_out_of_meanwhile_stays_ended(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    browser.force_login(
        User.objects.create(username="ada"),
        backend="django.contrib.auth.backends.ModelBackend",
    )
    callback = ehr.authorize(start_login(browser))
    twin = make_browser()
    twin.cookies.update(browser.cookies)

    def sign_out_first(respond: Any, request: Any) -> Any:
        if request.path.endswith("/auth/token"):
            assert twin.post("/smart/logout/").status_code == 302
        return respond(request)

    ehr.interceptors.append(sign_out_first)
    response = get_callback(browser, callback)
    assert (response.status_code, get_code(response)) == (409, "state_failed")
    row = Launch.objects.get()
    assert (row.status, row.error_code) == ("failed", "signed_out")
    assert not TokenGrant.objects.active().exists()
    assert not Identity.objects.exists()

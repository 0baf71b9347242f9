"""Beginning a launch: what is asked of whom, and what is not even asked."""

from __future__ import annotations

import base64
import hashlib
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from django_smart import transport
from django_smart.exceptions import LaunchRequestError
from django_smart.fields import digest
from django_smart.launches.begin import get_ehr_registration
from django_smart.models import ClientRegistration, FHIRServer, Launch, ServerState
from django_smart.protocol.quirks import QUIRKS
from django_smart.servers.discovery import get_configuration
from django_smart.testing import EHRSimulator
from tests.answers import Away, answer
from tests.ehr import (
    BASE_URL,
    CLIENT_ID,
    REDIRECT_URI,
    STANDALONE_SCOPE,
    make_browser,
    start_ehr_launch,
    start_login,
)
from tests.factories import make_registration, make_server

pytestmark = pytest.mark.django_db


def _query(url: str) -> dict[str, str]:
    pairs = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.mark.compliance("EHRL-03", "EHRL-04", "EHRL-05", "AUTH-02")
def test_ehr_launch_asks_for_what_is_registered(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    launch_id = ehr.create_launch(CLIENT_ID, patient=None)
    response = make_browser().get(
        "/smart/launch/", {"iss": BASE_URL, "launch": launch_id}
    )
    asked = _query(response["Location"])
    assert set(asked) == {
        *("response_type", "client_id", "scope", "redirect_uri", "aud", "state"),
        *("code_challenge", "code_challenge_method", "launch", "nonce"),
    }
    assert asked["response_type"] == "code"
    assert asked["client_id"] == CLIENT_ID
    assert asked["scope"] == registration.ehr_scope
    assert asked["redirect_uri"] == REDIRECT_URI
    assert asked["aud"] == BASE_URL
    assert asked["launch"] == launch_id
    assert asked["code_challenge_method"] == "S256"
    row = Launch.objects.get()
    assert (row.kind, row.intent, row.status) == ("ehr", "sign_in", "pending")
    assert row.user is None


@pytest.mark.compliance("EHRL-04", "AUTH-11")
def test_only_launch_is_ever_added_to_the_registered_scope(ehr: EHRSimulator) -> None:
    make_registration(ehr_scope="patient/Observation.rs patient/Patient.rs")
    asked = _query(start_ehr_launch(make_browser(), ehr))
    assert asked["scope"] == "launch patient/Observation.rs patient/Patient.rs"
    # No identity is asked for, so there is nothing to bind one to.
    assert "nonce" not in asked


@pytest.mark.compliance("DISC-10")
def test_scope_that_the_server_does_not_list_is_asked_for(ehr: EHRSimulator) -> None:
    scope = "launch user/DocumentReference.c user/Patient.rs"
    make_registration(ehr_scope=scope)
    asked = _query(start_ehr_launch(make_browser(), ehr))
    listed = get_configuration(FHIRServer.objects.get()).scopes_supported
    assert listed is not None
    assert "user/DocumentReference.c" not in listed
    assert asked["scope"] == scope


@pytest.mark.compliance("SAL-01", "SAL-02", "SAL-03", "SAL-04")
@pytest.mark.usefixtures("registration")
def test_standalone_launch_sends_no_launch_value(ehr: EHRSimulator) -> None:
    asked = _query(start_login(make_browser(), next="/page/?a=1"))
    assert "launch" not in asked
    assert asked["scope"] == STANDALONE_SCOPE
    assert asked["aud"] == BASE_URL
    row = Launch.objects.get()
    assert (row.kind, row.next_url) == ("standalone", "/page/?a=1")


@pytest.mark.compliance("EHRL-05")
@pytest.mark.parametrize(
    ("rule", "aud"),
    [("as_received", f"{BASE_URL}/"), ("base_url", BASE_URL)],
)
def test_aud_is_the_iss_as_received_unless_the_server_says_otherwise(
    ehr: EHRSimulator, rule: str, aud: str
) -> None:
    make_registration(server__aud_rule=rule)
    response = make_browser().get(
        "/smart/launch/", {"iss": f"{BASE_URL}/", "launch": "x"}
    )
    assert _query(response["Location"]).get("aud") == aud


@pytest.mark.parametrize(
    ("rule", "quirks"),
    [("as_received", []), ("base_url", ["aud_slash"])],
)
def test_base_url_with_a_slash_connects_where_the_rule_fits(
    ehr: EHRSimulator, rule: str, quirks: list[str]
) -> None:
    registration = make_registration(server__base_url=f"{BASE_URL}/")
    ehr.quirks = quirks
    for each in QUIRKS["aud_rule"].choices:
        servers = FHIRServer.objects.filter(pk=registration.server_id)
        servers.update(quirks={"aud_rule": each})
        answer = ehr.authorize(start_login(make_browser()))
        assert ("code=" in answer) == (each == rule)


@pytest.mark.compliance("AUTH-04", "AUTH-05", "AUTH-06")
@pytest.mark.usefixtures("registration")
def test_state_nonce_and_verifier_are_new_and_unreadable(ehr: EHRSimulator) -> None:
    browser = make_browser()
    asked = [_query(start_ehr_launch(browser, ehr)) for _ in range(5)]
    for name in ("state", "nonce", "code_challenge"):
        assert len({each[name] for each in asked}) == 5
        assert all(len(each[name]) == 43 for each in asked)
    row = Launch.objects.get(state_digest=digest(asked[0]["state"]))
    hashed = hashlib.sha256(row.code_verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(hashed).rstrip(b"=").decode()
    assert challenge == asked[0]["code_challenge"]
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM django_smart_launch WHERE id = %s", [row.pk])
        stored = " ".join(map(str, cursor.fetchone()))
    assert asked[0]["state"] not in stored
    assert row.code_verifier not in stored
    assert digest(asked[0]["state"]) in stored


@pytest.mark.compliance("AUTH-03", "DISC-08")
def test_server_that_lists_no_challenge_is_sent_s256_all_the_same(
    ehr: EHRSimulator,
) -> None:
    make_registration()
    answer(ehr, "smart-configuration", code_challenge_methods_supported=[])
    query = _query(start_ehr_launch(make_browser(), ehr))
    assert query["code_challenge_method"] == "S256"


@pytest.mark.compliance("EHRL-06", "SEC-05")
@pytest.mark.parametrize(
    "iss",
    [
        "https://elsewhere.example.net/fhir",
        "http://ehr.example.org/v/r4/sim/abc/fhir",
        BASE_URL.upper(),
        f"{BASE_URL}//",
        f"{BASE_URL}/Patient",
        "https://ehr.example.org",
        "https://user@ehr.example.org/v/r4/sim/abc/fhir",
        f"{BASE_URL}?x=1",
        f"{BASE_URL}#x",
        "javascript:alert(1)",
        f"https://ehr.example.org:{'0' * 2000}443/v/r4/sim/abc/fhir",
    ],
)
@pytest.mark.usefixtures("registration")
def test_unknown_iss_is_refused_before_any_request(
    ehr: EHRSimulator, iss: str, caplog: pytest.LogCaptureFixture
) -> None:
    browser = make_browser()
    response = browser.get("/smart/launch/", {"iss": iss, "launch": "x"})
    assert response.status_code == 400
    assert b"<code>unknown_server</code>" in response.content
    assert ehr.requests == []
    assert not Launch.objects.exists()
    assert not browser.cookies
    assert "unknown_server" in caplog.text
    with pytest.raises(LaunchRequestError) as caught:
        get_ehr_registration(iss)
    assert caught.value.code == "unknown_server"


@pytest.mark.parametrize(
    ("iss", "shown"),
    [
        ("https://ehr.example.org/v/r4/sim/abd/fhir?x=s3cret", "abd/fhir'"),
        ("https://ehr.example.net/fhir\r\nforged", "ehr.example.net/fhir"),
        ("https://u:s3cret@ehr.example.org/fhir", None),
        ("https://[::1/fhir", None),
        ("s3cret", None),
    ],
)
@pytest.mark.usefixtures("registration")
def test_log_names_the_unknown_iss_and_the_nearest_base_url(
    caplog: pytest.LogCaptureFixture, iss: str, shown: str | None
) -> None:
    make_server(slug="lake", base_url="https://lake.example.com/fhir")
    with pytest.raises(LaunchRequestError):
        get_ehr_registration(iss)
    assert "s3cret" not in caplog.text
    assert "\r" not in caplog.text
    lines = [each for each in caplog.messages if "the closest one is" in each]
    assert len(lines) == (shown is not None)
    for line in lines:
        assert f"the closest one is {BASE_URL}." in line
        assert str(shown) in line


@pytest.mark.compliance("EHRL-01")
@pytest.mark.parametrize(
    "query",
    [
        {},
        {"iss": BASE_URL},
        {"launch": "x"},
        {"iss": "", "launch": "x"},
        {"iss": BASE_URL, "launch": ""},
        {"iss": [BASE_URL, BASE_URL], "launch": "x"},
        {"iss": BASE_URL, "launch": ["x", "y"]},
        {"iss": BASE_URL, "launch": "x" * 100_000},
        {"iss": BASE_URL * 3000, "launch": "x"},
        {"iss": BASE_URL, "launch": "x\0"},
        {"iss": BASE_URL, "launch": "x\r\nSet-Cookie: a=b"},
    ],
)
@pytest.mark.usefixtures("registration")
def test_launch_without_usable_parameters_is_refused(
    ehr: EHRSimulator, query: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    response = make_browser().get("/smart/launch/", query)
    assert response.status_code == 400
    assert b"<code>missing_parameter</code>" in response.content
    assert ehr.requests == []
    assert not Launch.objects.exists()
    assert "missing_parameter" in caplog.text


@pytest.mark.parametrize(
    "values",
    [{"is_active": False}, {"server__is_active": False}, {"ehr_scope": ""}],
)
def test_registration_that_is_not_for_ehr_launches_is_refused(
    ehr: EHRSimulator, values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    make_registration(**values)
    response = make_browser().get("/smart/launch/", {"iss": BASE_URL, "launch": "x"})
    assert response.status_code == 403
    assert b"<code>registration_inactive</code>" in response.content
    assert ehr.requests == []
    assert not Launch.objects.exists()
    assert "registration_inactive" in caplog.text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (requests.ConnectionError("refused"), "server_unreachable"),
        (requests.ReadTimeout("slow"), "server_timeout"),
        (requests.exceptions.SSLError("bad certificate"), "server_unreachable"),
    ],
)
@pytest.mark.usefixtures("registration")
def test_unreachable_ehr_is_a_page_and_a_failed_launch(
    error: Exception, code: str
) -> None:
    with transport.mounted("https://ehr.example.org/", Away(error)):
        response = make_browser().get(
            "/smart/launch/", {"iss": BASE_URL, "launch": "x"}
        )
    assert response.status_code == 503
    assert f"<code>{code}</code>".encode() in response.content
    row = Launch.objects.get()
    assert (row.status, row.error_code) == ("failed", code)


@pytest.mark.usefixtures("ehr")
def test_endpoint_of_the_row_that_sets_our_parameters_fails_the_launch() -> None:
    elsewhere = "?redirect_uri=https://elsewhere.example.net/"
    endpoint = f"https://login.example.org/auth{elsewhere}"
    make_registration()
    FHIRServer.objects.update(overrides={"authorization_endpoint": endpoint})
    response = make_browser().post("/smart/login/", {"server": "harbour"})
    assert response.status_code == 502
    row = Launch.objects.latest("pk")
    assert (row.status, row.error_code) == ("failed", "discovery_malformed")


@pytest.mark.compliance("AUTH-13")
def test_endpoint_of_the_row_is_used_with_its_query(ehr: EHRSimulator) -> None:
    endpoint = "https://login.example.org/auth?tenant=a%20b"
    make_registration(server__overrides={"authorization_endpoint": endpoint})
    url = start_ehr_launch(make_browser(), ehr)
    assert url.startswith("https://login.example.org/auth?tenant=a%20b&response_type=")


_TEXT = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["\0", "\x1f", "a\0b", "\r\n", "\\", "%00", "x" * 100_000, "🙂"]),
)


@pytest.mark.compliance("CALL-07")
@pytest.mark.usefixtures("registration")
@given(iss=st.one_of(_TEXT, st.just(BASE_URL)), launch_id=_TEXT)
def test_no_value_breaks_the_launch_address(
    ehr: EHRSimulator, iss: str, launch_id: str
) -> None:
    response = make_browser().get("/smart/launch/", {"iss": iss, "launch": launch_id})
    if response.status_code == 302:
        assert iss == BASE_URL
        assert _query(response["Location"])["launch"] == launch_id
    else:
        assert response.status_code == 400


@pytest.mark.compliance("CALL-08")
@pytest.mark.usefixtures("registration")
@given(server=st.one_of(_TEXT, st.just("harbour")), next_url=_TEXT)
def test_no_value_breaks_the_login_address(
    ehr: EHRSimulator, server: str, next_url: str
) -> None:
    for send in (make_browser().get, make_browser().post):
        response = send("/smart/login/", {"server": server, "next": next_url})
        if response.status_code == 302:
            assert server == "harbour"
            stored = Launch.objects.latest("pk").next_url
            assert stored in {"", next_url}
            assert len(stored) < 10_000
            assert not any(char < " " for char in stored)
        elif response.status_code == 200:
            assert server == ""
        else:
            assert response.status_code == 400


@pytest.mark.compliance("CAPS-01", "CAPS-08")
@pytest.mark.parametrize(
    ("capabilities", "fix"),
    [
        (["launch-standalone"], "scope for EHR launch"),
        (["launch-ehr", "permission-v1"], ".read, .write or .*"),
    ],
)
def test_what_the_server_lacks_is_told_with_the_fix_before_the_browser_leaves(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    caplog: pytest.LogCaptureFixture,
    capabilities: list[str],
    fix: str,
) -> None:
    browser = make_browser()
    start_ehr_launch(browser, ehr)
    row = FHIRServer.objects.get()
    document = {**(row.state.configuration or {}), "capabilities": capabilities}
    ServerState.objects.update(configuration=document)
    response = browser.get("/smart/launch/", {"iss": BASE_URL, "launch": "x"})
    assert response.status_code == 502
    assert b"<code>server_unsupported</code>" in response.content
    assert fix in caplog.text
    # The next launch asks again: it may have been switched on.
    start_ehr_launch(browser, ehr)


@pytest.mark.compliance("AUTH-11")
def test_nothing_is_asked_for_unless_somebody_registered_it() -> None:
    registration = ClientRegistration()
    scopes = (
        registration.ehr_scope,
        registration.standalone_scope,
        registration.system_scope,
    )
    assert scopes == ("", "", "")

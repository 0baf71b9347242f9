"""
What an EHR does differently is noted at the launch, and told in a report.

``WRITE_TABLES=1`` writes the table of ``docs/reference/codes.rst`` anew.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from werkzeug.wrappers import Response

from django_smart import transport
from django_smart.contrib.doctor.report import read_report, render_report
from django_smart.diagnoses import DIAGNOSES
from django_smart.models import ClientRegistration, FHIRServer, Launch, ServerState
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.faults import FAULTS
from django_smart.testing.simulator.faults.registry import Fault
from tests.answers import Away
from tests.ehr import PATIENT, get_callback, launch, make_browser, start_login
from tests.faults import LAUNCH_EXCHANGES, REFUSED, named
from tests.spans import recording_spans

pytestmark = pytest.mark.django_db

TABLE = Path(__file__).parents[3] / "docs" / "reference" / "deviation-faults.csv"
HEADER = ("What the EHR does", "Reported as")
ALLOWED = "not reported: the specification allows it"
# Of the tolerated faults that are no deviation, or that nothing can be told of.
WHY_NOT = {
    "authorize_unknown_parameters": ALLOWED,
    "discovery_endpoint_query": ALLOWED,
    "discovery_missing_issuer": "not reported: the OpenID configuration has it",
    "discovery_missing_jwks_uri": "not reported: the OpenID configuration has it",
    "discovery_unknown_members": ALLOWED,
    "id_token_aud_list": ALLOWED,
    "id_token_fhir_user_relative": ALLOWED,
    "id_token_several_aud_azp": ALLOWED,
    "jwks_second_key": ALLOWED,
    "jwks_unknown_keys": ALLOWED,
    "token_half_surrogate": "not reported: replaced before the response is read",
    "token_lower_case_bearer": ALLOWED,
    "token_nul": "not reported: replaced before the response is read",
    "token_scope_narrower": ALLOWED,
    "token_scope_wider": ALLOWED,
    "token_unasked_refresh_token": ALLOWED,
    "token_unknown_members": ALLOWED,
}
TOLERATED = named("tolerate", *LAUNCH_EXCHANGES)


def try_launch(ehr: EHRSimulator) -> None:
    """Launch, whatever comes of it."""
    browser = make_browser()
    launch_id = ehr.create_launch("growth-chart", patient=PATIENT)
    query = {"iss": ehr.base_url, "launch": launch_id}
    response = browser.get("/smart/launch/", query)
    if response.status_code == 302:
        get_callback(browser, ehr.authorize(response["Location"]))


def list_codes(server: FHIRServer) -> list[str]:
    server = FHIRServer.objects.get(pk=server.pk)
    return [one.diagnosis.code for one in read_report(server).observations]


def test_launch_at_an_ehr_without_faults_has_none(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    assert launch(make_browser(), ehr).deviations == []
    report = read_report(registration.server)
    assert (report.launches, report.observations) == (1, [])
    assert "No deviation was seen." in render_report(report)


# Fault by fault

# Why faults of these exchanges are in no report.
NOT_NOTED = {
    "client_credentials": "a backend service's error has its code in the log",
    "fhir": "the view or task gets an error with its code",
    "introspect": "the caller gets an error with its code",
    "refresh": "the grant has the code of the error",
    "register": "the operator who registers the client sees the error",
    "revoke": "the revocation is tried again, and found if it is overdue",
}
OTHERS = {FAULTS[name].exchange for name in FAULTS} - {*LAUNCH_EXCHANGES}


def read_table() -> list[list[str]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def describe(name: str) -> str:
    """What the table says of a fault, as reStructuredText."""
    return f"{FAULTS[name].exchange}: {escape(FAULTS[name].description)}"


def escape(text: str) -> str:
    # A URL that is wrong on purpose must not become a link.
    for mark in ("\\", "*", "_", "://"):
        text = text.replace(mark, f"\\{mark}")
    return text


def build_other_rows() -> list[list[str]]:
    """The rows of the faults that fail a launch, and of all that are in none."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name in (*REFUSED, *named("tolerate", *LAUNCH_EXCHANGES, slow=True)):
        shown = "not reported: within the limits"
        if name in REFUSED:
            known = DIAGNOSES[REFUSED[name][0]]
            shown = f"``{known.code}``" + (
                "" if known.is_for_ehr else f", not reported: for the {known.turn}"
            )
        fault = FAULTS[name]
        rows.setdefault((fault.exchange, shown), []).append(escape(fault.description))
    described = [
        [f"{exchange}: {'; '.join(dict.fromkeys(each))}", shown]
        for (exchange, shown), each in sorted(rows.items())
    ]
    for exchange in sorted(OTHERS):
        number = sum(each.exchange == exchange for each in FAULTS.values())
        why = NOT_NOTED[exchange]
        described.append([f"{exchange}: {number} faults", f"not reported: {why}"])
    return described


@pytest.mark.parametrize("name", TOLERATED)
def test_tolerated_fault_is_reported_or_the_table_says_why_not(
    ehr: EHRSimulator, registration: ClientRegistration, name: str
) -> None:
    ehr.faults.add(name)
    launch(make_browser(), ehr)
    codes = list_codes(registration.server)
    assert bool(codes) is (name not in WHY_NOT)
    shown = ", ".join(f"``{code}``" for code in sorted(codes)) or WHY_NOT[name]
    row = [describe(name), shown]
    if os.environ.get("WRITE_TABLES"):
        kept = {describe(each) for each in TOLERATED} - {row[0]}
        rows = [each for each in read_table() if each[0] in kept]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([HEADER, *sorted([*rows, row]), *build_other_rows()])
        TABLE.write_text(out.getvalue(), encoding="utf-8")
    assert row in read_table()


def test_table_has_every_fault() -> None:
    tolerated = sorted(describe(each) for each in TOLERATED)
    rows = read_table()[1:]
    assert [row[0] for row in rows[: len(tolerated)]] == tolerated
    assert rows[len(tolerated) :] == build_other_rows()
    counted = {*TOLERATED, *REFUSED, *named("tolerate", *LAUNCH_EXCHANGES, slow=True)}
    assert counted | {n for n in FAULTS if FAULTS[n].exchange in OTHERS} == {*FAULTS}


def test_refusal_that_is_the_turn_of_the_ehr_is_reported(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    for name in ("token_500", "id_token_bad_signature", "authorize_access_denied"):
        ehr.faults.add(name)
        try_launch(ehr)
        ehr.faults.clear()
    codes = list_codes(registration.server)
    assert sorted(codes) == ["id_token_signature", "token_server_error"]
    assert all(DIAGNOSES[code].is_for_ehr for code in codes)


@pytest.mark.parametrize(
    ("quirk", "field", "code"),
    [
        ("context_in_access_token", "context_in_access_token", "context_in_token"),
        ("patient_in_fhir_user", "patient_from_fhir_user", "patient_in_fhir_user"),
    ],
)
def test_deviation_that_an_operator_allowed_is_reported(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    quirk: str,
    field: str,
    code: str,
) -> None:
    ehr.quirks = [quirk]
    FHIRServer.objects.update(quirks={field: True})
    browser = make_browser()
    url = ehr.authorize(start_login(browser), user=f"Patient/{PATIENT}")
    get_callback(browser, url)
    one = Launch.objects.get(status=Launch.Status.OPEN)
    assert code in {found for found, _ in one.deviations}
    report = render_report(
        read_report(FHIRServer.objects.get(pk=registration.server_id))
    )
    assert f"Set on this site because of the server: {field}." in report


# How it is stored


def test_failed_launch_keeps_what_was_seen_before(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    ehr.faults.update(["token_scope_absent", "id_token_bad_signature"])
    try_launch(ehr)
    row = Launch.objects.get()
    assert (row.status, row.error_code) == ("failed", "id_token_signature")
    assert row.deviations == [["scope_absent", ""]]
    codes = list_codes(registration.server)
    assert sorted(codes) == ["id_token_signature", "scope_absent"]


def test_noting_takes_no_statement_of_its_own(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    django_assert_max_num_queries: Any,
) -> None:
    with django_assert_max_num_queries(200) as without:
        launch(make_browser(), ehr)
    ehr.faults.add("token_scope_absent")
    with django_assert_max_num_queries(len(without)):
        launch(make_browser(), ehr)


def test_server_that_deviates_in_thousands_of_ways_fills_no_row(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    edit(ehr, "/token", lambda body: body.update(fhirContext=[1] * 5000))
    assert len(launch(make_browser(), ehr).deviations) == 20


# What is shown


def test_report_counts_launches_of_thirty_days(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    ehr.faults.add("token_scope_absent")
    for _ in range(3):
        launch(make_browser(), ehr)
    old = Launch.objects.earliest("pk")
    Launch.objects.filter(pk=old.pk).update(
        created_at=timezone.now() - timedelta(days=31)
    )
    report = read_report(registration.server)
    assert report.launches == 2
    (one,) = report.observations
    assert (one.diagnosis.code, one.number) == ("scope_absent", 2)


def test_launches_that_ended_alike_are_counted_by_the_database(
    registration: ClientRegistration,
) -> None:
    now = timezone.now()
    # Each has a text of its own size, so that rows that are read can be told.
    deviations = [["scope_absent", "x" * 1000]]
    Launch.objects.bulk_create(
        Launch(
            registration=registration,
            kind=Launch.Kind.EHR,
            status=Launch.Status.ENDED if number % 4 else Launch.Status.FAILED,
            error_code="" if number % 4 else "id_token_signature",
            deviations=deviations,
            state_digest=f"{number:064}",
            browser_digest="y",
            expires_at=now,
        )
        for number in range(2000)
    )
    newest = Launch.objects.latest("created_at").created_at
    tracemalloc.start()
    try:
        report = read_report(registration.server)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert report.launches == 2000
    counted = [
        (one.diagnosis.code, one.number, one.last_at == newest)
        for one in report.observations
    ]
    assert counted[0] == ("scope_absent", 2000, True)
    assert counted[1][:2] == ("id_token_signature", 500)


def test_command_prints_the_report_for_the_team_and_the_row_for_the_table(
    ehr: EHRSimulator, registration: ClientRegistration, capsys: Any
) -> None:
    FHIRServer.objects.update(quirks={"client_id_with_assertion": True})
    ehr.faults.add("token_patient_reference")
    launch(make_browser(), ehr)
    call_command("smart_doctor", "harbour", "--report")
    shown = capsys.readouterr().out
    known = DIAGNOSES["context_id_form"]
    for each in (ehr.base_url, known.code, known.requirement, known.docs_url):
        assert each in shown
    assert "patient is a reference" in shown
    assert "client_id_with_assertion" in shown
    *_, row = shown.strip().splitlines()
    (cells,) = csv.reader([row])
    assert len(cells) == 7
    assert "context_id_form" in cells[-1]
    with pytest.raises(CommandError, match="not registered"):
        call_command("smart_doctor", "https://other.example.org/r4", "--report")


def test_admin_shows_it_on_the_launch_and_the_server(
    ehr: EHRSimulator, registration: ClientRegistration, admin_client: Any
) -> None:
    ehr.faults.add("token_number_intent")
    row = launch(make_browser(), ehr)
    for kind, pk in (("launch", row.pk), ("fhirserver", registration.server_id)):
        page = admin_client.get(f"/admin/django_smart/{kind}/{pk}/change/")
        assert "codes.html#context_ignored" in page.content.decode()
        assert "intent is a number" in page.content.decode()


# Nothing that is a value

CANARY = "c4n4ry"
VALUES: list[Any] = [
    CANARY,
    f"Name {CANARY} <{CANARY}@example.org>",
    f"Patient/{CANARY}",
    f"Practitioner/{CANARY}",
    f"https://{CANARY}.example.org/fhir/Practitioner/{CANARY}",
    {CANARY: CANARY},
    [CANARY],
]


def edit(ehr: EHRSimulator, path: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Let *change* edit the JSON that the EHR sends for *path*."""

    def respond_otherwise(respond: Any, request: Any) -> Any:
        response = respond(request)
        if not request.path.endswith(path) or response.status_code != 200:
            return response
        body = json.loads(response.get_data())
        change(body)
        headers = dict(response.headers) | {"Content-Type": "application/json"}
        headers.pop("Content-Length", None)
        return Response(json.dumps(body), 200, headers)

    ehr.interceptors.append(respond_otherwise)


def spoil_message(path: str, name: str) -> Callable[[EHRSimulator, Any], None]:
    def spoil(ehr: EHRSimulator, value: Any) -> None:
        edit(ehr, path, lambda body: body.update({name: value, CANARY: value}))

    return spoil


def spoil_openid(name: str) -> Callable[[EHRSimulator, Any], None]:
    """Of the OpenID configuration, which is read if the other one lacks values."""

    def spoil(ehr: EHRSimulator, value: Any) -> None:
        spoil_message("/openid-configuration", name)(ehr, value)
        ehr.faults.update(["discovery_missing_issuer", "discovery_missing_jwks_uri"])

    return spoil


def spoil_key(name: str) -> Callable[[EHRSimulator, Any], None]:
    def spoil(ehr: EHRSimulator, value: Any) -> None:
        edit(ehr, "/jwks", lambda body: body["keys"][0].update({name: value}))

    return spoil


def spoil_headers(name: str, status: int) -> Callable[[EHRSimulator, Any], None]:
    """Of every response that this site reads itself, which may be an error."""

    def spoil(ehr: EHRSimulator, value: Any) -> None:
        def respond_otherwise(respond: Any, request: Any) -> Any:
            response = respond(request)
            if not request.path.endswith("/authorize"):
                response.headers[name] = str(value)
                response.status_code = status
            return response

        ehr.interceptors.append(respond_otherwise)

    return spoil


def spoil_id_token(name: str) -> Callable[[EHRSimulator, Any], None]:
    def spoil(ehr: EHRSimulator, value: Any) -> None:
        add_fault(
            ehr, "drafts", "id_token", lambda draft: draft.claims.update({name: value})
        )

    return spoil


def spoil_redirect(name: str) -> Callable[[EHRSimulator, Any], None]:
    def spoil(ehr: EHRSimulator, value: Any) -> None:
        add_fault(
            ehr, "redirects", "authorize", lambda _, pairs: [*pairs, (name, str(value))]
        )

    return spoil


def add_fault(ehr: EHRSimulator, kind: str, exchange: str, function: Any) -> None:
    FAULTS[CANARY] = Fault(
        name=CANARY,
        exchange=exchange,
        verdict="tolerate",
        description="",
        kind=kind,
        function=function,
    )
    ehr.faults.add(CANARY)


@pytest.fixture(autouse=True)
def _no_fault_of_ours() -> Iterator[None]:
    yield
    FAULTS.pop(CANARY, None)


_TOKEN = (
    *("access_token", "expires_in", "scope", "patient", "encounter", "fhirContext"),
    *("need_patient_banner", "intent", "tenant", "smart_style_url", "hub.url"),
    *("hub.topic", "refresh_token", "id_token", "token_type"),
)
_CONFIGURATION = (
    *("authorization_endpoint", "token_endpoint", "issuer", "capabilities"),
    *("associated_endpoints", "user_access_brand_identifier", "scopes_supported"),
    *("management_endpoint", "code_challenge_methods_supported"),
)
_OPENID = ("issuer", "jwks_uri", "end_session_endpoint", "userinfo_endpoint")
_HEADERS = (
    *("Cache-Control", "Content-Encoding", "Content-Type", "Date", "Location"),
    *("Retry-After", "Set-Cookie", "WWW-Authenticate", "X-Request-Id"),
)
PLACES = {
    **{f"token.{each}": spoil_message("/token", each) for each in _TOKEN},
    **{
        f"discovery.{each}": spoil_message("/smart-configuration", each)
        for each in _CONFIGURATION
    },
    **{f"openid.{each}": spoil_openid(each) for each in _OPENID},
    "jwks.keys": spoil_message("/jwks", "keys"),
    **{
        f"jwks.{each}": spoil_key(each)
        for each in ("kty", "kid", "alg", "use", "key_ops", "n", "e", "x5c")
    },
    **{
        f"headers.{each}, {status}": spoil_headers(each, status)
        for each in _HEADERS
        for status in (200, 302, 503)
    },
    **{
        f"id_token.{each}": spoil_id_token(each)
        for each in ("fhirUser", "profile", "name", "email", "sub", "aud", "nonce")
    },
    **{
        f"redirect.{each}": spoil_redirect(each)
        for each in ("iss", "error", "error_description", "session_state")
    },
}

# The log shows what an operator has to compare or to fix: hosts, values that moved, and
# methods, all of which the server publishes.
TOLD_TO_OPERATORS = {
    *("discovery.code_challenge_methods_supported", "discovery.issuer"),
    *("discovery.token_endpoint", "openid.issuer", "openid.jwks_uri"),
}


@pytest.mark.parametrize("place", PLACES)
def test_canary_in_any_place_of_any_message_is_in_no_report_log_or_span(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    caplog: pytest.LogCaptureFixture,
    place: str,
) -> None:
    caplog.set_level(logging.DEBUG, "django_smart")
    elsewhere = transport.mounted(f"https://{CANARY}.example.org", Away())
    with recording_spans() as spans, elsewhere:
        for value in VALUES:
            PLACES[place](ehr, value)
            try_launch(ehr)
            # The next launch reads what the server says of itself again.
            ServerState.objects.update(
                configuration=None, discovery_failed_at=None, jwks=None
            )
            ehr.interceptors.clear()
            ehr.faults.clear()
    server = FHIRServer.objects.get(pk=registration.server_id)
    rows = Launch.objects.values_list("deviations", "error_code")
    log = [one.getMessage() for one in caplog.records if "django_smart" in one.name]
    if place in TOLD_TO_OPERATORS:
        log.clear()
    traced = [span.to_json() for span in spans]
    assert len(traced) >= len(VALUES)
    shown = "\n".join(
        [render_report(read_report(server)), json.dumps([*rows]), *log, *traced]
    )
    assert CANARY not in shown.lower()

"""Deviations from the specification that are tolerated, and noted without a value."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from django_smart.diagnoses import DIAGNOSES, Severity, Turn
from django_smart.protocol.authorization import process_authorization_response
from django_smart.protocol.configuration import SMARTConfiguration
from django_smart.protocol.context import LaunchContext
from django_smart.protocol.deviations import name_type
from django_smart.protocol.messages import HTTPResponse
from django_smart.protocol.scopes import ScopeSet
from django_smart.protocol.token import (
    process_refresh_response,
    process_token_response,
)
from tests.protocol.helpers import NOW

HEADERS = {"content-type": "application/json", "cache-control": "no-store"}
TOKENS = {
    "access_token": "abc",
    "token_type": "Bearer",
    "expires_in": 300,
    "scope": "patient/Patient.rs offline_access",
    "refresh_token": "def",
    "patient": "42",
}
CONFIGURATION = {
    "authorization_endpoint": "https://as.example.org/authorize",
    "token_endpoint": "https://as.example.org/token",
    "issuer": "https://as.example.org",
    "jwks_uri": "https://as.example.org/jwks",
    "grant_types_supported": ["authorization_code"],
    "capabilities": ["launch-ehr", "sso-openid-connect"],
    "code_challenge_methods_supported": ["S256"],
}


def answer(members, headers=None):
    body = json.dumps({**TOKENS, **members}).encode()
    return HTTPResponse(status_code=200, headers=headers or HEADERS, body=body)


def read_tokens(members=(), headers=None):
    tokens = process_token_response(
        answer(dict(members), headers), requested=ScopeSet.parse(""), now=NOW
    )
    return [*tokens.deviations, *tokens.context.deviations]


def read_configuration(**members):
    document = {**CONFIGURATION, **members}
    return SMARTConfiguration.from_json(
        document, base_url="https://ehr.example.org/fhir"
    ).deviations


@pytest.mark.compliance("RESP-01", "RESP-09", "RESP-11", "RESP-13")
@pytest.mark.parametrize(
    ("members", "headers", "code", "evidence"),
    [
        ({}, {**HEADERS, "content-type": "text/plain"}, "token_media_type", "another"),
        ({}, {"cache-control": "no-store"}, "token_media_type", "no Content-Type"),
        ({}, {"content-type": "application/json"}, "token_cacheable", "no-store"),
        ({"scope": None}, None, "scope_absent", ""),
        ({"scope": ["openid"]}, None, "scope_malformed", "scope is a list"),
        ({"scope": "openid  profile"}, None, "scope_malformed", "white space"),
        ({"refresh_token": None}, None, "refresh_token_absent", "offline_access"),
        ({"expires_in": None}, None, "lifetime_absent", ""),
        ({"expires_in": "300"}, None, "lifetime_not_integer", "expires_in is a string"),
        ({"expires_in": 300.0}, None, "lifetime_not_integer", "expires_in is a number"),
        ({"patient": 42}, None, "context_id_form", "patient is a number"),
        ({"patient": "Patient/42"}, None, "context_id_form", "patient is a reference"),
        ({"encounter": ""}, None, "context_empty", "encounter is empty"),
        ({"encounter": None}, None, "context_empty", "encounter is null"),
        (
            {"need_patient_banner": "true"},
            None,
            "banner_not_boolean",
            "need_patient_banner is a string",
        ),
        ({"intent": {"a": 1}}, None, "context_ignored", "intent is an object"),
        ({"fhirContext": 1}, None, "context_ignored", "fhirContext is a number"),
    ],
)
def test_token_response_is_read_and_its_deviation_named(
    members, headers, code, evidence
):
    assert read_tokens() == []
    (deviation,) = read_tokens(members, headers)
    assert deviation.code == code
    assert evidence in deviation.evidence


@pytest.mark.compliance("REF-06")
def test_refresh_that_omits_its_scope_deviates_too():
    tokens = process_refresh_response(
        answer({"scope": None}),
        granted=ScopeSet.parse("patient/Patient.rs"),
        now=NOW + timedelta(hours=1),
        previous_context=LaunchContext(patient="42"),
    )
    assert [each.code for each in tokens.deviations] == ["scope_absent"]


@pytest.mark.compliance("DISC-04", "DISC-07", "DISC-08", "DISC-09")
@pytest.mark.parametrize(
    ("members", "code", "evidence"),
    [
        ({"capabilities": None}, "discovery_member_missing", "capabilities"),
        ({"jwks_uri": None}, "discovery_member_missing", "jwks_uri"),
        (
            {"code_challenge_methods_supported": ["plain", "S256"]},
            "discovery_plain_pkce",
            "plain",
        ),
        ({"token_endpoint": "/token"}, "discovery_url_relative", "token_endpoint"),
        ({"scopes_supported": "a b"}, "discovery_member_ignored", "scopes_supported"),
    ],
)
def test_configuration_is_read_and_its_deviation_named(members, code, evidence):
    assert read_configuration() == ()
    (deviation,) = read_configuration(**members)
    assert deviation.code == code
    assert evidence in deviation.evidence


def test_issuer_that_the_server_did_not_announce_deviates():
    issuer = "https://as.example.org"
    for promised, expected in ((True, []), (False, ["iss_not_announced"])):
        answered = process_authorization_response(
            [("code", "abc"), ("iss", issuer)],
            expected_issuer=issuer,
            issuer_promised=promised,
        )
        assert [each.code for each in answered.deviations] == expected


@pytest.mark.parametrize(
    "diagnosis",
    [each for each in DIAGNOSES.values() if each.requirement and not each.status],
    ids=lambda each: each.code,
)
def test_every_deviation_says_what_the_ehr_can_do(diagnosis):
    assert diagnosis.turn == Turn.EHR
    assert diagnosis.severity in {Severity.NOTE, Severity.WARNING}
    assert diagnosis.fix.endswith(".")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "null"),
        (True, "a boolean"),
        (0, "a number"),
        ("", "empty"),
        ("text", "a string"),
        ([], "a list"),
        ({}, "an object"),
    ],
)
def test_type_of_a_value_has_the_name_that_json_gives_it(value, name):
    assert name_type(value) == name

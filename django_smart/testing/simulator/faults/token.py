"""
Faults of the token endpoint: the response to a code, to a refresh, to a service.

All faults of a refresh except ``invalid_grant``, and those whose tokens are for another
user or patient, are temporary: the app must keep its refresh token. If the request does
not reach the server, the refresh token has not been used, either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import jwt
from werkzeug.wrappers import Response

from django_smart.testing.simulator.faults import answers
from django_smart.testing.simulator.faults.registry import (
    Verdict,
    edits,
    edits_json,
    fail_each,
    leave_out,
    leave_out_each,
    name_another_patient,
    narrow_scope,
    put_each,
    replaces,
    send,
    widen_scope,
)

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange

__all__: list[str] = []

# RFC 6749 section 5.2, with the status they come with.
_ERRORS = {
    "invalid_request": 400,
    "invalid_client": 401,
    "invalid_grant": 400,
    "unauthorized_client": 400,
    "unsupported_grant_type": 400,
    "invalid_scope": 400,
}
# Member, what it is set to, and what an app does: each is a fault.
_VALUES: dict[str, tuple[Verdict, str, Any]] = {
    "empty_access_token": ("refuse", "access_token", ""),
    "number_access_token": ("refuse", "access_token", 12345),
    "broken_access_token": ("refuse", "access_token", "a token\r\nwith: lines"),
    "wrong_token_type": ("refuse", "token_type", "mac"),
    "number_token_type": ("refuse", "token_type", 1),
    "negative_expires_in": ("refuse", "expires_in", -3600),
    "huge_expires_in": ("refuse", "expires_in", 10**19),
    "nan_expires_in": ("refuse", "expires_in", float("nan")),
    "infinite_expires_in": ("refuse", "expires_in", float("inf")),
    "float_expires_in": ("refuse", "expires_in", 3599.5),
    "text_expires_in": ("refuse", "expires_in", "an hour"),
    "boolean_expires_in": ("refuse", "expires_in", True),
    "number_patient": ("refuse", "patient", 4.2),
    "list_patient": ("refuse", "patient", ["42"]),
    "path_patient": ("refuse", "patient", "../Practitioner/1"),
    "dots_patient": ("refuse", "patient", ".."),
    "long_patient": ("refuse", "patient", "p" * 65),
    "text_patient": ("refuse", "patient", "not an id?"),
    "empty_patient": ("refuse", "patient", ""),
    "null_patient": ("refuse", "patient", None),
    "path_encounter": ("refuse", "encounter", "../Patient/1"),
    "list_scope": ("tolerate", "scope", ["openid", "patient/*.rs"]),
    "nul": ("tolerate", "vendor_note", "a\0b"),
    "half_surrogate": ("tolerate", "vendor_note", "\ud83d"),
    "object_refresh_token": ("refuse", "refresh_token", {"value": "x"}),
    "lower_case_bearer": ("tolerate", "token_type", "bearer"),
    "banner_string": ("tolerate", "need_patient_banner", "false"),
    "banner_text": ("tolerate", "need_patient_banner", "perhaps"),
    "bad_fhir_context": (
        "tolerate",
        "fhirContext",
        [1, {}, {"reference": "https://elsewhere.example.net/Patient/1"}],
    ),
    "text_fhir_context": ("tolerate", "fhirContext", "ImagingStudy/1"),
    "number_intent": ("tolerate", "intent", 1),
    "script_style_url": ("tolerate", "smart_style_url", "javascript:alert(1)"),
    "unasked_refresh_token": ("tolerate", "refresh_token", "nobody-asked-for-it"),
}
_MISSING: dict[str, Verdict] = {
    "access_token": "refuse",
    "token_type": "refuse",
    "patient": "refuse",
}


fail_each("token", _ERRORS)
put_each("token", _VALUES)
leave_out_each("token", _MISSING)
for _member in ("expires_in", "scope"):
    edits_json(f"token_{_member}_absent", "tolerate", f"no {_member}")(
        leave_out(_member)
    )
replaces("token_error_200", "refuse", "an error with status 200")(
    send(answers.oauth_error, "invalid_grant", 200)
)
replaces("token_html_400", "refuse", "a web page with status 400")(
    lambda _: answers.html("Bad request", 400)
)
edits_json("token_scope_narrower", "tolerate", "a scope is missing")(narrow_scope)
edits_json("token_scope_wider", "tolerate", "scopes that were not requested")(
    widen_scope
)


@replaces("token_error_markup", "refuse", "an error described with markup")
def _error_markup(exchange: Exchange) -> Response:
    return answers.json_text(
        '{"error": "invalid_grant", "error_description": "<script>alert(1)</script>",'
        ' "error_uri": "javascript:alert(2)"}',
        400,
    )


@edits("token_form_encoded", "refuse", "the response form-encoded")
def _form_encoded(exchange: Exchange, response: Response) -> Response:
    return Response(
        urlencode(response.get_json()), content_type="application/x-www-form-urlencoded"
    )


@edits("token_status_201", "refuse", "status 201")
def _status_201(exchange: Exchange, response: Response) -> Response:
    response.status_code = 201
    return response


@edits("token_duplicate_patient", "refuse", "two patients")
def _duplicate_patient(exchange: Exchange, response: Response) -> Response:
    return answers.with_duplicate(response.get_json(), "patient", "another-one")


@edits("token_nesting", "refuse", "40 nested lists")
def _nesting(exchange: Exchange, response: Response) -> Response:
    return answers.deeply_nested(response.get_json(), depth=40)


@edits("token_endless_expires_in", "refuse", "expires_in has 5,000 digits")
def _endless_expires_in(exchange: Exchange, response: Response) -> Response:
    # More than Python makes a number of.
    return answers.with_member(response.get_json(), "expires_in", "9" * 5000)


@edits("token_overflow", "refuse", "a number that is too large")
def _overflow(exchange: Exchange, response: Response) -> Response:
    return answers.with_member(response.get_json(), "vendor_number", "1e999")


@edits_json("token_patient_object", "refuse", "patient is a JSON object")
def _patient_object(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["patient"] = {"reference": f"Patient/{answer.get('patient')}"}


@edits_json("token_patient_reference", "tolerate", "patient is Patient/<id>")
def _patient_reference(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["patient"] = f"Patient/{answer.get('patient')}"


@edits_json("token_expires_in_string", "tolerate", "expires_in is a string")
def _expires_in_string(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["expires_in"] = str(answer["expires_in"])


@edits_json("token_scope_spaces", "tolerate", "spaces around the scopes")
def _scope_spaces(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["scope"] = f" {answer['scope'].replace(' ', '  ')}  "


@edits_json("token_unknown_members", "tolerate", "unknown members")
def _unknown_members(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["__vendor_thing"] = {"deep": [1, None, {"er": True}]}
    answer["https://vendor.example.org/x"] = None


# The response to a refresh


_REFRESH_ERRORS = {
    "invalid_grant": (400, "the error invalid_grant: final"),
    "invalid_client": (401, "the error invalid_client: not final"),
    "invalid_request": (400, "the error invalid_request: not final"),
    "invalid_scope": (400, "the error invalid_scope: not final"),
    "unauthorized_client": (400, "the error unauthorized_client: not final"),
}
_REFRESH_VALUES: dict[str, tuple[Verdict, str, Any]] = {
    "empty_access_token": ("refuse", "access_token", ""),
    "wrong_token_type": ("refuse", "token_type", "mac"),
    "huge_expires_in": ("refuse", "expires_in", 10**19),
    "path_patient": ("refuse", "patient", "../Practitioner/1"),
    "number_patient": ("refuse", "patient", 42),
    "other_encounter": ("refuse", "encounter", "another-encounter"),
    "scope_absent": ("tolerate", "scope", None),
    "patient_absent": ("tolerate", "patient", None),
}


def _id_token(exchange: Exchange, **changes: Any) -> str:
    """An ID token as it may come with a refresh (OpenID Connect Core section 12.2)."""
    ehr = exchange.ehr
    grant = ehr.store.refresh_tokens[dict(exchange.form)["refresh_token"]].grant
    now = int(ehr.clock())
    claims = {
        "iss": ehr.issuer,
        "sub": ehr.users[grant.user or ""].subject,
        "aud": grant.client_id,
        "iat": now,
        "exp": now + 300,
        **changes,
    }
    key = ehr.signing_keys[-1]
    return jwt.encode(claims, key.private_key, key.algorithm, headers={"kid": key.kid})


for _error, (_status, _description) in _REFRESH_ERRORS.items():
    replaces(f"refresh_{_error}", "refuse", _description)(
        send(answers.oauth_error, _error, _status)
    )
put_each("refresh", _REFRESH_VALUES)
edits_json("refresh_other_patient", "refuse", "patient names another patient")(
    name_another_patient
)
edits_json(
    "refresh_wider_scope", "tolerate", "scopes that were not granted originally"
)(widen_scope)
edits_json("refresh_narrower_scope", "tolerate", "a scope is missing")(narrow_scope)


@edits_json("refresh_other_subject", "refuse", "an ID token of another user")
def _other_subject(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["id_token"] = _id_token(exchange, sub="somebody-else")


@edits_json("refresh_id_token", "tolerate", "an ID token of the same user")
def _same_subject(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["id_token"] = _id_token(exchange)


@edits_json("refresh_bad_id_token", "tolerate", "an ID token with an invalid signature")
def _bad_id_token(exchange: Exchange, answer: dict[str, Any]) -> None:
    signed = _id_token(exchange, sub="somebody-else").rpartition(".")[0]
    answer["id_token"] = f"{signed}.c2lnbmF0dXJl"


@edits_json(
    "refresh_no_refresh_token", "tolerate", "the old refresh token remains valid"
)
def _no_refresh_token(exchange: Exchange, answer: dict[str, Any]) -> None:
    tokens = exchange.ehr.store.refresh_tokens
    old = tokens[dict(exchange.form)["refresh_token"]]
    if answer["refresh_token"] != old.value:
        del tokens[answer["refresh_token"]]
    old.used = False
    del answer["refresh_token"]


# The response to a backend service, which has no user to ask again


_SERVICE_ERRORS = {
    "invalid_client": 401,
    "invalid_request": 400,
    "invalid_scope": 400,
    "unauthorized_client": 400,
    "unsupported_grant_type": 400,
}
_SERVICE_VALUES: dict[str, tuple[Verdict, str, Any]] = {
    "empty_access_token": ("refuse", "access_token", ""),
    "broken_access_token": ("refuse", "access_token", "a token\r\nwith: lines"),
    "wrong_token_type": ("refuse", "token_type", "mac"),
    "negative_expires_in": ("refuse", "expires_in", -300),
    "huge_expires_in": ("refuse", "expires_in", 10**19),
    "nan_expires_in": ("refuse", "expires_in", float("nan")),
    "text_expires_in": ("refuse", "expires_in", "five minutes"),
    "list_scope": ("tolerate", "scope", ["system/Patient.rs"]),
    "lower_case_bearer": ("tolerate", "token_type", "bearer"),
    "expires_in_string": ("tolerate", "expires_in", "300"),
    "scope_absent": ("tolerate", "scope", None),
    "scope_narrower": ("tolerate", "scope", "system/Patient.rs"),
    "unasked_refresh_token": ("tolerate", "refresh_token", "nobody-asked-for-it"),
}
_SERVICE_MISSING: dict[str, Verdict] = {
    "access_token": "refuse",
    "token_type": "refuse",
    "expires_in": "tolerate",
}

fail_each("client_credentials", _SERVICE_ERRORS)
put_each("client_credentials", _SERVICE_VALUES)
leave_out_each("client_credentials", _SERVICE_MISSING)


@edits("client_credentials_duplicate_member", "refuse", "two access tokens")
def _duplicate_access_token(exchange: Exchange, response: Response) -> Response:
    return answers.with_duplicate(response.get_json(), "access_token", "another-one")

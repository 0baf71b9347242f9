"""Faults of the response to an authorization code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from werkzeug.wrappers import Response

from django_smart.testing.simulator.faults import answers
from django_smart.testing.simulator.faults.registry import (
    Verdict,
    edits_answer,
    edits_json,
    fail_each,
    fail_with,
    leave_out,
    leave_out_each,
    narrow_scope,
    put_each,
    replaces,
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
    "number_patient": ("refuse", "patient", 42),
    "list_patient": ("refuse", "patient", ["42"]),
    "path_patient": ("refuse", "patient", "../Practitioner/1"),
    "dots_patient": ("refuse", "patient", ".."),
    "long_patient": ("refuse", "patient", "p" * 65),
    "text_patient": ("refuse", "patient", "not an id?"),
    "empty_patient": ("refuse", "patient", ""),
    "null_patient": ("refuse", "patient", None),
    "path_encounter": ("refuse", "encounter", "../Patient/1"),
    "list_scope": ("refuse", "scope", ["openid", "patient/*.rs"]),
    "nul": ("refuse", "vendor_note", "a\0b"),
    "half_surrogate": ("refuse", "vendor_note", "\ud83d"),
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
    edits_json("token", f"token_{_member}_absent", "tolerate", f"no {_member}")(
        leave_out(_member)
    )
replaces("token", "token_error_200", "refuse", "an error with status 200")(
    fail_with("invalid_grant", 200)
)
replaces("token", "token_html_400", "refuse", "a web page with status 400")(
    lambda _: answers.html("Bad request", 400)
)
edits_json("token", "token_scope_narrower", "tolerate", "a scope is missing")(
    narrow_scope
)
edits_json("token", "token_scope_wider", "tolerate", "scopes that were not requested")(
    widen_scope
)


@replaces("token", "token_error_markup", "refuse", "an error described with markup")
def _error_markup(exchange: Exchange) -> Response:
    return answers.json_text(
        '{"error": "invalid_grant", "error_description": "<script>alert(1)</script>",'
        ' "error_uri": "javascript:alert(2)"}',
        400,
    )


@edits_answer("token", "token_form_encoded", "refuse", "the response form-encoded")
def _form_encoded(exchange: Exchange, response: Response) -> Response:
    return Response(
        urlencode(response.get_json()), content_type="application/x-www-form-urlencoded"
    )


@edits_answer("token", "token_status_201", "refuse", "status 201")
def _status_201(exchange: Exchange, response: Response) -> Response:
    response.status_code = 201
    return response


@edits_answer("token", "token_duplicate_patient", "refuse", "two patients")
def _duplicate_patient(exchange: Exchange, response: Response) -> Response:
    return answers.with_duplicate(response.get_json(), "patient", "another-one")


@edits_answer("token", "token_nesting", "refuse", "40 nested lists")
def _nesting(exchange: Exchange, response: Response) -> Response:
    return answers.deeply_nested(response.get_json(), depth=40)


@edits_answer(
    "token", "token_endless_expires_in", "refuse", "expires_in has 5,000 digits"
)
def _endless_expires_in(exchange: Exchange, response: Response) -> Response:
    # More than Python makes a number of.
    return answers.with_member(response.get_json(), "expires_in", "9" * 5000)


@edits_answer("token", "token_overflow", "refuse", "a number that is too large")
def _overflow(exchange: Exchange, response: Response) -> Response:
    return answers.with_member(response.get_json(), "vendor_number", "1e999")


@edits_json("token", "token_patient_object", "refuse", "patient is a JSON object")
def _patient_object(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["patient"] = {"reference": f"Patient/{answer.get('patient')}"}


@edits_json("token", "token_patient_reference", "tolerate", "patient is Patient/<id>")
def _patient_reference(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["patient"] = f"Patient/{answer.get('patient')}"


@edits_json("token", "token_expires_in_string", "tolerate", "expires_in is a string")
def _expires_in_string(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["expires_in"] = str(answer["expires_in"])


@edits_json("token", "token_scope_spaces", "tolerate", "spaces around the scopes")
def _scope_spaces(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["scope"] = f" {answer['scope'].replace(' ', '  ')}  "


@edits_json("token", "token_unknown_members", "tolerate", "unknown members")
def _unknown_members(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["__vendor_thing"] = {"deep": [1, None, {"er": True}]}
    answer["https://vendor.example.org/x"] = None

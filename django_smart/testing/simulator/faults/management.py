"""
Faults of token revocation, introspection and dynamic client registration.

A failed revocation changes nothing: the app keeps the tokens and tries again. A failed
introspection says nothing about the token.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

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
    put,
    put_each,
    replaces,
    send,
)

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange

__all__: list[str] = []

# Error, status, and what an app does that has a token to end: one error is about the
# app itself, the others are about the token, and final.
_REVOCATION_ERRORS: dict[str, tuple[int, Verdict]] = {
    "invalid_client": (401, "refuse"),
    "invalid_request": (400, "tolerate"),
    "unauthorized_client": (400, "tolerate"),
    "unsupported_token_type": (400, "tolerate"),
}
_INTROSPECTION_ERRORS = {
    "invalid_client": 401,
    "invalid_request": 400,
    "unauthorized_client": 403,
}
# Member, what it is set to, and what an app does: each is a fault.
_VALUES: dict[str, tuple[Verdict, str, Any]] = {
    "text_active": ("refuse", "active", "true"),
    "number_active": ("refuse", "active", 1),
    "null_active": ("refuse", "active", None),
    "list_scope": ("tolerate", "scope", ["openid"]),
    "number_client_id": ("refuse", "client_id", 7),
    "text_exp": ("refuse", "exp", "tomorrow"),
    "boolean_exp": ("refuse", "exp", True),
    "huge_exp": ("refuse", "exp", 10**19),
    "infinite_exp": ("refuse", "exp", float("inf")),
    "number_iss": ("refuse", "iss", 7),
    "number_sub": ("refuse", "sub", 7),
    "object_fhir_user": ("refuse", "fhirUser", {"reference": "Practitioner/1"}),
    "number_patient": ("refuse", "patient", 4.2),
    "path_patient": ("refuse", "patient", "../Practitioner/1"),
    "other_encounter": ("refuse", "encounter", "another-encounter"),
    "other_subject": ("refuse", "sub", "somebody-else"),
    "inactive": ("tolerate", "active", False),
    "exp_absent": ("tolerate", "exp", None),
    "scope_absent": ("tolerate", "scope", None),
    "patient_absent": ("tolerate", "patient", None),
    "unknown_member": ("tolerate", "__vendor_thing", {"deep": [1, None]}),
}

for _error, (_status, _verdict) in _REVOCATION_ERRORS.items():
    replaces(f"revoke_{_error}", _verdict, f"the error {_error}")(
        send(answers.oauth_error, _error, _status)
    )
fail_each("introspect", _INTROSPECTION_ERRORS)
put_each("introspect", _VALUES)
leave_out_each("introspect", {"active": "refuse"})
edits_json("introspect_other_patient", "refuse", "patient names another patient")(
    name_another_patient
)


@edits("revoke_html_200", "tolerate", "a web page with status 200: success")
def _revoke_html_200(exchange: Exchange, response: Response) -> Response:
    # Its body is of no meaning (RFC 7009 section 2.2).
    return answers.html("Done", 200)


@edits("revoke_204", "tolerate", "status 204: success")
def _revoke_204(exchange: Exchange, response: Response) -> Response:
    return Response(status=204)


@edits("introspect_duplicate_scope", "refuse", "two scopes")
def _duplicate_scope(exchange: Exchange, response: Response) -> Response:
    return answers.with_duplicate(response.get_json(), "scope", "")


# Registration


_METHOD = "token_endpoint_auth_method"

_edits_registration = partial(edits_json, status=201)


replaces("register_not_json", "refuse", "the response is truncated")(
    lambda _: answers.invalid_json()
)
replaces("register_html_200", "refuse", "a web page with status 200")(
    lambda _: answers.html("Welcome", 200)
)
replaces("register_500", "refuse", "status 500")(
    lambda _: answers.html("Server error", 500)
)
replaces("register_redirect_307", "refuse", "307 to another host")(
    lambda one: answers.away(one, 307)
)
replaces("register_refused", "refuse", "unapproved_software_statement")(
    send(answers.oauth_error, "unapproved_software_statement", 400)
)
_edits_registration("register_missing_client_id", "refuse", "no client_id")(
    leave_out("client_id")
)
_edits_registration("register_missing_secret", "refuse", "no client_secret")(
    leave_out("client_secret")
)
_edits_registration(
    "register_unknown_method", "refuse", "token_endpoint_auth_method tls_client_auth"
)(put(_METHOD, "tls_client_auth"))
_edits_registration("register_less_scope", "tolerate", "fewer scopes than requested")(
    narrow_scope
)


@_edits_registration(
    "register_other_redirect_uri",
    "refuse",
    "a redirect URI other than the requested one",
)
def _other_redirect_uri(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["redirect_uris"] = [f"{exchange.ehr.foreign_origin}/callback"]


@_edits_registration(
    "register_other_method", "tolerate", "client_secret_post instead of Basic"
)
def _other_method(exchange: Exchange, answer: dict[str, Any]) -> None:
    if answer[_METHOD] == "client_secret_basic":
        answer[_METHOD] = "client_secret_post"
        clients = exchange.ehr.clients
        client_id = answer["client_id"]
        clients[client_id] = replace(
            clients[client_id], auth_method="client_secret_post"
        )


@_edits_registration(
    "register_secret_ends", "tolerate", "a secret that expires in a day"
)
def _secret_ends(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["client_secret_expires_at"] = int(exchange.ehr.clock()) + 24 * 3600

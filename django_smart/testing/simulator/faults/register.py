"""Faults of dynamic client registration."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from django_smart.testing.simulator.faults import answers
from django_smart.testing.simulator.faults.registry import (
    edits_json,
    fail_with,
    leave_out,
    narrow_scope,
    put,
    replaces,
)

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange

__all__: list[str] = []

_METHOD = "token_endpoint_auth_method"

_edits_answer = partial(edits_json, "register", status=201)


replaces("register", "register_not_json", "refuse", "the response is truncated")(
    lambda _: answers.invalid_json()
)
replaces("register", "register_html_200", "refuse", "a web page with status 200")(
    lambda _: answers.html("Welcome", 200)
)
replaces("register", "register_500", "refuse", "status 500")(
    lambda _: answers.html("Server error", 500)
)
replaces("register", "register_redirect_307", "refuse", "307 to another host")(
    lambda one: answers.away(one, 307)
)
replaces("register", "register_refused", "refuse", "unapproved_software_statement")(
    fail_with("unapproved_software_statement", 400)
)
_edits_answer("register_missing_client_id", "refuse", "no client_id")(
    leave_out("client_id")
)
_edits_answer("register_missing_secret", "refuse", "no client_secret")(
    leave_out("client_secret")
)
_edits_answer(
    "register_unknown_method", "refuse", "token_endpoint_auth_method tls_client_auth"
)(put(_METHOD, "tls_client_auth"))
_edits_answer("register_less_scope", "tolerate", "fewer scopes than requested")(
    narrow_scope
)


@_edits_answer(
    "register_other_redirect_uri",
    "refuse",
    "a redirect URI other than the requested one",
)
def _other_redirect_uri(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["redirect_uris"] = [f"{exchange.ehr.foreign_origin}/callback"]


@_edits_answer(
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


@_edits_answer("register_secret_ends", "tolerate", "a secret that expires in a day")
def _secret_ends(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["client_secret_expires_at"] = int(exchange.ehr.clock()) + 24 * 3600

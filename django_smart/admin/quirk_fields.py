"""The fields of a server's form that its quirks have, with labels and help."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib.admin.widgets import AdminTextareaWidget
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from ..models.server import validate_headers
from ..protocol.quirks import QUIRKS, Quirk

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = ["build_quirk_fields", "get_quirk_help", "get_quirk_label", "read_quirk"]

# By name, which is also the label.
_HELP: dict[str, StrOrPromise] = {
    "aud_rule": _("Value of aud in authorization requests."),
    "discovery_headers": _(
        'For example {"Epic-Client-ID": "{client_id}"}, if the endpoints can '
        "differ between clients: the configuration is then fetched for each."
    ),
    "scope_syntax": _("Version of the scopes that the server understands."),
    "nonce_required": _("Refuse ID tokens without the nonce that was sent."),
    "context_in_access_token": _(
        "Read launch context that is missing in the token response from the access "
        "token, a JWT signed with the same keys as ID tokens."
    ),
    "patient_from_fhir_user": _(
        "If the server names no patient and fhirUser is a Patient, use that "
        "patient. Turn this on only if the vendor documents it: for a parent who "
        "opens a child's record, it would be the wrong patient."
    ),
    "basic_credentials": _(
        "How client ID and secret are encoded for client_secret_basic."
    ),
    "assertion_audience": _(
        "The value of aud. The token endpoint's URL is only used for endpoints at "
        "the same origin."
    ),
    "client_id_with_assertion": _(
        "Send client_id with client assertions, for servers that require it."
    ),
    "send_scope_on_refresh": _(
        "Send the granted scope with refresh requests, for servers that require it."
    ),
    "introspection_mode": _("How introspection requests authenticate."),
    "rp_initiated_logout": _(
        "Sign-out sends the browser to the server's end_session_endpoint."
    ),
    "bearer_boundary": _("URLs that may receive the access token."),
    "authorize_in_frame": _("If off, launches in a frame continue in a new window."),
    "refresh_token_lifetime": _(
        "Lifetime of refresh tokens as the vendor documents it, if the EHR does "
        "not send it. Grants then have an end, which a new refresh token moves."
    ),
    "rate_limit": _(
        "Most refresh requests per second from all workers together, such as 10, "
        "or 0.16 for ten per minute. Empty for no limit."
    ),
}
_CHOICES: dict[str, Mapping[str, StrOrPromise]] = {
    "aud_rule": {
        "as_received": _(
            "the iss of the launch as received, or else the base URL without "
            "a trailing slash"
        ),
        "base_url": _("the base URL, exactly as entered here"),
    },
    "scope_syntax": {
        "v2": _("version 2 (patient/Observation.rs)"),
        "v1": _("version 1 (patient/Observation.read)"),
    },
    "basic_credentials": {
        "raw": _("unencoded"),
        "form_encoded": _("form-encoded (RFC 6749)"),
    },
    "assertion_audience": {
        "endpoint": _("the URL that the assertion is sent to"),
        "token_endpoint": _("the token endpoint's URL"),
    },
    "introspection_mode": {
        "auto": _("as the server advertises, or else with an access token"),
        "client": _("with the client's credentials"),
    },
    "bearer_boundary": {
        "base": _("the base URL and everything below it"),
        "origin": _("the complete origin of the base URL"),
    },
}


def build_quirk_fields() -> dict[str, forms.Field]:
    """Return the fields, by the name of the quirk."""
    return {name: _build_field(quirk) for name, quirk in QUIRKS.items()}


def get_quirk_label(name: str) -> str:
    """Return what the form calls the quirk."""
    return capfirst(name.replace("_", " "))


def get_quirk_help(name: str) -> StrOrPromise:
    """Return what the form says of the quirk."""
    return _HELP[name]


def read_quirk(value: Any) -> Any:
    """Return the *value* of a field as JSON has it."""
    if value in ("", {}):
        return None
    return value.total_seconds() if isinstance(value, timedelta) else value


def _build_field(quirk: Quirk) -> forms.Field:
    words: dict[str, Any] = {
        "label": get_quirk_label(quirk.name),
        "help_text": get_quirk_help(quirk.name),
        "required": False,
        "initial": quirk.default,
    }
    if quirk.choices:
        names = _CHOICES[quirk.name]
        return forms.ChoiceField(
            choices=[(value, names[value]) for value in quirk.choices], **words
        )
    if quirk.type is dict:
        widget = AdminTextareaWidget(attrs={"rows": 2})
        return forms.JSONField(widget=widget, validators=[validate_headers], **words)
    if quirk.type is float:
        return forms.FloatField(min_value=0.001, **words)
    if quirk.type is timedelta:
        return forms.DurationField(**words)
    return forms.BooleanField(**words)

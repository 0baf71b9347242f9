"""What the columns of a server may hold."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from ..conf import conf
from ..exceptions import SMARTError
from ..protocol.urls import normalize_base_url, validate_https_url

__all__ = [
    "validate_base_url",
    "validate_endpoint",
    "validate_headers",
    "validate_origins",
]


def _validate_url(value: str, *, what: str) -> None:
    try:
        validate_https_url(
            value, insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS, what=what
        )
    except SMARTError as exc:
        raise ValidationError(str(exc), code=exc.code) from exc


def validate_base_url(value: str) -> None:
    """Refuse what is no FHIR base URL."""
    _validate_url(value, what="base_url")
    try:
        normalize_base_url(value)
    except SMARTError as exc:
        raise ValidationError(str(exc), code=exc.code) from exc


def validate_endpoint(value: str) -> None:
    """Refuse what no request may go to."""
    _validate_url(value, what="endpoint")


def validate_headers(value: object) -> None:
    """Refuse what cannot be sent as headers."""
    if not isinstance(value, dict) or not all(
        isinstance(item, str) and item.isascii() and item.isprintable()
        for pair in value.items()
        for item in pair
    ):
        raise ValidationError(
            _("Headers are an object of printable ASCII strings."), code="headers"
        )


def validate_origins(value: object) -> None:
    """Refuse what is no list of origins."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValidationError(_("Origins are a list of strings."), code="origins")
    for origin in value:
        _validate_url(origin, what="frame origin")
        if origin.count("/") != 2 or ";" in origin or "," in origin:
            raise ValidationError(
                _("%(origin)s is not an origin: scheme, host and port, no path."),
                code="origins",
                params={"origin": origin},
            )

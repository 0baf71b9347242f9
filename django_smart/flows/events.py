"""Fields of log lines: which of our rows a line is about (``extra``)."""

from __future__ import annotations

from ..models import FHIRServer, TokenGrant

__all__ = ["describe_grant", "describe_server"]


def describe_grant(
    event: str, grant: TokenGrant, *, error_code: str = ""
) -> dict[str, object]:
    """Primary keys and codes; nothing that the EHR or a person wrote."""
    return {
        **describe_server(event, grant.registration.server, error_code=error_code),
        "smart_registration": grant.registration_id,
        "smart_grant": grant.pk,
    }


def describe_server(
    event: str, server: FHIRServer, *, error_code: str = ""
) -> dict[str, object]:
    """The same of a line that is about no grant."""
    return {"smart_event": event, "smart_server": server.pk, "smart_error": error_code}

"""The simulated EHR's errors, and their responses."""

from __future__ import annotations

from typing import Any

__all__ = [
    "AuthorizationError",
    "AuthorizationPageError",
    "FHIRError",
    "OAuthError",
    "build_outcome",
]


class OAuthError(Exception):
    """
    An error response of the token, revocation or introspection endpoint.

    Without an error code, its body is empty.

    Spec: RFC 6749 section 5.2.
    """

    def __init__(
        self, error: str, description: str, *, status: int = 400, basic: bool = False
    ) -> None:
        super().__init__(f"{error}: {description}")
        self.error = error
        self.description = description
        self.status = status
        self.basic = basic
        """The client tried HTTP Basic, so the response names that scheme."""


class AuthorizationError(Exception):
    """
    An authorization error that is sent to the app's redirect URI.

    Spec: RFC 6749 section 4.1.2.1.
    """

    def __init__(
        self, error: str, description: str, *, redirect_uri: str, state: str | None
    ) -> None:
        super().__init__(f"{error}: {description}")
        self.error = error
        self.description = description
        self.redirect_uri = redirect_uri
        self.state = state


class AuthorizationPageError(Exception):
    """
    An authorization error that must not be sent as a redirect.

    The client or its redirect URI is unknown, so the user sees an error page.

    Spec: RFC 6749 section 4.1.2.1.
    """


class FHIRError(Exception):
    """A FHIR error, with an ``OperationOutcome`` in the response."""

    def __init__(
        self, status: int, code: str, diagnostics: str, *, challenge: str = ""
    ) -> None:
        super().__init__(f"{status} {code}: {diagnostics}")
        self.status = status
        self.code = code
        self.diagnostics = diagnostics
        self.challenge = challenge
        """Value for ``WWW-Authenticate``, if any (RFC 6750 section 3)."""


def build_outcome(severity: str, code: str, **members: str) -> dict[str, Any]:
    """Return an ``OperationOutcome`` with one issue."""
    issue = {"severity": severity, "code": code, **members}
    return {"resourceType": "OperationOutcome", "issue": [issue]}

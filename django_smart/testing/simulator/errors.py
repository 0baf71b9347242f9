"""What the simulated EHR refuses, and how it says so."""

from __future__ import annotations

__all__ = [
    "AuthorizationError",
    "AuthorizationPageError",
    "FHIRError",
    "OAuthError",
    "SimulatorError",
]


class SimulatorError(Exception):
    """Root of the simulator's refusals."""


class OAuthError(SimulatorError):
    """
    An error answer of the token, revocation or introspection endpoint.

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
        """The client tried HTTP Basic, so the answer names that scheme."""


class AuthorizationError(SimulatorError):
    """
    An authorization request that is answered to the app's redirect URI.

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


class AuthorizationPageError(SimulatorError):
    """
    An authorization request that may not be answered by a redirect.

    The client or its redirect URI is not known, so the person is told on a page.

    Spec: RFC 6749 section 4.1.2.1.
    """


class FHIRError(SimulatorError):
    """A FHIR request that is answered with an ``OperationOutcome``."""

    def __init__(
        self, status: int, code: str, diagnostics: str, *, challenge: str = ""
    ) -> None:
        super().__init__(f"{status} {code}: {diagnostics}")
        self.status = status
        self.code = code
        self.diagnostics = diagnostics
        self.challenge = challenge
        """Value for ``WWW-Authenticate``, if any (RFC 6750 section 3)."""

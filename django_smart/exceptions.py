"""
The errors that this package raises.

The branches of the tree; the classes follow in this order::

    SMARTError
    ├── LaunchRequestError              an unusable launch or sign-in request
    ├── TransportError                  no usable response
    ├── DiscoveryError
    ├── AuthorizationResponseError      the browser returned with an unusable response
    │   └── StateError
    ├── TokenError
    ├── IDTokenError
    ├── IdentityError                   a proven identity that may not sign in
    ├── GrantError                      no usable access token
    ├── ScopeError
    ├── NoLaunchError
    ├── RegistrationError               dynamic registration
    ├── CredentialsError                the registration's secret or key
    ├── BrandError                      a bundle of user-access brands
    └── FHIRError
        ├── FHIRRequestError            refused before anything was sent
        │   └── AppStateError
        ├── FHIRStatusError             the server returned status 4xx or 5xx
        │   └── FHIRConflictError
        └── MalformedFHIRResponseError  the response is not what was requested

Invalid configuration raises :class:`django.core.exceptions.ImproperlyConfigured`,
which is outside this tree.  No message contains a token, a secret, a body or patient
data.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ClassVar

from django_smart.diagnoses import DIAGNOSES

on_error: ContextVar[Callable[[SMARTError], None] | None]
on_error = ContextVar("on_error", default=None)
"""Called with each error of a request, because templates can hide errors."""


class SMARTError(Exception):
    """
    Root of the tree.

    Attributes:
        code: stable identifier, stored in ``Launch.error_code`` and in log lines;
            :mod:`django_smart.diagnoses` says what each means.
        codes: other codes that an error of this class can have.
    """

    code: str = "smart_error"
    codes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *args: object, code: str = "", **data: Any) -> None:
        """
        Create the error.

        Args:
            args: the message.
            code: one of ``codes``, instead of the class's own.
            data: the attributes of the class.
        """
        super().__init__(*args)
        vars(self).update(data)
        if code:
            if code not in self.codes:
                raise ValueError(f"{type(self).__name__} has no code {code!r}.")
            self.code = code
        if (tell := on_error.get()) is not None:
            tell(self)

    @property
    def http_status(self) -> int:
        """Status of the page that reports the error."""
        known = DIAGNOSES.get(self.code)
        return known.status if known else 400

    def __reduce__(self) -> tuple[object, ...]:
        # __init__() takes more than args; what cannot be unpickled, Celery reports as
        # a parent class.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class LaunchRequestError(SMARTError):
    """A parameter of the launch is missing, empty, repeated or too long (EHRL-01)."""

    code = "missing_parameter"
    codes = frozenset(
        {
            "unknown_server",
            "decision_unknown",
            "decision_expired",
            "decision_declined",
            "form_outdated",
        }
    )


class InactiveRegistrationError(LaunchRequestError):
    """The server or its client registration is inactive or incomplete."""

    code = "registration_inactive"


class UnsupportedServerError(LaunchRequestError):
    """The server does not support what the registration needs; see the message."""

    code = "server_unsupported"


class PrefixError(LaunchRequestError):
    """No launch has the key in the URL, or this browser cannot use it."""

    code = "launch_unknown"
    codes = frozenset(
        {"launch_ended", "launch_foreign", "launch_signed_out", "launch_without_user"}
    )


class TransportError(SMARTError):
    """A request got no usable response."""

    codes = frozenset({"address_refused", "redirect_refused"})


class InsecureURLError(TransportError):
    """The URL is not https, or contains user information (SEC-04)."""

    code = "insecure_url"


class ServerUnreachableError(TransportError):
    """
    The connection failed, or the server's certificate is not trusted.

    Attributes:
        is_untrusted: whether the certificate was the reason.
    """

    code = "server_unreachable"
    is_untrusted: bool = False


class ServerTimeoutError(TransportError):
    """The server exceeded the limit to connect, to read or for the whole call."""

    code = "server_timeout"


class ResponseTooLargeError(TransportError):
    """The decompressed body is larger than 10 MiB, or another limit of the call."""

    code = "response_too_large"


class DiscoveryError(SMARTError):
    """The configuration is not JSON, or a member is missing, invalid or unsafe."""

    code = "discovery_malformed"
    codes = frozenset({"discovery_busy"})


class DiscoveryStatusError(DiscoveryError):
    """The request for the SMART configuration returned a status other than 200."""

    code = "discovery_status"
    status_code: int


class ServerMovedError(DiscoveryError):
    """Issuer, key URL or token endpoint changed, and an operator has to approve it."""

    code = "server_moved"


class AuthorizationResponseError(SMARTError):
    """``code`` and ``error`` are both missing or present, repeated or too long."""

    code = "authorization_response_malformed"
    codes = frozenset({"issuer_mismatch", "issuer_not_known"})


class StateError(AuthorizationResponseError):
    """No launch was started with this ``state``, or there is none (CALL-01)."""

    code = "state_unknown"
    codes = frozenset(
        {"state_expired", "state_failed", "callback_mismatch", "state_foreign"}
    )


class StateUsedError(StateError):
    """The ``state`` was already used, or another request is using it (CALL-03)."""

    code = "state_used"


class AuthorizationDeniedError(AuthorizationResponseError):
    """
    The user or the EHR denied access: ``error=access_denied``.

    Attributes:
        error: any other value has the code ``authorization_refused``.
        error_description, error_uri: as sent, or empty; do not log them.
    """

    code = "access_denied"
    codes = frozenset({"authorization_refused"})

    def __init__(
        self,
        message: str,
        *,
        error: str = "access_denied",
        error_description: str = "",
        error_uri: str = "",
    ) -> None:
        denied = error == "access_denied"
        super().__init__(message, code="" if denied else "authorization_refused")
        self.error = error
        self.error_description = error_description
        self.error_uri = error_uri


class TokenError(SMARTError):
    """The token endpoint returned nothing usable."""

    codes = frozenset(
        {
            "patient_missing",
            "tokens_not_stored",
            "deployment_not_adopted",
            "grants_refused",
        }
    )


class TokenResponseError(TokenError):
    """
    The token endpoint returned an OAuth error (RFC 6749, section 5.2).

    Attributes:
        error: the registered error code, such as ``invalid_grant``.
        error_description, error_uri: as sent, or empty; do not log them.
        status_code: HTTP status of the response.
    """

    code = "token_refused"

    # RFC 6749; OpenID Connect's tell that the user has to act.
    FINAL = (
        *("invalid_grant", "consent_required"),
        *("interaction_required", "login_required"),
    )

    error: str
    error_description: str = ""
    error_uri: str = ""
    status_code: int = 400

    @property
    def is_final(self) -> bool:
        """
        Whether the grant itself has ended, so that retrying cannot help.

        Spec: RFC 6749 section 5.2; OpenID Connect Core 1.0 section 3.1.2.6.
        """
        return self.error in self.FINAL


class TokenServerError(TokenError):
    """
    The token endpoint failed: status 429 or 5xx, or 4xx without an OAuth error.

    Attributes:
        status_code: HTTP status of the response.
        retry_after: seconds the server asked to wait, or ``None``.
    """

    code = "token_server_error"
    status_code: int
    retry_after: float | None = None


class MalformedTokenResponseError(TokenError):
    """The response is not JSON, or a member is missing or invalid (RESP-01)."""

    code = "token_response_malformed"


class IDTokenError(SMARTError):
    """The ID token is missing, or is not a signed JWT in compact form."""

    code = "id_token_invalid"


class IDTokenSignatureError(IDTokenError):
    """The signature is invalid, or its algorithm is not allowed."""

    code = "id_token_signature"
    codes = frozenset({"id_token_key_unknown"})


class IDTokenClaimError(IDTokenError):
    """
    A claim is missing or wrong.

    Attributes:
        claim: name of the claim.
    """

    code = "id_token_claim"
    claim: str


class IdentityError(SMARTError):
    """No user has this identity and none can be created, or a hook refused."""

    code = "user_refused"
    codes = frozenset(
        {"identity_in_use", "user_inactive", "user_changed", "user_signed_out"}
    )


class GrantError(SMARTError):
    """There is no usable access token."""

    codes = frozenset({"refresh_busy"})


class NoGrantError(GrantError):
    """No grant matches."""

    code = "grant_missing"


class AmbiguousGrantError(GrantError):
    """More than one grant matches."""

    code = "grant_ambiguous"


class ReauthorizationRequiredError(GrantError):
    """The EHR has ended the grant; its owner has to connect again."""

    code = "grant_lost"


class RefreshInTransactionError(GrantError):
    """What must be stored cannot be, inside ``atomic()`` on SQLite or a locked row."""

    code = "refresh_in_transaction"


class ContextChangedError(GrantError):
    """A refresh named another patient, encounter or user; the launch was ended."""

    code = "context_changed"


class RecordBusyError(GrantError):
    """Another process reads this record; see ``django_smart.contrib.records``."""

    code = "record_busy"


class ScopeError(SMARTError):
    """A scope is invalid or insufficient."""


class ScopeSyntaxError(ScopeError):
    """
    A scope does not follow the grammar (SCOPE-01).

    Attributes:
        scope: the invalid scope.
    """

    code = "scope_syntax"
    scope: str = ""


class InsufficientScopeError(ScopeError):
    """
    The EHR granted less than required.

    Attributes:
        missing: the missing scopes, as a scope string.
    """

    code = "scope_insufficient"
    missing: str


class NoLaunchError(SMARTError):
    """This request has no launch, or more than one launch matches."""

    code = "no_launch"


class RegistrationError(SMARTError):
    """The response is not a registration, or registers a different client."""

    code = "registration_failed"


class RegistrationRefusedError(RegistrationError):
    """
    The registration endpoint returned an error (RFC 7591, section 3.2.2).

    Attributes:
        error: code such as ``invalid_redirect_uri``, or empty.
        error_description: as sent, or empty; safe to show.
        status_code: HTTP status of the response.
    """

    error: str = ""
    error_description: str = ""
    status_code: int = 400


class CredentialsError(SMARTError):
    """The registration's secret or key is missing or unusable."""

    code = "credentials_unusable"


class KeyRotationError(CredentialsError):
    """The signing keys were not changed; the message says what to do first."""

    code = "key_rotation"


class BrandError(SMARTError):
    """The bundle of user-access brands is unusable; stored brands are kept."""

    code = "brands_malformed"


class FHIRError(SMARTError):
    """Base class for errors in FHIR interactions."""


class FHIRRequestError(FHIRError):
    """The request was not sent because an id, type, URL or argument is invalid."""

    code = "fhir_request_invalid"
    codes = frozenset({"fhir_not_allowed", "fhir_sync_in_async"})


class BearerBoundaryError(FHIRRequestError):
    """The access token may not be sent to this URL (FHIR-02)."""

    code = "bearer_boundary"


class ForeignPatientError(FHIRRequestError):
    """
    It is not certain that the data belongs to the patient of the ``patient/`` scopes.

    Either the request was not sent, or the server's response was discarded.
    """

    code = "patient_foreign"


class TooManyResultsError(FHIRError):
    """More results than ``search()`` loads, or larger ones: use ``iterate()``."""

    code = "too_many_results"


class AppStateError(FHIRRequestError):
    """The app state breaks a rule; nothing was sent."""

    code = "app_state_invalid"


class AppStateUnsupportedError(AppStateError):
    """The server does not support app state (STATE-03)."""

    code = "app_state_unsupported"


class FHIRStatusError(FHIRError):
    """
    The server returned a status of 400 or above.

    Attributes:
        status_code: HTTP status.
        issues: ``OperationOutcome.issue`` as received, or an empty list.  Can contain
            patient data: show it only to the user it belongs to, and do not log it.
        media_type: of the response, without parameters.
        retry_after: seconds, or ``None``.
        request_id: identifies the request in the server's log: the response's
            ``X-Request-Id``, or else the one that was sent.
    """

    code = "fhir_status"

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        issues: list[dict[str, object]] | None = None,
        media_type: str = "",
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.issues = issues or []
        self.media_type = media_type
        self.retry_after = retry_after
        self.request_id = request_id


class FHIRUnauthorizedError(FHIRStatusError):
    """Status 401, even after a refresh."""

    code = "fhir_unauthorized"


class FHIRForbiddenError(FHIRStatusError):
    """Status 403: the granted scopes or the user's own permissions do not allow it."""

    code = "fhir_forbidden"


class FHIRNotFoundError(FHIRStatusError):
    """Status 404 or 410: the resource does not exist, was deleted or is not shared."""

    code = "fhir_not_found"


class FHIRConflictError(FHIRStatusError):
    """Status 409: someone else changed the resource, or other resources refer to it."""

    code = "fhir_conflict"


class FHIRPreconditionFailedError(FHIRConflictError):
    """Status 412: the resource has changed since the ``If-Match`` version."""


class FHIRUnavailableError(FHIRStatusError):
    """Status 429 or 5xx: trying again may help, after ``retry_after`` seconds."""

    code = "fhir_unavailable"


class MalformedFHIRResponseError(FHIRError):
    """
    The response is not the requested FHIR JSON.

    Attributes:
        status_code: HTTP status.
        issues: ``OperationOutcome.issue``, if the server sent one instead; see
            :class:`FHIRStatusError`.
        media_type: of the response, without parameters.
    """

    code = "fhir_response_malformed"

    def __init__(
        self,
        message: str,
        *,
        status_code: int = 200,
        issues: list[dict[str, object]] | None = None,
        media_type: str = "",
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.issues = issues or []
        self.media_type = media_type


class ReplacedPatientError(MalformedFHIRResponseError):
    """
    The read of a patient returned another one, perhaps after both were merged.

    A new launch or connection names the patient that remains.
    """

    code = "patient_replaced"


__all__ = [
    name
    for name, value in vars().items()
    if isinstance(value, type) and issubclass(value, SMARTError)
]

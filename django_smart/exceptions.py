"""
Every error this package raises on purpose.

The branches of the tree; the classes follow in this order::

    SMARTError
    ├── LaunchRequestError              a launch or sign-in request we do not act on
    │   └── PrefixError                 the launch that the URL names is unavailable
    ├── TransportError                  no usable answer came
    ├── DiscoveryError
    ├── AuthorizationResponseError      the browser came back with something wrong
    │   └── StateError
    ├── TokenError
    ├── IDTokenError
    │   └── IDTokenSignatureError
    ├── IdentityError                   the identity is proven, but may not sign in
    ├── GrantError                      no usable access token
    ├── ScopeError
    ├── NoLaunchError
    ├── RegistrationError               dynamic registration
    ├── CredentialsError                the registration's secret or key
    ├── BrandError                      a bundle of user-access brands
    ├── TaskLaunchError                 a Task that asks for a launch
    └── FHIRError
        ├── FHIRRequestError            refused before anything was sent
        │   └── AppStateError
        └── FHIRStatusError             the server answered with 4xx or 5xx
            └── FHIRUnavailableError

Wrong configuration raises :class:`django.core.exceptions.ImproperlyConfigured`,
outside this tree.  No message holds a token, a secret, a body or patient data.
"""

from __future__ import annotations

from typing import ClassVar


class SMARTError(Exception):
    """
    Root of the tree.

    Attributes:
        code: stable identifier, stored on ``Launch.error_code`` and in log lines.
        http_status: what a page that reports the error answers with.
        codes: further codes that an error of this class may be raised with, each with
            its ``http_status`` and meaning.
    """

    code: str = "smart_error"
    http_status: int = 400
    codes: ClassVar[dict[str, tuple[int, str]]] = {}

    def __init__(self, *args: object, code: str = "") -> None:
        super().__init__(*args)
        if code:
            self.http_status, _ = self.codes[code]  # no other code can be raised
            self.code = code


class LaunchRequestError(SMARTError):
    """A launch or sign-in request that we do not act on."""

    code = "launch_request_invalid"
    codes = {
        "unknown_server": (
            400,
            "No FHIR server is registered under this base URL or name (EHRL-06).",
        ),
    }


class MissingParameterError(LaunchRequestError):
    """``iss`` or ``launch`` is missing, empty, repeated or unusable (EHRL-01)."""

    code = "missing_parameter"

    def __init__(self, message: str, *, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class InactiveRegistrationError(LaunchRequestError):
    """The server or its client registration is switched off or incomplete."""

    code = "registration_inactive"
    http_status = 403


class UnsupportedServerError(LaunchRequestError):
    """The server lacks what the registration needs; the message names it."""

    code = "server_unsupported"
    http_status = 502


class PrefixError(LaunchRequestError):
    """The launch named by the URL cannot be used by this browser."""

    code = "launch_unavailable"
    http_status = 404
    codes = {
        "launch_unknown": (404, "No launch has the key that the URL names."),
        "launch_foreign": (403, "It belongs to another browser or to another user."),
    }


class EndedLaunchError(PrefixError):
    """The launch was ended, by sign-out, by time or by a change of user."""

    code = "launch_ended"
    http_status = 410


class TransportError(SMARTError):
    """A request got no answer that could be used."""

    code = "transport_failed"
    http_status = 502


class InsecureURLError(TransportError):
    """The URL is not https, or carries user information (SEC-04)."""

    code = "insecure_url"


class ServerUnreachableError(TransportError):
    """
    No connection, a broken one, or a certificate that does not verify.

    Attributes:
        is_untrusted: whether it was the certificate.
    """

    code = "server_unreachable"
    http_status = 503

    def __init__(self, message: str, *, is_untrusted: bool = False) -> None:
        super().__init__(message)
        self.is_untrusted = is_untrusted


class ServerTimeoutError(TransportError):
    """The server took longer than the connect, read or whole-call limit."""

    code = "server_timeout"
    http_status = 503


class ResponseTooLargeError(TransportError):
    """The body is larger than allowed after decompression (``SMART_MAX_BODY``)."""

    code = "response_too_large"


class RedirectRefusedError(TransportError):
    """The server answered with a redirect where none is followed."""

    code = "redirect_refused"


class DiscoveryError(SMARTError):
    """The server's SMART configuration could not be used."""

    code = "discovery_failed"
    http_status = 502


class DiscoveryStatusError(DiscoveryError):
    """The configuration was answered with another status than 200."""

    code = "discovery_status"

    def __init__(self, message: str, *, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


class MalformedDiscoveryError(DiscoveryError):
    """Not a JSON object, or a member is missing, of a wrong type or unsafe."""

    code = "discovery_malformed"


class IssuerDisputedError(DiscoveryError):
    """Issuer, key URL or token endpoint moved, or another server names it too."""

    code = "issuer_disputed"


class AuthorizationResponseError(SMARTError):
    """What the browser brought to the redirect URI is not usable."""

    code = "authorization_response_invalid"
    codes = {
        "issuer_mismatch": (
            400,
            "``iss`` of RFC 9207 is missing though promised, or names another server.",
        ),
        "issuer_not_known": (
            400,
            "``iss`` of RFC 9207 came, and there is no issuer to compare it with.",
        ),
    }


class StateError(AuthorizationResponseError):
    """The ``state`` does not lead to a pending launch of this browser (CALL-01)."""

    code = "state_invalid"
    codes = {
        "state_missing": (400, "There is no ``state``, or more than one."),
        "state_unknown": (400, "No launch was started with this ``state``."),
        "state_expired": (400, "The launch was started too long ago."),
        "callback_mismatch": (
            400,
            "The response came to the redirect URI of another registration (CALL-09).",
        ),
        "state_foreign": (
            403,
            "Another browser started the launch, or cookies were lost (CALL-02).",
        ),
    }


class StateUsedError(StateError):
    """The ``state`` was used before (CALL-03)."""

    code = "state_used"
    http_status = 409


class AuthorizationDeniedError(AuthorizationResponseError):
    """
    The person or the EHR said no: ``error=access_denied``.

    Attributes:
        error: another value has the code ``authorization_refused``.
        error_description, error_uri: as sent, not to be logged; empty if absent.
    """

    code = "access_denied"
    http_status = 403
    codes = {
        "authorization_refused": (
            400,
            "The EHR answered with another ``error`` of RFC 6749 section 4.1.2.1.",
        ),
    }

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


class MalformedAuthorizationResponseError(AuthorizationResponseError):
    """Neither ``code`` nor ``error``, both, repeated or oversized parameters."""

    code = "authorization_response_malformed"


class TokenError(SMARTError):
    """The token endpoint gave nothing that can be used."""

    code = "token_failed"
    http_status = 502
    codes = {
        "patient_missing": (
            502,
            "Scopes for one patient were granted, and no patient was named (RESP-19).",
        ),
    }


class TokenResponseError(TokenError):
    """
    The token endpoint answered with an OAuth error (RFC 6749 section 5.2).

    Attributes:
        error: the registered error code, such as ``invalid_grant``.
        error_description, error_uri: as sent, not to be logged; empty if absent.
        status_code: HTTP status of the answer.
    """

    code = "token_refused"
    http_status = 400

    def __init__(
        self,
        message: str,
        *,
        error: str,
        error_description: str = "",
        error_uri: str = "",
        status_code: int = 400,
    ) -> None:
        super().__init__(message)
        self.error = error
        self.error_description = error_description
        self.error_uri = error_uri
        self.status_code = status_code

    @property
    def is_final(self) -> bool:
        """Whether the grant itself is gone, so that trying again is of no use."""
        return self.error == "invalid_grant"


class TokenServerError(TokenError):
    """
    The token endpoint failed: a status of 429 or 5xx, or a page in place of JSON.

    Attributes:
        status_code: HTTP status of the answer.
        retry_after: seconds the server asked to wait, or ``None``.
    """

    code = "token_server_error"

    def __init__(
        self, message: str, *, status_code: int, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.retry_after = retry_after


class MalformedTokenResponseError(TokenError):
    """Not a JSON object, or a member is missing or of a wrong type (RESP-01)."""

    code = "token_response_malformed"


class IDTokenError(SMARTError):
    """The ID token does not prove who the user is (OpenID Connect Core 3.1.3.7)."""

    code = "id_token_invalid"
    http_status = 502
    codes = {
        "id_token_missing": (502, "``openid`` was granted, and no ID token came."),
    }


class MalformedIDTokenError(IDTokenError):
    """Not a signed JWT in compact form."""

    code = "id_token_malformed"


class IDTokenSignatureError(IDTokenError):
    """The signature does not verify, or its algorithm is not allowed."""

    code = "id_token_signature"


class UnknownSigningKeyError(IDTokenSignatureError):
    """No key of the server's set fits the token; the set may be outdated."""

    code = "id_token_key_unknown"


class IDTokenClaimError(IDTokenError):
    """
    A claim is missing or wrong.

    Attributes:
        claim: name of the claim.
    """

    code = "id_token_claim"

    def __init__(self, message: str, *, claim: str) -> None:
        super().__init__(message)
        self.claim = claim


class IdentityError(SMARTError):
    """The identity is proven, but may not sign anybody in."""

    code = "identity_refused"
    http_status = 403
    codes = {
        "user_changed": (409, "Another user is signed in than when this began."),
    }


class IdentityInUseError(IdentityError):
    """It is linked to another user of this site."""

    code = "identity_in_use"
    http_status = 409


class UserInactiveError(IdentityError):
    """The user of this identity is deactivated."""

    code = "user_inactive"


class UserRefusedError(IdentityError):
    """No user has this identity and none may be created, or a hook refused."""

    code = "user_refused"


class GrantError(SMARTError):
    """There is no access token that could be used."""

    code = "grant_unusable"
    http_status = 503


class NoGrantError(GrantError):
    """No grant matches."""

    code = "grant_missing"
    http_status = 403


class AmbiguousGrantError(GrantError):
    """More than one grant matches; nothing is guessed."""

    code = "grant_ambiguous"
    http_status = 409


class ReauthorizationRequiredError(GrantError):
    """The grant has ended at the EHR; its owner has to connect again."""

    code = "grant_lost"
    http_status = 403


class RefreshBusyError(GrantError):
    """Another process is refreshing the grant and did not finish in time."""

    code = "refresh_busy"


class RefreshInTransactionError(GrantError):
    """A refresh was needed inside ``atomic()``, on SQLite or with its rows locked."""

    code = "refresh_in_transaction"


class ContextChangedError(GrantError):
    """A refresh named another patient, encounter or user; the launch was ended."""

    code = "context_changed"
    http_status = 409


class ScopeError(SMARTError):
    """A scope is wrong or not enough."""

    code = "scope_invalid"


class ScopeSyntaxError(ScopeError):
    """
    A scope does not follow the grammar (SCOPE-01).

    Attributes:
        scope: the offending item.
    """

    code = "scope_syntax"

    def __init__(self, message: str, *, scope: str = "") -> None:
        super().__init__(message)
        self.scope = scope


class InsufficientScopeError(ScopeError):
    """
    The EHR granted less than is needed.

    Attributes:
        missing: the scopes that are not covered, as a scope string.
    """

    code = "scope_insufficient"
    http_status = 403

    def __init__(self, message: str, *, missing: str) -> None:
        super().__init__(message)
        self.missing = missing


class NoLaunchError(SMARTError):
    """There is no launch for this request, or choosing one would be a guess."""

    code = "no_launch"
    http_status = 403


class RegistrationError(SMARTError):
    """The server did not register this client; nothing is stored."""

    code = "registration_failed"
    http_status = 502


class RegistrationRefusedError(RegistrationError):
    """
    The registration endpoint answered with an error (RFC 7591 section 3.2.2).

    Attributes:
        error: code such as ``invalid_redirect_uri``; empty if none came.
        error_description: as sent, fit to be shown; empty if absent.
        status_code: HTTP status of the answer.
    """

    code = "registration_refused"

    def __init__(
        self,
        message: str,
        *,
        error: str = "",
        error_description: str = "",
        status_code: int = 400,
    ) -> None:
        super().__init__(message)
        self.error = error
        self.error_description = error_description
        self.status_code = status_code


class MalformedRegistrationResponseError(RegistrationError):
    """Not a registration, or one of another client than was asked for."""

    code = "registration_malformed"


class CredentialsError(SMARTError):
    """The registration's secret or key is missing or unusable."""

    code = "credentials_unusable"
    http_status = 503


class KeyRotationError(CredentialsError):
    """The signing keys were left as they are; the message says what to do first."""

    code = "key_rotation"
    http_status = 409


class BrandError(SMARTError):
    """A bundle of user-access brands could not be used; what is stored stays."""

    code = "brands_failed"
    http_status = 502


class BrandStatusError(BrandError):
    """
    The bundle was answered with another status than 200 or 304.

    Attributes:
        status_code: HTTP status.
    """

    code = "brands_status"

    def __init__(self, message: str, *, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


class MalformedBrandError(BrandError):
    """Not a collection of organisations and endpoints, or one that is unusable."""

    code = "brands_malformed"


class TaskLaunchError(SMARTError):
    """A Task does not lead to a launch."""

    code = "task_launch_invalid"


class MalformedTaskError(TaskLaunchError):
    """The Task is not of the profiles for a launch (TASK-01, TASK-02)."""

    code = "task_malformed"


class ForeignTaskURLError(TaskLaunchError):
    """The Task asks for an address that is none of this app's (TASK-05)."""

    code = "task_url_foreign"
    http_status = 403


class FHIRError(SMARTError):
    """Root of everything that goes wrong with a FHIR interaction."""

    code = "fhir_failed"
    http_status = 502


class FHIRRequestError(FHIRError):
    """The request was not sent: an id, type or URL is not usable."""

    code = "fhir_request_invalid"
    http_status = 400


class BearerBoundaryError(FHIRRequestError):
    """The URL lies outside the place the access token may be sent to (FHIR-02)."""

    code = "bearer_boundary"
    http_status = 502


class ForeignPatientError(FHIRRequestError):
    """Another patient than the one that the ``patient/`` scopes were granted for."""

    code = "patient_foreign"
    http_status = 403


class AppStateError(FHIRRequestError):
    """App state that the rules do not allow; nothing was sent."""

    code = "app_state_invalid"


class AppStateUnsupportedError(AppStateError):
    """The server does not offer to keep app state (STATE-03)."""

    code = "app_state_unsupported"
    http_status = 502


class AppStateTooLargeError(AppStateError):
    """The state is larger than ``SMART_APP_STATE_MAX_SIZE`` (STATE-06)."""

    code = "app_state_too_large"


class AppStateDeletedError(AppStateError):
    """The state was deleted; its id takes no more changes (STATE-12)."""

    code = "app_state_deleted"


class FHIRStatusError(FHIRError):
    """
    The server answered with a status of 400 or more.

    Attributes:
        status_code: HTTP status.
        issues: ``OperationOutcome.issue`` as received, an empty list if there is none.
            May hold patient data: show it to the user it belongs to, do not log it.
        media_type: of the answer, without parameters.
        retry_after: seconds, or ``None``.
        request_id: by which the server's people find the request in their log: what the
            server answered as ``X-Request-Id``, else what it was sent.
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
    """401, also after a refresh."""

    code = "fhir_unauthorized"


class FHIRForbiddenError(FHIRStatusError):
    """403: the granted scope or the user's own rights do not allow it."""

    code = "fhir_forbidden"


class FHIRNotFoundError(FHIRStatusError):
    """404: no such resource, or not for this user."""

    code = "fhir_not_found"


class FHIRConflictError(FHIRStatusError):
    """409: somebody else changed the resource, or something refers to it."""

    code = "fhir_conflict"
    http_status = 409


class FHIRPreconditionFailedError(FHIRStatusError):
    """412: the resource is no longer the one that ``If-Match`` names; read it again."""

    code = "fhir_precondition_failed"
    http_status = 409


class FHIRGoneError(FHIRStatusError):
    """410: the resource was deleted."""

    code = "fhir_gone"


class FHIRUnprocessableError(FHIRStatusError):
    """422: the resource breaks a rule of the server; ``issues`` tell which."""

    code = "fhir_unprocessable"


class FHIRUnavailableError(FHIRStatusError):
    """429 or a 5xx status: trying again later may help."""

    code = "fhir_unavailable"


class FHIRTooManyRequestsError(FHIRUnavailableError):
    """429: more requests than the server takes; wait for ``retry_after`` seconds."""

    code = "fhir_too_many_requests"


class MalformedFHIRResponseError(FHIRError):
    """
    The answer is not the FHIR JSON that was asked for.

    Attributes:
        status_code: HTTP status.
        media_type: of the answer, without parameters.
    """

    code = "fhir_response_malformed"

    def __init__(
        self, message: str, *, status_code: int = 200, media_type: str = ""
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.media_type = media_type


__all__ = [
    name
    for name, value in vars().items()
    if isinstance(value, type) and issubclass(value, SMARTError)
]

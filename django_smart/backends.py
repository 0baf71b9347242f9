"""Authentication backend: from an identity proven by an EHR to a Django user."""

from __future__ import annotations

import base64
import hashlib
import logging
import secrets
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import Group
from django.core.exceptions import SuspiciousOperation
from django.db import DataError, IntegrityError, router, transaction
from django.db.models import EmailField
from django.utils.functional import cached_property
from mozilla_django_oidc.auth import OIDCAuthenticationBackend

from .exceptions import IdentityError
from .launches.held import signs_in
from .models import ClientRegistration, FHIRServer, Identity
from .models.identity import IdentityQuerySet
from .protocol.id_token import IDTokenClaims

if TYPE_CHECKING:
    from django.http import HttpRequest

    from .fhir.client import FHIRClient

    _Check = Callable[[AbstractBaseUser | None, Sequence[Identity]], None]

__all__ = ["Claims", "SMARTAuthenticationBackend"]

logger = logging.getLogger(__name__)


class Claims(dict[str, Any]):
    """
    The claims of a validated ID token, and the server that proved them.

    Attributes:
        server: the ``FHIRServer`` that sent the ID token.
    """

    server: FHIRServer

    def _find_identities(self) -> IdentityQuerySet:
        """The identities of this account, read now."""
        return Identity.objects.with_subject(
            self["iss"], self["sub"], server=self.server
        )

    @cached_property
    def _identities(self) -> list[Identity]:
        """The same, read once."""
        return list(self._find_identities().order_by())

    def _sign_in(self, user: AbstractBaseUser) -> bool:
        """Whether this account signs in *user*, and so may change them."""
        return signs_in(self._identities, user, self.server)


class SMARTAuthenticationBackend(OIDCAuthenticationBackend):
    """
    Hooks for mozilla-django-oidc, which finds, creates, updates or refuses the user.

    The hooks receive the claims of the validated ID token, with ``iss`` and ``sub``;
    ``fhirUser`` is a reference relative to the FHIR base URL.  Users are found by
    (``iss``, ``sub``) and never by e-mail, because any EHR could claim any address.
    """

    def __init__(self) -> None:
        # Upstream reads OIDC_* settings here, which belong to the staff's server.
        self.UserModel = get_user_model()

    # Hooks for subclasses

    groups_by_type: ClassVar[Mapping[str, str]] = {}
    """
    Names of groups by the type of ``fhirUser``, such as ``Practitioner``.

    A user who signs in through a registration with *manage groups* is added to the
    group of their type and removed from the other groups named here.  Turn that on only
    for servers you trust with it: a patient portal could call anyone a practitioner.  A
    group that does not exist is logged.
    """

    def filter_users_by_claims(self, claims: Mapping[str, Any]) -> Any:
        """
        Return the users of this identity.  Replaces upstream's lookup by e-mail.

        Pass on the claims unchanged: a copy as a plain dict lacks the server that
        proved them, and matches no user.
        """
        if not isinstance(claims, Claims):
            return self.UserModel._default_manager.none()
        owners = {each.user_id for each in claims._identities}
        return self.UserModel._default_manager.filter(pk__in=owners)

    def find_user_to_link(
        self,
        claims: Mapping[str, Any],
    ) -> AbstractBaseUser | None:
        """
        Return an existing user for an identity that is seen for the first time.

        Default: ``None``.  Only override it with something the EHR cannot claim freely,
        such as a directory that maps this EHR's user ids.
        """
        return None

    def create_user(self, claims: Mapping[str, Any]) -> AbstractBaseUser:
        """
        Create a user without a password and an e-mail address.

        Upstream stores the claimed e-mail address; a later password reset would then
        give the account to whoever owns that address according to the EHR.
        """
        name = self.UserModel.USERNAME_FIELD
        user: AbstractBaseUser = self.UserModel._default_manager.create_user(
            **{name: self.get_username(claims)}
        )
        return user

    def get_username(self, claims: Mapping[str, Any]) -> str:
        """
        Return a new user's name: ``smart-`` and a digest of (``iss``, ``sub``).

        If users sign in by e-mail, it is an address at ``ehr.invalid``, where no mail
        can be delivered.  If another user already has that name, a random one is used
        instead.  Replaces upstream's digest of the e-mail address.
        """
        issuer, subject = claims["iss"], claims["sub"]
        hashed = hashlib.sha256(f"{len(issuer)}:{issuer}{subject}".encode()).digest()
        name = build_name(hashed)
        if self._is_taken(name, claims):
            return build_name(secrets.token_bytes())
        return name

    def update_user(
        self, user: AbstractBaseUser, claims: Mapping[str, Any]
    ) -> AbstractBaseUser:
        """
        Update a known user at sign-in.  Default: does nothing.

        It is not called for an account that does not sign in the user: one that they
        only connected, or any account of protected staff.
        """
        updated: AbstractBaseUser = super().update_user(user, claims)  # type: ignore[no-untyped-call]  # upstream's
        return updated

    def fill_user(
        self, user: AbstractBaseUser, claims: Mapping[str, Any], fhir: FHIRClient
    ) -> None:
        """
        Fill the user from the EHR when the launch is complete.  Default: does nothing.

        ``fhir.resolve(claims["fhirUser"])`` reads the person, if the scopes allow it.
        Save what you change.  The browser waits for this; sign-in continues even if it
        raises.  As with :meth:`update_user`, the account must sign in the user.
        """

    def get_group_name(self, claims: Mapping[str, Any]) -> str | None:
        """
        Return the name of this user's group, or ``None`` for no group.

        Default: the entry of ``groups_by_type`` for the resource type of ``fhirUser``.
        The group must exist; a missing one is logged.
        """
        resource_type, _, _ = str(claims.get("fhirUser", "")).partition("/")
        return self.groups_by_type.get(resource_type)

    def verify_claims(
        self,
        claims: Mapping[str, Any],
    ) -> bool:
        """
        Return whether this identity may sign in at all.  Default: ``True``.

        Upstream requires an e-mail address here.
        """
        return True

    # Not meant to be overridden

    def authenticate(
        self,
        request: HttpRequest | None,
        username: str | None = None,
        password: str | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Return ``None``: sign-in never uses ``django.contrib.auth.authenticate()``.

        Django would offer an authorization code to every backend, and upstream's would
        send it to the staff's server; upstream also inherits sign-in by password.
        """

    async def aauthenticate(
        self,
        request: HttpRequest | None,
        username: str | None = None,
        password: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Return ``None``, as :meth:`authenticate` does."""

    def resolve_user(
        self,
        claims: IDTokenClaims,
        registration: ClientRegistration,
        check: _Check | None = None,
    ) -> AbstractBaseUser:
        """
        Return the user of a proven identity, who is created if that is allowed.

        Upstream's ``get_or_create_user`` decides.

        Args:
            check: called with the user who was found, or ``None``, and the identities
                of the account, before anything is created or updated; if it raises, the
                sign-in ends.

        Raises:
            IdentityError: ``verify_claims`` returned false, several users have the
                identity, it is unknown and the registration does not create users, the
                name from the site's ``get_username`` is already taken, the database
                refused the user, or a hook raised ``SuspiciousOperation``; the code is
                ``user_inactive`` if the user is deactivated, or hidden by the user
                model's default manager.
        """
        values = _build_values(claims, registration)
        decision = _Decision(self, registration, check)
        try:
            user: AbstractBaseUser | None = decision.get_or_create_user(  # type: ignore[no-untyped-call]  # upstream's
                None, None, values
            )
        except SuspiciousOperation as exc:
            raise IdentityError(
                "This identity may not sign in here, or it has several users."
            ) from exc
        if user is None:
            raise IdentityError(
                "This identity is unknown, and the registration does not create users."
            )
        if registration.manage_groups and values._sign_in(user):
            self._set_group(user, values)
        return user

    def complete_user(
        self,
        user: AbstractBaseUser,
        claims: IDTokenClaims,
        registration: ClientRegistration,
        fhir: FHIRClient,
    ) -> None:
        """Call :meth:`fill_user`; log what it raises."""
        try:
            self.fill_user(user, _build_values(claims, registration), fhir)
        except Exception as exc:  # noqa: BLE001 (the site's own code)
            # Log where it happened, not the message, which may contain personal data.
            place = traceback.extract_tb(exc.__traceback__)[:2][-1]
            logger.warning(
                "Cannot fill user %s: %s at %s:%s",
                user.pk,
                type(exc).__name__,
                place.filename,
                place.lineno,
            )

    def _is_taken(
        self, name: str, values: Mapping[str, Any], lookup: str = "exact"
    ) -> bool:
        """Return whether *name* is taken and this identity has no user yet."""
        model: Any = self.UserModel
        wanted = {f"{model.USERNAME_FIELD}__{lookup}": model.normalize_username(name)}
        # In this order: a process that creates the user right now commits both
        # together.
        return model._base_manager.filter(**wanted).exists() and not (
            isinstance(values, Claims) and values._find_identities().exists()
        )

    def _set_group(self, user: Any, values: Mapping[str, Any]) -> None:
        managed = set(self.groups_by_type.values())
        wanted = self.get_group_name(values)
        if wanted:
            managed.add(wanted)
        if not managed:
            return
        groups = Group.objects.filter(name__in=managed)
        added = [group for group in groups if group.name == wanted]
        user.groups.remove(*(group for group in groups if group not in added))
        user.groups.add(*added)
        if wanted and not added:
            logger.warning("User %s: group %s does not exist", user.pk, wanted)

    def get_user(self, user_id: Any) -> Any:
        """
        Return the signed-in user, or ``None`` if the user is deactivated.

        Replaces upstream's, which needs a manager called ``objects``.
        """
        return ModelBackend.get_user(self, user_id)


class _Decision(OIDCAuthenticationBackend):
    """
    One call of upstream's ``get_or_create_user``, with the hooks of a site's backend.

    It holds the state of this call, because threads may share the backend.
    """

    def __init__(
        self,
        backend: SMARTAuthenticationBackend,
        registration: ClientRegistration,
        check: _Check | None,
    ) -> None:
        # Upstream's reads OIDC_* settings and sets nothing that is needed here.
        self.backend = backend
        self.registration = registration
        self.check = check

    def get_settings(self, attr: str, *args: Any) -> Any:  # type: ignore[override]  # static there
        """Return the registration's value instead of OIDC_* settings for staff."""
        return {"OIDC_CREATE_USER": self.registration.create_users}.get(attr, *args)

    def get_userinfo(
        self, access_token: None, id_token: None, payload: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the validated claims; upstream would ask the staff's server."""
        return payload

    def describe_user_by_claims(self, claims: Mapping[str, Any]) -> str:
        """Describe the claims in logs, where upstream writes the e-mail address."""
        return "this identity"

    def verify_claims(self, claims: Mapping[str, Any]) -> bool:
        return self.backend.verify_claims(claims)

    def filter_users_by_claims(self, claims: Claims) -> list[Any]:
        """
        Return the users that upstream chooses from: known ones, or the one to link.

        Raises:
            IdentityError: one is deactivated, or hidden by the site's manager; if
                it were left out of the list, upstream would create another user.
        """
        users = list(self.backend.filter_users_by_claims(claims))
        if not users:
            if claims._identities:
                raise IdentityError(
                    "The user model's manager hides this user.", code="user_inactive"
                )
            linked = self.backend.find_user_to_link(claims)
            users = [] if linked is None else [linked]
        if not all(user.is_active for user in users):
            raise IdentityError(
                "The user of this identity is deactivated.", code="user_inactive"
            )
        if self.check is not None and len(users) < 2:
            self.check(users[0] if users else None, claims._identities)
        return users

    def create_user(self, claims: Claims) -> AbstractBaseUser:
        try:
            with transaction.atomic(using=router.db_for_write(self.backend.UserModel)):
                return self.backend.create_user(claims)
        except (DataError, IntegrityError) as exc:
            # On some sites, names must differ in more than case.
            name = self.backend.get_username(claims)
            if self.backend._is_taken(name, claims, "iexact"):
                logger.warning(
                    "No user created: get_username returned a name that is already "
                    "taken"
                )
                message = "Another user has the name that this identity would get."
            elif claims._find_identities().exists():
                # Another callback of this identity was faster: try again, and find it.
                raise
            else:
                # Without the error's message, which may contain personal data.
                logger.error(  # noqa: TRY400 (no traceback, see above)
                    "No user created (%s). If the user model requires more than a "
                    "generated name, override create_user.",
                    type(exc).__name__,
                )
                message = "The database refused the user of this identity."
            raise IdentityError(message) from exc

    def update_user(self, user: AbstractBaseUser, claims: Claims) -> AbstractBaseUser:
        return self.backend.update_user(user, claims) if claims._sign_in(user) else user


def build_name(value: bytes) -> str:
    """Return the name of a new user, which ``USERNAME_FIELD`` accepts."""
    model = get_user_model()
    name = f"smart-{base64.b32encode(value)[:26].decode().lower()}"
    # Without a domain, the admin could not save the user; this one is never assigned
    # (RFC 2606 section 2).
    is_email = isinstance(model._meta.get_field(model.USERNAME_FIELD), EmailField)
    return f"{name}@ehr.invalid" if is_email else name


def _build_values(claims: IDTokenClaims, registration: ClientRegistration) -> Claims:
    """Return the claims as the hooks receive them."""
    values = Claims(claims.claims, iss=claims.issuer, sub=claims.subject)
    values.server = registration.server
    # Not as sent: it may name another FHIR server.
    values.pop("fhirUser", None)
    if claims.fhir_user:
        values["fhirUser"] = claims.fhir_user
    return values

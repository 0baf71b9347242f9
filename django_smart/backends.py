"""Authentication backend: from a proven identity of an EHR to a Django user."""

from __future__ import annotations

import base64
import hashlib
import logging
import secrets
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import Group
from django.core.exceptions import SuspiciousOperation
from django.db import IntegrityError, transaction
from mozilla_django_oidc.auth import OIDCAuthenticationBackend

from .exceptions import UserInactiveError, UserRefusedError
from .models import ClientRegistration, FHIRServer, Identity
from .protocol.id_token import IDTokenClaims

if TYPE_CHECKING:
    from django.http import HttpRequest

    from .fhir.client import FHIRClient

__all__ = ["Claims", "SMARTAuthenticationBackend"]

logger = logging.getLogger(__name__)


class Claims(dict[str, Any]):
    """
    The claims of a validated ID token, and who proved them.

    Attributes:
        server: the ``FHIRServer`` whose ID token it was.
    """

    server: FHIRServer


class SMARTAuthenticationBackend(OIDCAuthenticationBackend):
    """
    Hooks for mozilla-django-oidc, which finds, creates, updates or refuses the user.

    The claims that the hooks get are those of the validated ID token, with ``iss`` and
    ``sub``; ``fhirUser`` is a reference relative to the FHIR base URL.  Users are found
    by (``iss``, ``sub``) and never by e-mail: any EHR could claim any address.
    """

    def __init__(self) -> None:
        # Upstream reads OIDC_* settings here: they are the staff's server's, not ours.
        self.UserModel = get_user_model()

    # Hooks for subclasses

    groups_by_type: ClassVar[Mapping[str, str]] = {}
    """
    Names of groups by the type of ``fhirUser``, such as ``Practitioner``.

    A user who signs in by a registration with *manage groups* is put into the group of
    the type, and taken out of the other groups named here.  Switch that on only for
    servers whose word on it counts: a patients' portal can call anybody a practitioner.
    A group that does not exist is a line in the log.
    """

    def filter_users_by_claims(self, claims: Mapping[str, Any]) -> Any:
        """
        The user of this identity.  Replaces upstream's look-up by e-mail.

        Pass on the claims as they came: a copy as a plain dict lacks the server that
        proved them, and finds nobody.
        """
        if not isinstance(claims, Claims):
            return self.UserModel.objects.none()
        identities = Identity.objects.with_subject(
            claims["iss"], claims["sub"], server=claims.server
        )
        return self.UserModel.objects.filter(smart_identities__in=identities)

    def find_user_to_link(
        self,
        claims: Mapping[str, Any],
    ) -> AbstractBaseUser | None:
        """
        An existing user that an identity seen for the first time belongs to.

        Default: ``None``.  Override it only with something the EHR cannot claim for
        anybody it likes, such as a directory that maps this EHR's user ids.
        """
        return None

    def create_user(self, claims: Mapping[str, Any]) -> AbstractBaseUser:
        """
        A new user without password and without e-mail.

        Upstream stores the claimed e-mail address; a later password reset would then
        hand the account to whoever an EHR says owns the address.
        """
        name = self.UserModel.USERNAME_FIELD
        user: AbstractBaseUser = self.UserModel._default_manager.create_user(
            **{name: self.get_username(claims)}
        )
        return user

    def get_username(self, claims: Mapping[str, Any]) -> str:
        """
        The name of a new user: ``smart-`` and a digest of (``iss``, ``sub``).

        If somebody has that name already, who is not this identity's user, a random one
        in its place; 32 characters in all.  Replaces upstream's digest of the e-mail
        address.
        """
        issuer, subject = claims["iss"], claims["sub"]
        hashed = hashlib.sha256(f"{len(issuer)}:{issuer}{subject}".encode()).digest()
        name = _build_name(hashed)
        if self._is_taken(name, claims):
            return _build_name(secrets.token_bytes())
        return name

    def update_user(
        self, user: AbstractBaseUser, claims: Mapping[str, Any]
    ) -> AbstractBaseUser:
        """Bring a known user up to date.  Default: leaves the user as it is."""
        updated: AbstractBaseUser = super().update_user(user, claims)  # type: ignore[no-untyped-call]  # upstream's
        return updated

    def fill_user(
        self, user: AbstractBaseUser, claims: Mapping[str, Any], fhir: FHIRClient
    ) -> None:
        """
        Fill the user from the EHR, once the launch is complete.  Default: nothing.

        ``fhir.get(claims["fhirUser"])`` reads the person, if the scopes allow it.  Save
        what you change.  The browser waits for this, and the sign-in goes on whatever
        it raises.
        """

    def get_group_name(self, claims: Mapping[str, Any]) -> str | None:
        """The user's one of the groups that follow the EHR; see `groups_by_type`."""
        resource_type, _, _ = str(claims.get("fhirUser", "")).partition("/")
        return self.groups_by_type.get(resource_type)

    def verify_claims(
        self,
        claims: Mapping[str, Any],
    ) -> bool:
        """
        Whether this identity may sign in at all.  Default: yes.

        Upstream asks for an e-mail address here.
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
        Nothing: sign-in never goes through ``django.contrib.auth.authenticate()``.

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
        """Nothing, as :meth:`authenticate`."""

    def resolve_user(
        self, claims: IDTokenClaims, registration: ClientRegistration
    ) -> AbstractBaseUser:
        """
        The user of a proven identity, created on first sight if that is allowed.

        Upstream's ``get_or_create_user`` decides.

        Raises:
            UserRefusedError: ``verify_claims`` returned false, or several users have
                the identity, or it is unknown and the registration creates no users,
                or somebody else has the name that the site's ``get_username`` returns,
                or a hook raised ``SuspiciousOperation``.
            UserInactiveError: the user is deactivated.
        """
        values = _build_values(claims, registration)
        decision = _Decision(self, registration)
        try:
            user: AbstractBaseUser | None = decision.get_or_create_user(  # type: ignore[no-untyped-call]  # upstream's
                None, None, values
            )
        except SuspiciousOperation as exc:
            raise UserRefusedError(
                "This identity may not sign in here, or several users have it."
            ) from exc
        if user is None:
            raise UserRefusedError(
                "This identity is unknown, and the registration creates no users."
            )
        if registration.manage_groups:
            self._set_group(user, values)
        return user

    def complete_user(
        self,
        user: AbstractBaseUser,
        claims: IDTokenClaims,
        registration: ClientRegistration,
        fhir: FHIRClient,
    ) -> None:
        """Call :meth:`fill_user`; what it raises is a line in the log."""
        try:
            self.fill_user(user, _build_values(claims, registration), fhir)
        except Exception as exc:  # noqa: BLE001 (the site's own code)
            # Where it happened, and not the message: that may tell of a person.
            place = traceback.extract_tb(exc.__traceback__)[:2][-1]
            logger.warning(
                "User %s not filled: %s at %s:%s",
                user.pk,
                type(exc).__name__,
                place.filename,
                place.lineno,
            )

    def _is_taken(
        self, name: str, values: Mapping[str, Any], lookup: str = "exact"
    ) -> bool:
        """Whether somebody else has *name*, and nobody is this identity's user yet."""
        model: Any = self.UserModel
        wanted = {f"{model.USERNAME_FIELD}__{lookup}": model.normalize_username(name)}
        # In this order: who makes the user at this moment commits both together.
        return (
            model._base_manager.filter(**wanted).exists()
            and not self.filter_users_by_claims(values).exists()
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
            logger.warning("User %s: there is no group %s", user.pk, wanted)

    def get_user(self, user_id: Any) -> Any:
        """The signed-in user; none if deactivated meanwhile, which upstream allows."""
        user = super().get_user(user_id)  # type: ignore[no-untyped-call]  # upstream's
        return user if user is not None and user.is_active else None


class _Decision(OIDCAuthenticationBackend):
    """
    One call of upstream's ``get_or_create_user``, with the hooks of a site's backend.

    It holds what belongs to this call: threads may share the backend.
    """

    def __init__(
        self, backend: SMARTAuthenticationBackend, registration: ClientRegistration
    ) -> None:
        # Upstream's reads OIDC_* settings and makes nothing that is needed here.
        self.backend = backend
        self.registration = registration

    def get_settings(self, attr: str, *args: Any) -> Any:  # type: ignore[override]  # static there
        """The registration's.  The OIDC_* settings are those of the staff's server."""
        return {"OIDC_CREATE_USER": self.registration.create_users}.get(attr, *args)

    def get_userinfo(
        self, access_token: None, id_token: None, payload: dict[str, Any]
    ) -> dict[str, Any]:
        """The validated claims, where upstream asks the staff's server."""
        return payload

    def describe_user_by_claims(self, claims: Mapping[str, Any]) -> str:
        """For the log, where upstream writes the e-mail address."""
        return "this identity"

    def verify_claims(self, claims: Mapping[str, Any]) -> bool:
        return self.backend.verify_claims(claims)

    def filter_users_by_claims(self, claims: Mapping[str, Any]) -> list[Any]:
        """
        The users that upstream decides about: those known, or else the one to link.

        Raises:
            UserInactiveError: one is deactivated.  Without that user in the list,
                upstream would create another.
        """
        users = list(self.backend.filter_users_by_claims(claims))
        if not users:
            linked = self.backend.find_user_to_link(claims)
            users = [] if linked is None else [linked]
        if not all(user.is_active for user in users):
            raise UserInactiveError("The user of this identity is deactivated.")
        return users

    def create_user(self, claims: Mapping[str, Any]) -> AbstractBaseUser:
        try:
            with transaction.atomic():
                return self.backend.create_user(claims)
        except IntegrityError as exc:
            # If another callback of this identity was first, the next try finds it.
            # On some sites names have to differ in more than case.
            name = self.backend.get_username(claims)
            if not self.backend._is_taken(name, claims, "iexact"):
                raise
            logger.warning("No user created: the name that get_username gave is taken")
            raise UserRefusedError(
                "Another user has the name that this identity's would get."
            ) from exc

    def update_user(
        self, user: AbstractBaseUser, claims: Mapping[str, Any]
    ) -> AbstractBaseUser:
        return self.backend.update_user(user, claims)


def _build_name(value: bytes) -> str:
    return f"smart-{base64.b32encode(value)[:26].decode().lower()}"


def _build_values(claims: IDTokenClaims, registration: ClientRegistration) -> Claims:
    """What the hooks get."""
    values = Claims(claims.claims, iss=claims.issuer, sub=claims.subject)
    values.server = registration.server
    if claims.fhir_user:
        values["fhirUser"] = claims.fhir_user
    return values

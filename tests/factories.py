"""Rows for tests: servers, registrations, launches, grants, users and identities."""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from typing import Any

from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.utils import timezone

from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Identity,
    Launch,
    ServerState,
    SigningKey,
    TokenGrant,
)
from django_smart.models.clock import DatabaseNow
from django_smart.protocol.quirks import QUIRKS
from django_smart.servers.discovery import DISCOVERED_COLUMNS
from django_smart.servers.signing_keys import create_signing_key, ensure_active_key
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.state import Grant, RefreshToken, new_id
from tests.known import (
    BASE_URL,
    CLIENT_ID,
    CLIENT_SECRET,
    EHR_SCOPE,
    REDIRECT_URI,
    STANDALONE_SCOPE,
)

METHODS = ("none", "client_secret_basic", "client_secret_post", "private_key_jwt")
SERVICE_ID = "nightly-report"
SERVICE_SCOPE = "system/Patient.rs system/Observation.rs"

_DISCOVERED = {*DISCOVERED_COLUMNS}
_numbers = count(1)


# Servers and registrations


def make_server(**values: Any) -> FHIRServer:
    """A valid server, of which nothing is known yet but ``state__…`` values."""
    state = _pop(values, "state__")
    state |= {name: values.pop(name) for name in _DISCOVERED & values.keys()}
    quirks = {name: values.pop(name) for name in QUIRKS.keys() & values}
    server = FHIRServer(
        **{
            "slug": "harbour",
            "name": "Harbour Hospital",
            "base_url": BASE_URL,
            "quirks": quirks,
            **values,
        }
    )
    server.full_clean()
    server.save()
    if state:
        ServerState.objects.filter(server=server).update(**state)
        server.state.refresh_from_db()
    return server


def _pop(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    names = [name for name in values if name.startswith(prefix)]
    return {name.removeprefix(prefix): values.pop(name) for name in names}


def make_registration(
    server: FHIRServer | None = None, /, **values: Any
) -> ClientRegistration:
    """A valid registration at *server* or at one made of ``server__…`` values."""
    server_values = _pop(values, "server__")
    registration = ClientRegistration(
        server=server or make_server(**server_values),
        **{
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "ehr_scope": EHR_SCOPE,
            "standalone_scope": STANDALONE_SCOPE,
            "redirect_uri": REDIRECT_URI,
            **values,
        },
    )
    # Two that share a redirect URI are a group, as operators have to name one.
    sharing = ClientRegistration.objects.filter(redirect_uri=registration.redirect_uri)
    if "callback_group" not in values and registration.redirect_uri:
        for each in sharing:
            each.callback_group = registration.callback_group = "shared"
            each.save()
    registration.full_clean()
    registration.save()
    return registration


def register_at(
    ehr: EHRSimulator, redirect_uri: str = REDIRECT_URI, **values: Any
) -> None:
    """Register this site's client at *ehr*, with its secret unless *values* differ."""
    ehr.register_client(
        CLIENT_ID,
        **{"client_secret": CLIENT_SECRET, "redirect_uris": [redirect_uri], **values},
    )


def register_key_at(ehr: EHRSimulator) -> None:
    """Register this site's client at *ehr*, with the keys that there are."""
    jwks = SigningKey.objects.as_jwks()
    register_at(ehr, client_secret=None, auth_method="private_key_jwt", jwks=jwks)


def make_service(ehr: EHRSimulator, **values: Any) -> ClientRegistration:
    """This site's backend service, registered at both ends."""
    create_signing_key("ES384")
    ehr.register_client(
        SERVICE_ID, auth_method="private_key_jwt", jwks=SigningKey.objects.as_jwks()
    )
    return make_registration(
        **{
            "client_id": SERVICE_ID,
            "token_endpoint_auth_method": "private_key_jwt",
            "signing_algorithm": "ES384",
            "client_secret": "",
            "ehr_scope": "",
            "standalone_scope": "",
            "redirect_uri": "",
            "system_scope": SERVICE_SCOPE,
            **values,
        }
    )


def make_client(
    ehr: EHRSimulator, method: str, scope: str, **values: Any
) -> ClientRegistration:
    """This site's client, which authenticates by *method*, registered at both ends."""
    has_secret = method.startswith("client_secret_")
    has_key = method == "private_key_jwt"
    if has_key:
        ensure_active_key("RS384")
    ehr.register_client(
        CLIENT_ID,
        auth_method=method,
        client_secret=CLIENT_SECRET if has_secret else None,
        jwks=SigningKey.objects.as_jwks() if has_key else None,
        redirect_uris=[REDIRECT_URI],
    )
    return make_registration(
        token_endpoint_auth_method=method,
        client_secret=CLIENT_SECRET if has_secret else "",
        ehr_scope=f"launch {scope}",
        standalone_scope=f"launch/patient {scope}",
        **values,
    )


# Users, launches and grants


def make_user(username: str = "maria", **values: Any) -> User:
    """Somebody without a password."""
    return User.objects.create_user(username, **values)


def make_identity(user: User, **values: Any) -> Identity:
    """Who *user* is at the EHR."""
    number = next(_numbers)
    return Identity.objects.create(
        **{
            "server": FHIRServer.objects.first() or make_server(),
            "issuer": "https://ehr.example.org",
            "subject": f"subject-{number}",
            "user": user,
            **values,
        }
    )


def make_launch(registration: ClientRegistration, **values: Any) -> Launch:
    """A completed launch from the EHR, without a grant."""
    now = timezone.now()
    number = next(_numbers)
    return Launch.objects.create(
        **{
            "registration": registration,
            "kind": Launch.Kind.EHR,
            "status": Launch.Status.OPEN,
            "state_digest": f"state-digest-{number}",
            "browser_digest": "browser-digest",
            "scope_asked": "launch patient/Patient.rs",
            "expires_at": now + timedelta(minutes=15),
            "completed_at": now,
            "last_used_at": now,
            **values,
        }
    )


def make_grant(
    registration: ClientRegistration,
    *,
    access_token: str | None = None,
    refresh_token: str = "a refresh token",
    **values: Any,
) -> TokenGrant:
    """An offline grant that no EHR knows, due in 45 minutes and good for an hour."""
    now = timezone.now()
    grant = TokenGrant(
        **{
            "registration": registration,
            "scope": "patient/Patient.rs offline_access",
            "is_offline": True,
            "received_at": now,
            "expires_at": now + timedelta(hours=1),
            "refresh_due_at": now + timedelta(minutes=45),
            **values,
        }
    )
    grant.set_tokens(
        access_token=access_token or f"access token {next(_numbers)}",
        refresh_token=refresh_token,
    )
    grant.save()
    return grant


def reload_grant(grant_id: Any) -> TokenGrant:
    """The grant as the database has it."""
    return TokenGrant.objects.select_related("registration__server").get(pk=grant_id)


def end_wait() -> None:
    """Let the time be over after which a failed revocation is tried again."""
    TokenGrant.objects.awaiting_revocation().update(lease_expires_at=timezone.now())


def make_due(grant_id: Any, *, minutes: int = 1) -> int:
    """Let the refresh be due since *minutes*; returns *grant_id*."""
    TokenGrant.objects.filter(pk=grant_id).update(
        refresh_due_at=timezone.now() - timedelta(minutes=minutes)
    )
    return int(grant_id)


def find_due() -> QuerySet[TokenGrant]:
    """Grants that workers may refresh now, by the database's time."""
    return TokenGrant.objects.refreshable().filter(refresh_due_at__lte=DatabaseNow())


def expire(grant: TokenGrant, ehr: EHRSimulator) -> TokenGrant:
    """Let the access token end, for us and for the EHR."""
    then = timezone.now() - timedelta(hours=2)
    TokenGrant.objects.filter(pk=grant.pk).update(
        received_at=then,
        expires_at=then + timedelta(hours=1),
        refresh_due_at=then + timedelta(minutes=45),
    )
    ehr.expire_access_tokens()
    ehr.clear_requests()
    return reload_grant(grant.pk)


def make_grants(
    ehr: EHRSimulator, registration: ClientRegistration, number: int, **values: Any
) -> list[int]:
    """
    Due grants that *ehr* knows, without the launches; returns their primary keys.

    The access token of each has ended, a second after that of the one before.
    """
    now = timezone.now()
    scope = "patient/Patient.rs offline_access"
    grants = []
    for offset in range(number):
        known = Grant(
            client_id=registration.client_id,
            user=None,
            patient=None,
            scopes=scope.split(),
            context={},
        )
        token = RefreshToken(value=new_id(), grant=known, expires_at=None)
        ehr.store.refresh_tokens[token.value] = token
        grant = TokenGrant(
            registration=registration,
            is_offline=True,
            scope=scope,
            scope_granted=scope,
            received_at=now - timedelta(hours=2),
            expires_at=now - timedelta(hours=1) + timedelta(seconds=offset),
            refresh_due_at=now - timedelta(hours=1),
            **values,
        )
        grant.set_tokens(access_token=f"ended {offset}", refresh_token=token.value)
        grants.append(grant)
    TokenGrant.objects.bulk_create(grants)
    due = TokenGrant.objects.filter(registration=registration)
    return list(due.order_by("-pk").values_list("pk", flat=True)[:number])[::-1]

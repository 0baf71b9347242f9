"""A server's configuration and keys: fetched rarely, kept in its row, shared by all."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from ..conf import conf
from ..exceptions import (
    DiscoveryError,
    DiscoveryStatusError,
    IssuerDisputedError,
    MalformedDiscoveryError,
    SMARTError,
    TransportError,
    UnsupportedServerError,
)
from ..models import FHIRServer
from ..models.server import MAX_URL_LENGTH
from ..protocol.capabilities import Capability
from ..protocol.discovery import (
    SMARTConfiguration,
    build_capability_statement_request,
    build_discovery_request,
    build_jwks_request,
    build_openid_configuration_request,
    is_without_endpoints,
    process_capability_statement,
    process_discovery_response,
    process_jwks_response,
    process_openid_configuration_response,
)
from ..protocol.messages import HTTPResponse
from ..protocol.urls import get_origin
from .http import send

__all__ = [
    "DISCOVERED_COLUMNS",
    "check_dispute",
    "fetch_configuration",
    "fetch_jwks",
    "get_configuration",
    "get_issuer",
    "get_jwks",
    "iter_jwks",
    "refresh_servers",
]

logger = logging.getLogger(__name__)

#: Columns of a server that discovery fills in.
DISCOVERED_COLUMNS = (
    "configuration",
    "configuration_fetched_at",
    "configuration_max_age",
    "discovery_failed_at",
    "disputed",
    "issuer",
    "jwks",
    "jwks_fetched_at",
    "jwks_max_age",
    "jwks_uri",
    "pinned",
)
# A server may ask to be asked more often than once a day, but not at each launch.
_LEAST_LIFETIME = timedelta(minutes=5)
# While a server is down it is asked this often, and in the background more seldom.
_PAUSE = timedelta(seconds=60)
_LONG_PAUSE = timedelta(minutes=10)
_END_SESSION = "end_session_endpoint"
# Bytes of a JWK Set, which is read at each sign-in.
_MAX_JWKS = 512 * 1024
# How long no keys are fetched for unknown kids after a fetch that did not bring one.
_JWKS_COOLDOWN = timedelta(seconds=60)


def get_configuration(server: FHIRServer) -> SMARTConfiguration:
    """
    What *server* says of itself, from its row while that is fresh.

    A configuration that cannot be fetched again is served stale: a launch does not
    depend on it anew.  With the endpoints set by hand a launch never depends on it.

    Raises:
        TransportError, DiscoveryError: nothing is known and nothing could be fetched.
    """
    known = server.read_configuration()
    if known is not None and _is_fresh(
        server.configuration_fetched_at, server.configuration_max_age
    ):
        return known
    known = known or _build_from_overrides(server)
    if known is not None and not _claim(server):
        return known
    try:
        return fetch_configuration(server)
    except (TransportError, DiscoveryError) as exc:
        _mark_failure(server)
        if known is None:
            raise
        logger.warning("Server %s: stale configuration used (%s)", server.pk, exc.code)
        return known


def fetch_configuration(server: FHIRServer, *, save: bool = True) -> SMARTConfiguration:
    """
    Fetch the configuration and store it with its time.

    The SMART configuration; where there is none, what the CapabilityStatement has of
    it; and the OpenID configuration if the server offers OpenID Connect and does not
    say by whom, or cannot vouch for the keys.

    Args:
        save: false to leave it in the attributes of *server*, which need not exist yet.

    Raises:
        TransportError, DiscoveryError: as met; the stored one is left as it was.
    """
    configuration, answer = _fetch_document(server)
    _check_lengths(issuer=configuration.issuer, jwks_uri=configuration.jwks_uri)
    before = {name: getattr(server, name) for name in DISCOVERED_COLUMNS}
    server.configuration = configuration.to_json()
    server.issuer = configuration.issuer or ""
    server.jwks_uri = _get_keys_of_issuer(server, configuration.jwks_uri or "")
    if configuration.has(Capability.SSO_OPENID_CONNECT) or server.jwks is not None:
        try:
            _fill_in_openid(server)
        except (TransportError, DiscoveryStatusError) as exc:
            # Nobody may want to sign in; who does gets this error, if nothing is known.
            logger.warning("Server %s: no OpenID configuration (%s)", server.pk, exc)
            server.issuer = server.issuer or before["issuer"]
            if server.id_token_issuer or server.issuer == before["issuer"]:
                server.jwks_uri = server.jwks_uri or before["jwks_uri"]
        except DiscoveryError as exc:
            if not (server.jwks_uri and (server.id_token_issuer or server.issuer)):
                for name, value in before.items():
                    setattr(server, name, value)
                raise
            logger.warning("Server %s: no way to sign out there (%s)", server.pk, exc)
    _pin(server, before, save=save)
    server.configuration_fetched_at = timezone.now()
    server.configuration_max_age = answer.max_age
    server.discovery_failed_at = None
    _let_go_of_keys(server, before)
    if save:
        server.save(update_fields=[*DISCOVERED_COLUMNS, "updated_at"])
    return server.read_configuration() or configuration


def fetch_jwks(server: FHIRServer, *, save: bool = True) -> dict[str, Any]:
    """
    Fetch the keys that *server* signs ID tokens with, and store them with their time.

    Args:
        save: as for :func:`fetch_configuration`, which comes first.

    Raises:
        UnsupportedServerError: the server names neither keys nor issuer.
        TransportError, DiscoveryError: as met; the stored ones are left as they were.
    """
    if not server.jwks_uri:
        _learn_issuer(server, save=save)
    answer = send(build_jwks_request(server.jwks_uri), max_body=_MAX_JWKS)
    jwks = process_jwks_response(answer)
    server.jwks = jwks
    server.jwks_fetched_at = timezone.now()
    server.jwks_max_age = answer.max_age
    server.discovery_failed_at = None
    if save:
        server.save(
            update_fields=[
                "discovery_failed_at",
                "jwks",
                "jwks_fetched_at",
                "jwks_max_age",
                "updated_at",
            ]
        )
    return jwks


def get_issuer(server: FHIRServer) -> str:
    """
    The ``iss`` that ID tokens of *server* have to carry (IDT-03).

    Raises:
        UnsupportedServerError: neither the row nor discovery tells it.
        TransportError, DiscoveryError: discovery would tell it, and failed.
    """
    if not (server.id_token_issuer or server.issuer):
        _learn_issuer(server)
    return server.id_token_issuer or server.issuer


def get_jwks(server: FHIRServer) -> Mapping[str, Any]:
    """
    The keys that *server* signs ID tokens with, from its row while that is fresh.

    Raises:
        UnsupportedServerError: the server names neither keys nor issuer.
        TransportError, DiscoveryError: nothing is cached and nothing could be fetched.
    """
    cached: dict[str, Any] | None = server.jwks
    if cached is not None and (
        _is_fresh(server.jwks_fetched_at, server.jwks_max_age) or not _claim(server)
    ):
        return cached
    try:
        return fetch_jwks(server)
    except (TransportError, DiscoveryError, UnsupportedServerError) as exc:
        _mark_failure(server)
        if cached is None:
            raise
        logger.warning("Server %s: stale JWK Set used (%s)", server.pk, exc.code)
        return cached


def iter_jwks(server: FHIRServer) -> Iterator[Mapping[str, Any]]:
    """
    The keys to look for a token's key in, one set after the other (IDT-06).

    First the known ones.  Ask for the next only if the key was missing: then what
    another process stored, and at last what the server has now.  If the key is missing
    there too, nothing is fetched for a minute: made-up key ids must not make us send a
    request each.

    Raises:
        UnsupportedServerError: the server names neither keys nor issuer.
        TransportError, DiscoveryError: nothing is cached and nothing could be fetched.
    """
    yield get_jwks(server)
    known_at = server.jwks_fetched_at
    server.refresh_from_db(fields=["jwks", "jwks_fetched_at", "jwks_missed_at"])
    if server.jwks is not None and server.jwks_fetched_at != known_at:
        yield server.jwks
    missed_at = server.jwks_missed_at
    if missed_at is not None and timezone.now() - missed_at < _JWKS_COOLDOWN:
        return
    try:
        newest = fetch_jwks(server)
    except SMARTError:
        _mark_miss(server)
        raise
    yield newest
    _mark_miss(server)


def refresh_servers() -> int:
    """
    Fetch again what is past half of its lifetime, for every active server.

    Returns:
        How many servers could not be read; each is logged.
    """
    failures = 0
    for server in FHIRServer.objects.active():
        try:
            _refresh(server)
        except SMARTError as exc:
            failures += 1
            logger.warning("Server %s: discovery failed (%s)", server.pk, exc.code)
    return failures


def _refresh(server: FHIRServer) -> None:
    wants_configuration = not _is_fresh(
        server.configuration_fetched_at, server.configuration_max_age, part=0.5
    )
    wants_jwks = server.jwks is not None and not _is_fresh(
        server.jwks_fetched_at, server.jwks_max_age, part=0.5
    )
    if not (wants_configuration or wants_jwks) or not _claim(server, _LONG_PAUSE):
        return
    if wants_configuration:
        fetch_configuration(server)
    if server.jwks is not None and (wants_jwks or wants_configuration):
        fetch_jwks(server)


def _fetch_document(server: FHIRServer) -> tuple[SMARTConfiguration, HTTPResponse]:
    """The configuration, and the answer it was in."""
    overrides = server.endpoint_overrides
    where: dict[str, Any] = {
        "base_url": server.base_url,
        "insecure_hosts": conf.SMART_INSECURE_HTTP_HOSTS,
        "overrides": overrides,
    }
    headers = server.discovery_headers or {}
    answer = send(build_discovery_request(server.base_url, headers=headers))
    is_set = answer.status_code == 200 and "token_endpoint" in overrides
    if is_without_endpoints(answer) and not is_set:
        try:
            statement = send(
                build_capability_statement_request(server.base_url, headers=headers)
            )
            return process_capability_statement(statement, **where), statement
        except (TransportError, DiscoveryError) as exc:
            # What is told is what is wrong with the document that should be there.
            logger.info("Server %s: nor a CapabilityStatement (%s)", server.pk, exc)
    return process_discovery_response(answer, **where), answer


def _fill_in_openid(server: FHIRServer) -> None:
    """Take from the OpenID configuration what the configuration should have told."""
    issuer = server.id_token_issuer or server.issuer
    document = server.configuration or {}
    wants_logout = server.rp_initiated_logout and not document.get(_END_SESSION)
    if issuer and server.jwks_uri and not wants_logout:
        return
    found = process_openid_configuration_response(
        send(build_openid_configuration_request(issuer or server.base_url)),
        issuer=issuer or None,
        insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
    )
    _check_lengths(issuer=found.issuer, jwks_uri=found.jwks_uri)
    server.issuer = server.issuer or found.issuer
    server.jwks_uri = server.jwks_uri or found.jwks_uri
    if not issuer:
        # Read below the base URL: the server's word, and not yet that of the issuer.
        server.jwks_uri = _get_keys_of_issuer(server, server.jwks_uri)
        if not server.jwks_uri:
            _fill_in_openid(server)
            return
    server.configuration = {
        _END_SESSION: found.end_session_endpoint,
        "id_token_signing_alg_values_supported": (
            list(found.id_token_signing_alg_values_supported) or None
        ),
        **document,
        "issuer": server.issuer,
        "jwks_uri": server.jwks_uri,
    }


def _get_keys_of_issuer(server: FHIRServer, jwks_uri: str) -> str:
    """
    *jwks_uri*, or nothing: then the issuer has to be asked where its keys are, as who
    names them signs in everybody whom it knows.  Of an issuer not set by hand only its
    own origin is believed, if no other server disputes it.
    """
    if not jwks_uri or server.id_token_issuer or not server.issuer:
        return jwks_uri
    if get_origin(jwks_uri) != get_origin(server.issuer):
        return ""
    others = FHIRServer.objects.exclude(pk=server.pk).with_issuer(server.issuer)
    return "" if others.exclude(jwks_uri__in=["", jwks_uri]).exists() else jwks_uri


def check_dispute(server: FHIRServer) -> None:
    """
    Refuse to sign in anybody while it is disputed who may speak for *server*.

    Raises:
        IssuerDisputedError: the message names the values, or the other servers.
    """
    if moved := server.disputed.get("moved"):
        raise IssuerDisputedError(
            f"Server {server.slug} names another {' and '.join(sorted(moved))} than "
            "before, at another origin: if that is right, empty its pinned values and "
            "discover it again."
        )
    if owners := server.disputed.get("owners"):
        raise IssuerDisputedError(
            f"Server {server.slug} names an issuer, key URL or token endpoint of "
            f"{', '.join(owners)}: switch off the wrong one, or put both into one "
            "login group."
        )


def _pin(server: FHIRServer, before: Mapping[str, Any], *, save: bool) -> None:
    """
    Keep issuer, key URL and token endpoint as they are, but for changes at one origin.

    Raises:
        IssuerDisputedError: one of them is at another origin now; nothing but that is
            stored.
    """
    found = _find_pinned(server)
    moved = {
        name: url
        for name, url in found.items()
        if name in server.pinned and get_origin(url) != get_origin(server.pinned[name])
    }
    if not moved:
        server.pinned = {**server.pinned, **found}
        server.disputed = {
            name: value for name, value in server.disputed.items() if name != "moved"
        }
        return
    for name, value in before.items():
        setattr(server, name, value)
    server.disputed = {**server.disputed, "moved": moved}
    if save:
        server.save(update_fields=["disputed"])
    logger.error(
        "Server %s: %s moved to another origin; the known ones stay in use and nobody "
        "can sign in until its pinned values are emptied.",
        server.slug,
        ", ".join(sorted(moved)),
    )
    check_dispute(server)


def _find_pinned(server: FHIRServer) -> dict[str, str]:
    """What is pinned of the present configuration: not what the operator has set."""
    configuration = server.read_configuration()
    found = {
        "issuer": "" if server.id_token_issuer else server.issuer,
        "jwks_uri": server.jwks_uri,
        "token_endpoint": (
            ""
            if configuration is None or "token_endpoint" in server.endpoint_overrides
            else configuration.token_endpoint
        ),
    }
    return {name: url for name, url in found.items() if url}


def _let_go_of_keys(server: FHIRServer, before: Mapping[str, Any]) -> None:
    """Forget keys of another issuer; those of another place are fetched again."""
    if not server.id_token_issuer and server.issuer != before["issuer"]:
        server.jwks = None
    if server.jwks_uri != before["jwks_uri"]:
        server.jwks_fetched_at = None


def _learn_issuer(server: FHIRServer, *, save: bool = True) -> None:
    """Issuer and keys' address of a server whose configuration does not tell both."""
    columns = ("configuration", "disputed", "issuer", "jwks_uri", "pinned")
    before = {name: getattr(server, name) for name in columns}
    try:
        _fill_in_openid(server)
    except DiscoveryStatusError as exc:
        if server.id_token_issuer or server.issuer:
            raise
        raise UnsupportedServerError(
            "The server's SMART configuration names no issuer, so its ID tokens cannot "
            "be checked: set the server's ID token issuer."
        ) from exc
    _pin(server, before, save=save)
    if save:
        server.save(update_fields=[*columns, "updated_at"])


def _check_lengths(**urls: str | None) -> None:
    for name, url in urls.items():
        if url is not None and len(url) > MAX_URL_LENGTH:
            raise MalformedDiscoveryError(
                f"{name} has more than {MAX_URL_LENGTH} characters."
            )


def _build_from_overrides(server: FHIRServer) -> SMARTConfiguration | None:
    """What the operator has set by hand, if it is enough to go on with."""
    overrides = server.endpoint_overrides
    if "token_endpoint" not in overrides:
        return None
    return SMARTConfiguration.from_json(
        {},
        base_url=server.base_url,
        insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
        overrides=overrides,
    )


def _claim(server: FHIRServer, pause: timedelta = _PAUSE) -> bool:
    return FHIRServer.objects.claim_discovery(server, now=timezone.now(), pause=pause)


def _mark_miss(server: FHIRServer) -> None:
    server.jwks_missed_at = timezone.now()
    server.save(update_fields=["jwks_missed_at"])


def _mark_failure(server: FHIRServer) -> None:
    server.discovery_failed_at = timezone.now()
    server.save(update_fields=["discovery_failed_at"])


def _is_fresh(
    fetched_at: datetime | None, max_age: int | None, *, part: float = 1
) -> bool:
    """Whether less than *part* of the lifetime has passed."""
    if fetched_at is None:
        return False
    lifetime = conf.SMART_DISCOVERY_LIFETIME
    if max_age is not None:
        lifetime = min(max(timedelta(seconds=max_age), _LEAST_LIFETIME), lifetime)
    return timezone.now() - fetched_at < lifetime * part

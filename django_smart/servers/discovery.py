"""
A server's configuration and keys: fetched rarely, kept in its state, shared by all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db import Error, router, transaction
from django.db.models import F
from django.utils import timezone

from ..conf import conf
from ..exceptions import (
    DiscoveryError,
    DiscoveryStatusError,
    ServerMovedError,
    SMARTError,
    TokenResponseError,
    TokenServerError,
    TransportError,
    UnsupportedServerError,
)
from ..fields import digest
from ..models import ClientRegistration, FHIRServer, Identity, ServerState
from ..models.server import MAX_URL_LENGTH
from ..models.server_state import CLOCKS_DIFFER, ServerStateQuerySet
from ..protocol.configuration import Capability, SMARTConfiguration
from ..protocol.discovery import (
    build_discovery_request,
    build_jwks_request,
    build_openid_configuration_request,
    process_discovery_response,
    process_jwks_response,
    process_openid_configuration_response,
)
from ..protocol.messages import HTTPResponse
from ..protocol.urls import get_origin
from .http import send

__all__ = [
    "DISCOVERED_COLUMNS",
    "accept_moved",
    "check_moved",
    "copy_discovered",
    "describe_configuration",
    "describe_moved",
    "doubt_configuration",
    "fetch_configuration",
    "fetch_jwks",
    "get_configuration",
    "get_issuer",
    "get_jwks",
    "iter_jwks",
    "note_token_error",
    "refresh_servers",
]

logger = logging.getLogger(__name__)

#: Columns of a server's state that discovery fills in.
DISCOVERED_COLUMNS = (
    "client_configurations",
    "configuration",
    "configuration_fetched_at",
    "configuration_max_age",
    "discovery_failed_at",
    "issuer",
    "jwks",
    "jwks_fetched_at",
    "jwks_max_age",
    "jwks_uri",
    "moved",
    "pinned",
)
_LEARNED_COLUMNS = ("configuration", "issuer", "jwks_uri", "moved", "pinned")
# A server may request more frequent discovery, but not at each launch.
_LEAST_LIFETIME = timedelta(minutes=5)
# While a server is down, it is retried this often, and less in the background.
_PAUSE = timedelta(seconds=60)
_GONE = frozenset({404, 410})
_REFUSED = frozenset({400, 401})
_HINT = "Some servers require client_id too: set client_id_with_assertion."
_LONG_PAUSE = timedelta(minutes=10)
# Seconds for one run in the background: servers that do not answer must not occupy
# workers.
_LONGEST_RUN = 60.0
# How long a failure to read a server that was never read is remembered.
_FIRST_PAUSE = timedelta(seconds=10)
_END_SESSION = "end_session_endpoint"
# What describes a server.
_ENDPOINTS = (
    "authorization_endpoint",
    "token_endpoint",
    "revocation_endpoint",
    "introspection_endpoint",
    "registration_endpoint",
)
_LISTS = (
    "capabilities",
    "code_challenge_methods_supported",
    "token_endpoint_auth_methods_supported",
    "token_endpoint_auth_signing_alg_values_supported",
)


def get_configuration(server: FHIRServer, client_id: str = "") -> SMARTConfiguration:
    """
    Return *server*'s SMART configuration, from its state while that is fresh.

    The endpoints can differ between clients; *client_id* says whose are needed.

    If it cannot be fetched again, the stale configuration is used, so that launches do
    not depend on it. With manually set endpoints, launches never depend on it.

    Raises:
        DiscoveryError: fetching it has just failed, or the server was changed or
            deleted while it was fetched.
        TransportError, DiscoveryError: nothing is stored and nothing could be fetched.
    """
    state = server.discovered
    known = server.read_configuration(client_id)
    if known is not None and _is_fresh(
        state.configuration_fetched_at,
        state.configuration_max_age,
    ):
        return known
    known = known or _build_from_overrides(server)
    if known is not None and not _claim(server):
        return known
    if known is None and _has_failed_just_now(state):
        raise DiscoveryError(
            f"Server {server.slug} has no cached configuration, and fetching it has "
            "just failed.",
            code="discovery_busy",
        )
    try:
        return fetch_configuration(server, client_id)
    except (TransportError, DiscoveryError) as exc:
        _mark_failure(server)
        if known is None:
            raise
        logger.warning("Server %s: stale configuration used (%s)", server.pk, exc.code)
        return server.read_configuration(client_id) or known


def note_token_error(registration: ClientRegistration, error: Exception) -> None:
    """
    Act on an *error* of the token endpoint that may have a cause in our data.

    Has the configuration fetched again if an endpoint is gone. If a client assertion
    may have been refused, its message then names the switch for servers that require
    ``client_id`` too; some of them respond with an empty body (Glewlwyd, 2026).
    """
    server = registration.server
    is_refused = (
        error.error == "invalid_client"
        if isinstance(error, TokenResponseError)
        else isinstance(error, TokenServerError) and error.status_code in _REFUSED
    )
    is_without_id = registration.uses_private_key and not (
        server.quirks.client_id_with_assertion
    )
    if is_refused and is_without_id:
        error.args = (f"{error} {_HINT}",)
    if isinstance(error, TokenServerError) and error.status_code in _GONE:
        try:
            doubt_configuration(server)
        except Error as exc:
            # The row may be locked, by the caller itself; the next error tells again.
            what = type(exc).__name__
            logger.warning("Server %s: still read from the row (%s)", server.pk, what)


def doubt_configuration(server: FHIRServer) -> None:
    """Have the configuration fetched again before it is used next."""
    server.discovered.configuration_fetched_at = None
    ServerState.objects.filter(pk=server.pk).update(configuration_fetched_at=None)


def fetch_configuration(
    server: FHIRServer, client_id: str = "", *, save: bool = True
) -> SMARTConfiguration:
    """
    Fetch the configuration and store it with its time.

    Reads the SMART configuration, and the OpenID configuration if the server supports
    OpenID Connect but does not name the issuer, or cannot be trusted for the keys.  If
    the answer can differ between clients, it is read for each.

    Args:
        client_id: whose configuration is returned, registered or not yet.
        save: ``False`` to only set the attributes of *server*, which need not be saved
            yet.

    Raises:
        TransportError, DiscoveryError: as met; the stored one is left as it was.
        DiscoveryError: the base URL was changed while it was asked.
    """
    state = server.discovered
    found = _fetch_documents(server, client_id)
    configuration, answer = next(iter(found.values()))
    for each in configuration.deviations:
        logger.info("Server %s: %s (%s)", server.pk, each.code, each.evidence)
    _check_lengths(issuer=configuration.issuer, jwks_uri=configuration.jwks_uri)
    before = {name: getattr(state, name) for name in DISCOVERED_COLUMNS}
    state.client_configurations = state.client_configurations | {
        each: dict(own.raw) for each, (own, _) in found.items() if each
    }
    state.configuration = dict(configuration.raw)
    state.issuer = configuration.issuer or ""
    state.jwks_uri = _get_keys_of_issuer(server, configuration.jwks_uri or "")
    if configuration.has(Capability.SSO_OPENID_CONNECT) or state.jwks is not None:
        try:
            _fill_in_openid(server)
        except (TransportError, DiscoveryStatusError) as exc:
            # Sign-in may not be needed; if it is, this error is raised again.
            logger.warning("Server %s: no OpenID configuration (%s)", server.pk, exc)
            state.issuer = state.issuer or before["issuer"]
            if server.id_token_issuer or state.issuer == before["issuer"]:
                state.jwks_uri = state.jwks_uri or before["jwks_uri"]
        except DiscoveryError as exc:
            if not (state.jwks_uri and (server.id_token_issuer or state.issuer)):
                for name, value in before.items():
                    setattr(state, name, value)
                raise
            logger.warning("Server %s: cannot sign out there (%s)", server.pk, exc)
    _pin(server, before, save=save)
    # Not fresh while an operator has to approve it: the EHR may take it back.
    state.configuration_fetched_at = None if state.moved else timezone.now()
    state.configuration_max_age = answer.max_age
    state.discovery_failed_at = None
    _let_go_of_keys(server, before)
    if save:
        _store(server, *DISCOVERED_COLUMNS)
    check_moved(server)
    return server.read_configuration(client_id) or configuration


def describe_configuration(server: FHIRServer) -> Iterator[tuple[str, str]]:
    """
    Yield members of what *server* says of itself, and their values as text.

    Raises:
        DiscoveryError: current settings do not accept what is stored.
    """
    state = server.discovered
    found = server.parse_configuration(state.configuration or {})
    members: dict[str, Iterable[str]] = {
        **{name: [getattr(found, name) or ""] for name in _ENDPOINTS},
        "issuer": [server.id_token_issuer or state.issuer],
        "jwks_uri": [state.jwks_uri or found.jwks_uri or ""],
        **{name: getattr(found, name) or () for name in _LISTS},
    }
    for each in found.deviations:
        members[each.code] = [*members.get(each.code, ()), each.evidence]
    for name, values in members.items():
        # A server can send anything, such as what a terminal executes.
        shown = (each if each.isprintable() else ascii(each) for each in sorted(values))
        if text := ", ".join(shown):
            is_set = name in server.overrides
            yield name, f"{text} (set manually)" if is_set else text


def copy_discovered(server: FHIRServer, *, source: FHIRServer) -> None:
    """Store as state of *server* what was fetched with *source*, an unsaved copy."""
    state = server.discovered
    for name in DISCOVERED_COLUMNS:
        setattr(state, name, getattr(source.discovered, name))
    state.save(update_fields=DISCOVERED_COLUMNS)


def fetch_jwks(server: FHIRServer, *, save: bool = True) -> dict[str, Any]:
    """
    Fetch the keys with which *server* signs ID tokens, and store them with their time.

    Args:
        save: as for :func:`fetch_configuration`, which comes first.

    Raises:
        UnsupportedServerError: the server names neither keys nor issuer.
        TransportError, DiscoveryError: as met; the stored ones are left as they were.
    """
    state = server.discovered
    if not state.jwks_uri:
        _learn_issuer(server, save=save)
    answer = send(build_jwks_request(state.jwks_uri), server=server)
    jwks = process_jwks_response(answer)
    state.jwks = jwks
    state.jwks_fetched_at = timezone.now()
    state.jwks_max_age = answer.max_age
    state.discovery_failed_at = None
    if save:
        _store(server, "discovery_failed_at", "jwks", "jwks_fetched_at", "jwks_max_age")
    return jwks


def get_issuer(server: FHIRServer) -> str:
    """
    Return the ``iss`` that ID tokens of *server* must have (IDT-03).

    Raises:
        UnsupportedServerError: neither the row nor discovery provides it.
        TransportError, DiscoveryError: discovery failed.
    """
    state = server.discovered
    if not (server.id_token_issuer or state.issuer):
        _learn_issuer(server)
    return server.id_token_issuer or state.issuer


def get_jwks(server: FHIRServer) -> Mapping[str, Any]:
    """
    Return the keys with which *server* signs ID tokens, from its state while fresh.

    Raises:
        UnsupportedServerError: the server names neither keys nor issuer.
        TransportError, DiscoveryError: nothing is cached and nothing could be fetched.
    """
    state = server.discovered
    cached: dict[str, Any] | None = state.jwks
    if cached is not None and (
        _is_fresh(state.jwks_fetched_at, state.jwks_max_age) or not _claim(server)
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
    Yield the key sets in which to look for a token's key (IDT-06).

    First the known set. Request the next only if the key was missing or did not verify
    the token: then the one that another process stored, and finally the server's
    current one. If that fails, too, nothing is fetched for a minute: made-up key IDs
    must not cause a request each.

    Raises:
        UnsupportedServerError: the server names neither keys nor issuer.
        TransportError, DiscoveryError: nothing is cached and nothing could be fetched.
    """
    state = server.discovered
    yield get_jwks(server)
    known_at = state.jwks_fetched_at
    state.refresh_from_db(fields=["jwks", "jwks_fetched_at", "discovery_failed_at"])
    if state.jwks is not None and state.jwks_fetched_at != known_at:
        yield state.jwks
    if _was_key_missing(state):
        return
    yield fetch_jwks(server)
    _mark_failure(server)


def _was_key_missing(state: ServerState) -> bool:
    """Return whether a key was missing although the keys had just been fetched."""
    fetched_at, failed_at = state.jwks_fetched_at, state.discovery_failed_at
    return (
        fetched_at is not None
        and failed_at is not None
        and fetched_at <= failed_at
        and timezone.now() - fetched_at < _PAUSE
    )


def refresh_servers() -> int:
    """
    Refetch what is past half of its lifetime, of active servers, for about a minute.

    The one read longest ago comes first, and those that did not answer come last, so
    the next run goes on where this one ends.

    Returns:
        The number of servers that could not be read; each is logged.
    """
    failures, deadline = 0, time.monotonic() + _LONGEST_RUN
    active = FHIRServer.objects.active()
    asked_first = active.order_by(
        F("state__discovery_failed_at").asc(nulls_first=True),
        F("state__configuration_fetched_at").asc(nulls_first=True),
        "pk",
    )
    for pk in list(asked_first.values_list("pk", flat=True)):
        if time.monotonic() > deadline:
            break
        # Read now: it may have been changed while the others were asked.
        if (server := active.select_related("state").filter(pk=pk).first()) is None:
            continue
        try:
            _refresh(server)
        except SMARTError as exc:
            failures += 1
            logger.warning("Server %s: discovery failed (%s)", server.pk, exc.code)
    return failures


def _refresh(server: FHIRServer) -> None:
    state = server.discovered
    wants_configuration = not _is_fresh(
        state.configuration_fetched_at,
        state.configuration_max_age,
        part=0.5,
    )
    wants_jwks = state.jwks is not None and not _is_fresh(
        state.jwks_fetched_at, state.jwks_max_age, part=0.5
    )
    if not (wants_configuration or wants_jwks) or not _claim(server, _LONG_PAUSE):
        return
    if wants_configuration:
        fetch_configuration(server)
    if state.jwks is not None and (wants_jwks or wants_configuration):
        fetch_jwks(server)


def _fetch_documents(
    server: FHIRServer, client_id: str
) -> dict[str, tuple[SMARTConfiguration, HTTPResponse]]:
    """Fetch the configuration, by client ID where it can differ between clients."""
    client_ids = [""]
    if server.differs_by_client:
        registered = ClientRegistration.objects.filter(server_id=server.pk)
        known = registered.order_by("pk").values_list("client_id", flat=True)
        client_ids = list(dict.fromkeys(filter(None, (*known, client_id)))) or [""]
    found, failed = {}, {}
    for each in client_ids:
        try:
            found[each] = _fetch_document(server, each)
        except DiscoveryError as exc:
            failed[each] = exc
    for each, error in failed.items():
        if each == client_id or not found:
            raise error
        # One that the server does not know must not stop the others.
        logger.warning(
            "Server %s: no configuration for a client (%s)", server.pk, error
        )
    return found


def _fetch_document(
    server: FHIRServer, client_id: str
) -> tuple[SMARTConfiguration, HTTPResponse]:
    """Fetch the configuration of one client; return it with the response."""
    overrides = server.overrides
    where: dict[str, Any] = {
        "base_url": server.base_url,
        "insecure_hosts": conf.SMART_INSECURE_HTTP_HOSTS,
        "overrides": overrides,
    }
    headers = server.build_discovery_headers(client_id)
    answer = send(
        build_discovery_request(server.base_url, headers=headers),
        server=server,
    )
    document = process_discovery_response(answer)
    return SMARTConfiguration.from_json(document, **where), answer


def _fill_in_openid(server: FHIRServer) -> None:
    """Add what the SMART configuration omits from the OpenID configuration."""
    state = server.discovered
    issuer = server.id_token_issuer or state.issuer
    document = state.configuration or {}
    wants_logout = server.quirks.rp_initiated_logout and not document.get(_END_SESSION)
    if issuer and state.jwks_uri and not wants_logout:
        return
    found = process_openid_configuration_response(
        send(
            build_openid_configuration_request(issuer or server.base_url),
            server=server,
        ),
        issuer=issuer or None,
        insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
    )
    _check_lengths(issuer=found["issuer"], jwks_uri=found["jwks_uri"])
    state.issuer = state.issuer or found["issuer"]
    state.jwks_uri = state.jwks_uri or found["jwks_uri"]
    if not issuer:
        # Read below the base URL: the server's claim, not yet the issuer's.
        state.jwks_uri = _get_keys_of_issuer(server, state.jwks_uri)
        if not state.jwks_uri:
            _fill_in_openid(server)
            return
    state.configuration = {
        **found,
        **document,
        "issuer": state.issuer,
        "jwks_uri": state.jwks_uri,
    }


def _get_keys_of_issuer(server: FHIRServer, jwks_uri: str) -> str:
    """
    Return *jwks_uri* if it can be trusted; if not, the issuer's own document must name
    the keys, since whoever names them can impersonate its users. Unless the issuer was
    set manually, only a URL on its origin is trusted.
    """
    is_entered = server.id_token_issuer or "jwks_uri" in server.overrides
    if is_entered or not server.discovered.issuer or not _is_foreign(jwks_uri, server):
        return jwks_uri
    return ""


def check_moved(server: FHIRServer) -> None:
    """
    Refuse sign-in while an operator has to approve what *server* names now.

    Raises:
        ServerMovedError: the message says which values.
    """
    if moved := server.discovered.moved:
        carry_over = "carry its identities over, " if "issuer" in moved else ""
        raise ServerMovedError(
            f"Server {server.slug} now names different values "
            f"({'; '.join(describe_moved(server))}): if that is correct, {carry_over}"
            "accept the new values in the admin or with smart_discover --accept."
        )


def describe_moved(server: FHIRServer) -> list[str]:
    """Return what an operator has to approve, as ``field: old → new``."""
    state = server.discovered
    return [
        f"{name}: {state.pinned.get(name, '–')} → {url}"
        for name, url in sorted(state.moved.items())
    ]


def accept_moved(server: FHIRServer, shown: Mapping[str, str]) -> bool:
    """
    Let *server* name the values in *shown* from now on; it is read again next.

    Returns:
        Whether they are still the ones to approve; if not, nothing was changed.
    """
    columns = ("pinned", "moved", "configuration_fetched_at", "discovery_failed_at")
    with transaction.atomic(using=router.db_for_write(ServerState)):
        # The race is with a discovery that finds others than the operator was shown.
        state = ServerState.objects.select_for_update().get(pk=server.pk)
        if not shown or state.moved != shown:
            return False
        state.pinned = {**state.pinned, **shown}
        state.moved = {}
        state.configuration_fetched_at = state.discovery_failed_at = None
        state.save(update_fields=columns)
    server.discovered.refresh_from_db(fields=columns)
    return True


def _pin(server: FHIRServer, before: Mapping[str, Any], *, save: bool) -> None:
    """
    Pin issuer, key URL and token endpoint, unless an operator has to approve them.

    Raises:
        ServerMovedError: one of them moved to another origin; only that fact is
            stored. If only the issuer of known identities changed, so is all else, and
            the caller raises it afterward.
    """
    state = server.discovered
    found = _find_pinned(server)
    moved = {name: url for name, url in found.items() if _has_moved(server, name, url)}
    if not moved:
        state.pinned, state.moved = (
            {**state.pinned, **found},
            {},
        )
        return
    logger.log(
        logging.INFO if moved == state.moved else logging.ERROR,
        "Server %s: %s changed; the known values stay in use, "
        "and no one can sign in until an operator accepts them.",
        server.slug,
        ", ".join(sorted(moved)),
    )
    is_elsewhere = any(_is_elsewhere(server, *each) for each in moved.items())
    if is_elsewhere:
        for name, value in before.items():
            setattr(state, name, value)
    else:
        # The token endpoint may have changed with the issuer, and refreshes need it.
        state.issuer = state.pinned["issuer"]
        state.pinned = {
            **state.pinned,
            **found,
            "issuer": state.issuer,
        }
    state.moved = moved
    if is_elsewhere:
        if save:
            _store(server, "moved")
        check_moved(server)


def _has_moved(server: FHIRServer, name: str, url: str) -> bool:
    """Return whether an operator has to approve *url*."""
    known = server.discovered.pinned.get(name, url)
    if url == known:
        return False
    # Under another issuer, nobody would be found by the identities that are stored.
    return _is_elsewhere(server, name, url) or (
        name == "issuer"
        and Identity.objects.known_to(server).filter(issuer=known).exists()
    )


def _is_elsewhere(server: FHIRServer, name: str, url: str) -> bool:
    return get_origin(url) != get_origin(server.discovered.pinned[name])


def _is_foreign(jwks_uri: str, server: FHIRServer) -> bool:
    return bool(jwks_uri) and get_origin(jwks_uri) != get_origin(
        server.discovered.issuer
    )


def _find_pinned(server: FHIRServer) -> dict[str, str]:
    """Return the values to pin, without those that the operator set."""
    state = server.discovered
    configuration = server.read_configuration()
    entered = server.overrides
    found = {
        "issuer": "" if server.id_token_issuer else state.issuer,
        "jwks_uri": state.jwks_uri,
        "token_endpoint": configuration.token_endpoint if configuration else "",
    }
    for client_id in state.client_configurations if server.differs_by_client else ():
        if own := server.read_configuration(client_id):
            found[f"token_endpoint of {client_id}"] = own.token_endpoint
    return {
        name: url
        for name, url in found.items()
        if url and name.partition(" ")[0] not in entered
    }


def _let_go_of_keys(server: FHIRServer, before: Mapping[str, Any]) -> None:
    """Delete keys of another issuer; refetch those with another URL."""
    state = server.discovered
    if not server.id_token_issuer and state.issuer != before["issuer"]:
        state.jwks = None
    if state.jwks_uri != before["jwks_uri"]:
        state.jwks_fetched_at = None


def _learn_issuer(server: FHIRServer, *, save: bool = True) -> None:
    """Find issuer and key URL of a server whose configuration lacks one of them."""
    state = server.discovered
    before = {name: getattr(state, name) for name in _LEARNED_COLUMNS}
    try:
        _fill_in_openid(server)
    except DiscoveryStatusError as exc:
        named = str((state.configuration or {}).get("jwks_uri") or "")
        if server.id_token_issuer:
            raise
        if not state.issuer:
            what = "names no issuer"
        elif exc.status_code in _GONE and _is_foreign(named, server):
            what = "names keys on another host than its issuer, which confirms no keys"
        else:
            raise
        raise UnsupportedServerError(
            f"The server's SMART configuration {what}, so its ID tokens cannot be "
            "validated: set the server's ID token issuer to the one that the vendor "
            "documents."
        ) from exc
    _pin(server, before, save=save)
    if save:
        _store(server, *_LEARNED_COLUMNS)
    check_moved(server)


def _check_lengths(**urls: str | None) -> None:
    for name, url in urls.items():
        if url is not None and len(url) > MAX_URL_LENGTH:
            raise DiscoveryError(f"{name} is longer than {MAX_URL_LENGTH} characters.")


def _build_from_overrides(server: FHIRServer) -> SMARTConfiguration | None:
    """Return the operator's manually set configuration, if it is sufficient."""
    if not server.overrides.get("token_endpoint"):
        return None
    return server.parse_configuration({})


def _claim(server: FHIRServer, pause: timedelta = _PAUSE) -> bool:
    return ServerState.objects.claim_discovery(
        server.pk, now=timezone.now(), pause=pause
    )


def _has_failed_just_now(state: ServerState) -> bool:
    failed_at = state.discovery_failed_at
    # A time in the future is of a host whose clock was wrong.
    return failed_at is not None and (
        timedelta(0) <= timezone.now() - failed_at < _FIRST_PAUSE
    )


def _store(server: FHIRServer, *columns: str) -> None:
    """
    Save *columns*, unless another base URL was entered while this one was asked.

    Raises:
        DiscoveryError: one was, or the server was deleted.
    """
    values = {name: getattr(server.discovered, name) for name in columns}
    # A conditional UPDATE: the race is with an operator.
    if not _find_asked(server).update(**values):
        raise DiscoveryError(
            f"Server {server.slug} was changed while its configuration was fetched.",
            code="discovery_busy",
        )


def _mark_failure(server: FHIRServer) -> None:
    state = server.discovered
    state.discovery_failed_at = timezone.now()
    _find_asked(server).update(discovery_failed_at=state.discovery_failed_at)


def _find_asked(server: FHIRServer) -> ServerStateQuerySet:
    """Return the state, unless another base URL was entered since."""
    at_base_url = digest(server.normalized_base_url)
    return ServerState.objects.filter(pk=server.pk, server__base_url_digest=at_base_url)


def _is_fresh(
    fetched_at: datetime | None, max_age: int | None, *, part: float = 1
) -> bool:
    """Return whether less than *part* of the lifetime has passed."""
    if fetched_at is None:
        return False
    lifetime = conf.SMART_DISCOVERY_LIFETIME
    if max_age is not None:
        lifetime = min(max(timedelta(seconds=max_age), _LEAST_LIFETIME), lifetime)
    age = timezone.now() - fetched_at
    # A time in the future is of a host whose clock was wrong.
    return -CLOCKS_DIFFER < age < lifetime * part

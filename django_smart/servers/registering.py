"""Register this site's client at a server, for commands and the admin."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import IntegrityError, models, router, transaction
from django.urls import NoReverseMatch, reverse
from django.utils.text import slugify

from ..conf import conf
from ..exceptions import (
    CredentialsError,
    InsecureURLError,
    RegistrationError,
    SMARTError,
    UnsupportedServerError,
)
from ..fields import digest
from ..models import ClientRegistration, FHIRServer, ServerState, SigningKey
from ..protocol.client_registration import (
    ClientInformation,
    build_registration_request,
    process_registration_response,
)
from ..protocol.id_token import MAX_TIME
from ..protocol.json import parse_json
from ..protocol.quirks import QUIRKS, QuirkError
from ..protocol.scopes import ScopeSet
from ..protocol.urls import get_origin, validate_https_url
from .discovery import copy_discovered, fetch_configuration
from .http import send
from .presets import PRESETS
from .requirements import check_registration
from .signing_keys import ensure_active_key

__all__ = [
    "ClientURLs",
    "build_client_urls",
    "choose_callback",
    "ensure_key_of",
    "get_settable_fields",
    "get_site_url",
    "make_name",
    "make_slug",
    "plan_client",
    "register_client",
    "register_dynamically",
    "validate_site_url",
]

logger = logging.getLogger(__name__)

_CREDENTIALS = ("client_secret", "client_secret_env", "client_secret_file")
_AuthMethod = ClientRegistration.AuthMethod


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientURLs:
    """
    The URLs for the vendor's form, each complete and fixed (REG-02, REG-03).

    Without a standalone scope, nothing starts at ``login_url``: it is ``None``.
    """

    launch_url: str
    login_url: str | None
    redirect_uri: str
    jwks_url: str


def register_client(values: Mapping[str, Any]) -> ClientRegistration:
    """
    Store the server and the registration, new or updated, in one transaction.

    Sends nothing to the server. With ``private_key_jwt``, a signing key is generated if
    none is active.

    Args:
        values: fields of the registration and of its server, and quirks, by name, as
            JSON has them or as text of a command line; ``None`` keeps a stored value.
            ``base_url`` and ``client_id`` identify the row.  ``site_url`` is the origin
            of this site, for ``redirect_uri``; by default ``SMART_SITE_URL``.

    Raises:
        ValidationError: the values themselves are invalid; nothing is stored. The
            messages quote none of them.
        ImproperlyConfigured: the package's URLs are not included in the site's.
    """
    of_server, quirks, of_registration = _sort(values)
    try:
        with transaction.atomic(using=router.db_for_write(ClientRegistration)):
            server = _store_server(of_server, quirks)
            registration = _store_registration(of_registration, server)
            ensure_key_of(registration)
    except IntegrityError as exc:
        # Another one was inserted after the constraints were checked.
        raise ValidationError(
            "Another user registered the same server or client at the same "
            "time; try again."
        ) from exc
    return registration


def plan_client(values: Mapping[str, Any]) -> ClientRegistration:
    """Return the row that :func:`register_client` would store, and store nothing."""
    using = router.db_for_write(ClientRegistration)
    with transaction.atomic(using=using):
        planned = register_client(values)
        transaction.set_rollback(True, using=using)
    return planned


def get_settable_fields() -> dict[str, models.Field[Any, Any]]:
    """Return the fields of registrations and servers that can be set, by name."""
    fields: dict[str, models.Field[Any, Any]] = {}
    for model in (ClientRegistration, FHIRServer):
        for each in model._meta.concrete_fields:
            is_own = each.primary_key or each.is_relation or each.name == "quirks"
            if each.editable and not is_own:
                prefix = "server." if each.name in fields else ""
                fields[prefix + each.name] = each
    return fields


def _sort(values: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the values of the server, its quirks, and those of the registration."""
    fields = get_settable_fields()
    of_server: dict[str, Any] = {}
    quirks: dict[str, Any] = {}
    of_registration: dict[str, Any] = {}
    for name, value in values.items():
        field = fields.get(name)
        if value is None:
            continue
        if name in QUIRKS:
            is_name = bool(QUIRKS[name].choices)
            quirks[name] = None if value == "" else value if is_name else _parse(value)
        elif name == "site_url":
            of_registration[name] = _require(name, value, str, "text")
        elif field is None:
            near = get_close_matches(name, [*fields, *QUIRKS], n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValidationError({name: f"There is no field {name}.{hint}"})
        else:
            is_server = field.model is FHIRServer
            target = of_server if is_server else of_registration
            target[field.name] = _read(name, field, value)
    for name, given in (("base_url", of_server), ("client_id", of_registration)):
        if not given.get(name):
            raise ValidationError({name: "This value is required."})
    return of_server, quirks, of_registration


def _read(name: str, field: models.Field[Any, Any], value: Any) -> Any:
    if isinstance(field, models.CharField | models.TextField):
        if name == "request_headers" and isinstance(value, Mapping):
            return json.dumps(value)
        return _require(name, value, str, "text")
    if isinstance(field, models.JSONField):
        # An empty value of another type would pass the field's validators.
        kind = type(field.get_default())
        what = "a JSON object" if kind is dict else "a JSON list"
        return _require(name, _parse(value), kind, what)
    if isinstance(field, models.BooleanField):
        return _require(name, _parse(value), bool, "true or false")
    return _require(name, _parse(value), int, "a whole number")


def _require(name: str, value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        # The value is not quoted: it may be a secret that went astray.
        raise ValidationError({name: f"{name} must be {what}."})
    return value


def _parse(value: Any) -> Any:
    """Return what text of a command line means, if it is JSON."""
    if not isinstance(value, str):
        return value
    text = value.lower() if value.lower() in {"true", "false"} else value
    try:
        return parse_json(text.encode(), error=SMARTError, what="value")
    except SMARTError:
        return value


def ensure_key_of(registration: ClientRegistration) -> None:
    """Generate a signing key if *registration* needs one and none is active."""
    algorithm = registration.signing_algorithm
    own = SigningKey.objects.of(registration).active().filter(algorithm=algorithm)
    if registration.uses_private_key and not own.exists():
        ensure_active_key(algorithm)


def validate_site_url(url: str) -> str:
    """
    Return the origin *url* without a trailing slash.

    Raises:
        InsecureURLError: not https (see ``SMART_INSECURE_HTTP_HOSTS``), or more than
            scheme, host and port: paths come from the site's URLs.
    """
    origin = url.removesuffix("/")
    validate_https_url(
        origin, insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS, what="site URL"
    )
    parts = urlsplit(origin)
    if parts.path or parts.query or origin.endswith("?"):
        raise InsecureURLError(
            f"The site URL must be a scheme and host; got {origin!r}."
        )
    return origin


def get_site_url(registration: ClientRegistration) -> str:
    """Return the origin with which *registration* was registered, or the setting."""
    if registration.redirect_uri:
        return get_origin(registration.redirect_uri)
    return conf.SMART_SITE_URL


def build_client_urls(registration: ClientRegistration, *, site_url: str) -> ClientURLs:
    """
    Return the URLs to enter in the vendor's form.

    Args:
        site_url: as :func:`validate_site_url` returns it.

    Raises:
        ImproperlyConfigured: the package's URLs are not included in the site's.
    """
    own = (
        {} if registration.is_ehr_default else {"launch_slug": registration.launch_slug}
    )
    return ClientURLs(
        launch_url=site_url + _reverse("launch", **own),
        login_url=(
            f"{site_url}{_reverse('login')}?{registration.login_query}"
            if registration.standalone_scope
            else None
        ),
        redirect_uri=(
            registration.redirect_uri
            or site_url + _reverse_callback(registration.callback_id)
        ),
        jwks_url=site_url + _reverse_jwks(registration),
    )


def _reverse(name: str, **kwargs: Any) -> str:
    try:
        return reverse(f"django_smart:{name}", kwargs=kwargs)
    except NoReverseMatch as exc:
        raise ImproperlyConfigured(
            'Include the URLs of django_smart: path("smart/", '
            'include("django_smart.urls")).'
        ) from exc


def _store_server(values: dict[str, Any], quirks: Mapping[str, Any]) -> FHIRServer:
    base_url = values.pop("base_url")
    try:
        known = FHIRServer.objects.with_base_url(base_url).first()
    except InsecureURLError as exc:
        raise ValidationError({"base_url": str(exc)}, code=exc.code) from exc
    server = known or FHIRServer(
        base_url=base_url, name=make_name(base_url), slug=make_slug(base_url)
    )
    if "preset" in values:
        before, server.preset = server.preset, values["preset"]
        apply_preset(server, before=before)
    overrides = server.overrides
    try:
        server.quirks = server.quirks.replace(quirks)
    except QuirkError as exc:
        raise ValidationError({exc.name: str(exc)}) from exc
    _assign(server, values)
    _check_secret(server, "request_headers")
    server.full_clean()
    server.save()
    if server.overrides != overrides:
        # Issuer and keys are fetched again.
        ServerState.objects.forget(
            server.pk, "configuration_fetched_at", "discovery_failed_at"
        )
    return server


def apply_preset(
    server: FHIRServer, *, before: str, keep: Collection[str] = ()
) -> None:
    """
    Fill in the preset of *server*.

    Discovery headers are kept, if there are any.

    Args:
        before: its previous preset; quirks that still have a value of that one are
            reset first.
        keep: quirks that an operator has just entered.
    """
    current = server.quirks.as_json()
    values: dict[str, Any] = {}
    if before != server.preset:
        for name, value in PRESETS.get(before, {}).items():
            if current.get(name) == value:
                values[name] = None
    chosen = dict(PRESETS.get(server.preset, {}))
    if (current | values).get("discovery_headers") or before == server.preset:
        chosen.pop("discovery_headers", None)
    values.update(chosen)
    server.quirks = server.quirks.replace(
        {name: values[name] for name in values.keys() - {*keep}}
    )


def make_name(base_url: str) -> str:
    """Return the host of *base_url*, with port and path if that name is taken."""
    parts = urlsplit(base_url)
    host = parts.hostname or base_url
    if FHIRServer.objects.filter(name=host).exists():
        return f"{parts.netloc}{parts.path.rstrip('/')}"[:200]
    return host[:200]


def make_slug(base_url: str) -> str:
    """Return an unused slug from the host of *base_url*."""
    host = urlsplit(base_url).hostname or ""
    stem = slugify(host.replace(".", "-").replace(":", "-"))[:90] or "server"
    slug, number = stem, 1
    while FHIRServer.objects.filter(slug=slug).exists():
        number += 1
        slug = f"{stem}-{number}"
    return slug


def _store_registration(
    values: dict[str, Any], server: FHIRServer
) -> ClientRegistration:
    site_url = values.pop("site_url", "")
    known = ClientRegistration.objects.filter(
        server=server, client_id_digest=digest(values["client_id"])
    ).first()
    registration = known or ClientRegistration()
    registration.server = server
    if known is None:
        values.setdefault("token_endpoint_auth_method", _choose_method(values))
        registration.leave_defaults()
    _clear_replaced_credentials(registration, values)
    _assign(registration, values)
    if "redirect_uri" not in values and (site_url or not registration.redirect_uri):
        _set_redirect_uri(registration, site_url or conf.SMART_SITE_URL)
    _check_secret(registration, "client_secret")
    registration.full_clean()
    registration.save()
    return registration


def _check_secret(row: FHIRServer | ClientRegistration, name: str) -> None:
    """Refuse a stored value that cannot be decrypted, unless it is replaced."""
    try:
        getattr(row, name)
    except CredentialsError as exc:
        raise ValidationError({name: f"{exc} Or enter the value again."}) from exc


def _choose_method(values: Mapping[str, Any]) -> str:
    """Return the given method, the only one for backend services, or the default."""
    if method := values.get("token_endpoint_auth_method"):
        return str(method)
    launches = values.get("ehr_scope") or values.get("standalone_scope")
    secret = any(values.get(name) for name in _CREDENTIALS)
    if values.get("system_scope") and not launches and not secret:
        return _AuthMethod.PRIVATE_KEY_JWT
    return _AuthMethod.CLIENT_SECRET_BASIC


def _clear_replaced_credentials(
    registration: ClientRegistration, values: Mapping[str, Any]
) -> None:
    """Replace the old secret, wherever it was stored; remove it if none is needed."""
    method = values.get("token_endpoint_auth_method", "")
    if any(values.get(name) for name in _CREDENTIALS) or method in (
        _AuthMethod.NONE,
        _AuthMethod.PRIVATE_KEY_JWT,
    ):
        _assign(registration, dict.fromkeys(_CREDENTIALS, ""))


def _set_redirect_uri(registration: ClientRegistration, site_url: str) -> None:
    if not site_url:
        if registration.is_for_launches:
            raise ValidationError(
                {
                    "site_url": "The URL of this site is unknown: enter it here, "
                    "or set SMART_SITE_URL."
                }
            )
        return
    try:
        origin = validate_site_url(site_url)
    except InsecureURLError as exc:
        raise ValidationError({"site_url": str(exc)}, code=exc.code) from exc
    registration.redirect_uri = origin + choose_callback(registration)


def choose_callback(registration: ClientRegistration) -> str:
    """
    Return the path of a redirect URI for *registration*, and set its callback id.

    The first registration of a site has ``callback/``, each later one a separate path,
    and those in a group share the group's.
    """
    registration.callback_id = registration.callback_id or registration.callback_group
    if registration.callback_id:
        return _reverse_callback(registration.callback_id)
    others = ClientRegistration.objects.exclude(pk=registration.pk)
    stem, number = registration.server.slug, 1
    while others.filter(callback_id=registration.callback_id).exists():
        registration.callback_id = stem if number == 1 else f"{stem}-{number}"
        number += 1
    return _reverse_callback(registration.callback_id)


def _reverse_callback(callback_id: str) -> str:
    return _reverse("callback", **({"callback_id": callback_id} if callback_id else {}))


def _reverse_jwks(registration: ClientRegistration) -> str:
    """Return the path of its separate keys, if it has any."""
    own = registration.pk and SigningKey.objects.of(registration).published().exists()
    return _reverse("jwks", **({"registration_id": registration.pk} if own else {}))


def _assign(row: FHIRServer | ClientRegistration, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(row, name, value)


def register_dynamically(
    values: Mapping[str, Any],
    *,
    client_name: str = "",
    initial_access_token: str | None = None,
) -> tuple[ClientRegistration, list[str]]:
    """
    Let the server issue a client id, and store it (RFC 7591, REG-06).

    Invalid values, or missing features of the server, are refused before anything is
    registered there. Call it outside any transaction.

    Args:
        values: as for :func:`register_client`, without ``client_id`` and secret.
        client_name: shown on the approval page; empty for the site's host.
        initial_access_token: if the server's operator issued one.

    Returns:
        The registration, and remarks on what the server made otherwise than requested.

    Raises:
        ValidationError, ImproperlyConfigured: as :func:`register_client`.
        TransportError, DiscoveryError: the server could not be asked.
        UnsupportedServerError: it has no registration endpoint, or lacks a required
            feature.
        RegistrationError: it refused, or its response is unusable.
    """
    stand_in = secrets.token_urlsafe()
    plan = {**values, "client_id": stand_in}
    if _choose_method(values).startswith("client_secret_"):
        plan["client_secret"] = stand_in
    planned = plan_client(plan)
    configuration = fetch_configuration(planned.server, save=False)
    check_registration(planned, configuration)
    if configuration.registration_endpoint is None:
        raise UnsupportedServerError(
            "The server has no registration_endpoint: register the client in "
            "the vendor's form, and enter the client ID shown there."
        )
    if planned.uses_private_key:
        ensure_active_key(planned.signing_algorithm)
    metadata = _build_metadata(
        planned,
        site_url=values.get("site_url") or get_site_url(planned),
        client_name=client_name,
    )
    answer = send(
        build_registration_request(
            metadata,
            registration_endpoint=configuration.registration_endpoint,
            initial_access_token=initial_access_token,
        ),
        server=planned.server,
    )
    information = process_registration_response(answer, metadata=metadata)
    registration = _store(values, information)
    server = registration.server
    copy_discovered(server, source=planned.server)
    logger.info("Registration %s was made by server %s", registration.pk, server.pk)
    return registration, list(_find_remarks(information, metadata["scope"]))


def _build_metadata(
    planned: ClientRegistration, *, site_url: str, client_name: str
) -> dict[str, Any]:
    site_url = site_url.removesuffix("/")
    urls = build_client_urls(planned, site_url=site_url)
    metadata: dict[str, Any] = {
        "client_name": client_name or urlsplit(site_url).hostname or "SMART app",
        "grant_types": list(_list_grant_types(planned)),
        "response_types": ["code"] if planned.is_for_launches else [],
        "scope": str(_get_scopes(planned)),
        "token_endpoint_auth_method": planned.token_endpoint_auth_method,
    }
    if planned.is_for_launches:
        metadata["redirect_uris"] = [planned.redirect_uri]
    if planned.ehr_scope:
        metadata["initiate_login_uri"] = urls.launch_url
    if planned.uses_private_key:
        metadata["token_endpoint_auth_signing_alg"] = planned.signing_algorithm
        if site_url.startswith("https://"):
            metadata["jwks_uri"] = urls.jwks_url
        else:
            # In development, the server cannot reach this site.
            metadata["jwks"] = SigningKey.objects.of(None).as_jwks()
    return metadata


def _get_scopes(planned: ClientRegistration) -> ScopeSet:
    # An EHR launch requests it, whether it was entered or not.
    launch = "launch" if planned.ehr_scope else ""
    every = (planned.ehr_scope, planned.standalone_scope, planned.system_scope)
    return ScopeSet.parse(" ".join((launch, *every)))


def _list_grant_types(planned: ClientRegistration) -> Iterator[str]:
    if planned.is_for_launches:
        yield "authorization_code"
        scopes = _get_scopes(planned)
        if "offline_access" in scopes or "online_access" in scopes:
            yield "refresh_token"
    if planned.system_scope:
        yield "client_credentials"


def _store(
    values: Mapping[str, Any], information: ClientInformation
) -> ClientRegistration:
    made = {
        "client_id": information.client_id,
        "client_secret": information.client_secret,
        "token_endpoint_auth_method": information.token_endpoint_auth_method,
    }
    try:
        return register_client({**values, **made})
    except ValidationError as exc:
        raise RegistrationError(
            f"The server registered the client {information.client_id}, which "
            "cannot be stored; have it removed there. "
            f"{' '.join(exc.messages)}"
        ) from exc


def _find_remarks(information: ClientInformation, scope: str) -> Iterator[str]:
    if information.scope is not None:
        missing = ScopeSet.parse(information.scope).missing(scope)
        if missing:
            yield f"the server did not register the scopes {missing}."
    ends_at = information.client_secret_expires_at
    if information.client_secret is not None and ends_at is not None:
        day = datetime.fromtimestamp(min(ends_at, MAX_TIME), UTC)
        yield (
            f"the client secret expires on {day:%Y-%m-%d}; register again before that "
            "day."
        )

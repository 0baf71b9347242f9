"""The simulated EHR as a WSGI application: routes, faults, recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter, Map, MapAdapter, Rule
from werkzeug.wrappers import Request, Response

from django_smart.testing.simulator import (
    app_state,
    bulk,
    bundles,
    changes,
    consent,
    control,
    discovery,
    faults,
    fhir,
    history,
    operations,
    pages,
    register,
    token,
)
from django_smart.testing.simulator.errors import FHIRError, OAuthError
from django_smart.testing.simulator.exchange import Exchange, Routes

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from django_smart.testing.simulator.ehr import EHRSimulator

__all__ = ["App"]

Handler = Callable[..., Response]


class _FHIRTypeConverter(BaseConverter):
    """The name of a resource type: unlike the pages', it begins with a capital."""

    regex = "[A-Z][A-Za-z]+"


def _get(path: str, name: str, handler: Handler) -> Rule:
    return Rule(path, endpoint=(name, handler), methods=["GET"])


def _post(path: str, name: str, handler: Handler) -> Rule:
    return Rule(path, endpoint=(name, handler), methods=["POST"])


def _rules(name: str, routes: Routes) -> list[Rule]:
    return [
        Rule(path, endpoint=(name, handler), methods=[method])
        for path, method, handler in routes
    ]


def _handle(
    handler: Handler, exchange: Exchange, arguments: Mapping[str, Any]
) -> Response:
    try:
        return handler(exchange, **arguments)
    except OAuthError as exc:
        return token.oauth_error_response(exc)
    except FHIRError as exc:
        return fhir.fhir_error_response(exc)


def _dispatch_entry(
    adapter: MapAdapter, exchange: Exchange, request: Request, resource_id: str | None
) -> Response:
    """Answer one entry of a Bundle as if it were a request of its own."""
    try:
        rule, arguments = adapter.match(request.path, request.method, return_rule=True)
    except HTTPException:
        error = FHIRError(404, "not-supported", "this server does not know that")
        return fhir.fhir_error_response(error)
    _, handler = rule.endpoint
    if resource_id is not None:
        arguments = {**arguments, "resource_id": resource_id}
    entry = Exchange(ehr=exchange.ehr, request=request, name=exchange.name)
    return _handle(handler, entry, arguments)


def _answer_bundle(exchange: Exchange) -> Response:
    adapter = _bind(exchange.ehr, exchange.request)
    return bundles.answer_bundle(exchange, partial(_dispatch_entry, adapter, exchange))


def _bind(ehr: EHRSimulator, request: Request) -> MapAdapter:
    with _building:
        routes = _build_map(
            base=ehr.base_path,
            root=ehr.root_path,
            page=ehr.page_path,
            issuer=urlsplit(ehr.issuer).path.rstrip("/"),
            is_controlled=bool(ehr.control),
        )
    return routes.bind_to_environ(request.environ)


# Werkzeug compiles rules with ast, which Python 3.11 may fail to do in two threads at
# once ("AST constructor recursion depth mismatch").
_building = Lock()


# Tests make an EHR each, and most have the same paths.
@lru_cache(maxsize=32)
def _build_map(
    *, base: str, root: str, page: str, issuer: str, is_controlled: bool
) -> Map:
    return Map(
        [
            *_protocol_rules(base, root, issuer),
            *_rules("fhir", _fhir_routes(base, page)),
            *_rules("page", pages.routes()),
            *_rules("consent", consent.routes(root)),
            *(_rules("control", control.routes()) if is_controlled else ()),
        ],
        converters={"type": _FHIRTypeConverter},
        strict_slashes=False,
        merge_slashes=False,
    )


def _lacks_header(exchange: Exchange) -> bool:
    """Return whether the gateway's key is missing, if a quirk requires it."""
    return (
        "header_wanted" in exchange.ehr.quirks
        and exchange.name in {"token", "revoke", "fhir", "page"}
        and exchange.request.headers.get("X-Api-Key") != "s3cret-key"
    )


class App:
    """Every URL of the EHR's origin."""

    def __init__(self, ehr: EHRSimulator) -> None:
        self._ehr = ehr

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        return self.respond(Request(environ))(environ, start_response)

    def respond(self, request: Request) -> Response:
        """Answer one request: through the interceptors, the last one first."""
        respond = self._respond
        for interceptor in self._ehr.interceptors:
            respond = partial(interceptor, respond)
        return respond(request)

    def _respond(self, request: Request) -> Response:
        """Answer one request, and write it down."""
        adapter = _bind(self._ehr, request)
        try:
            rule, arguments = adapter.match(return_rule=True)
        except HTTPException as exc:
            exchange = Exchange(ehr=self._ehr, request=request, name="unknown")
            response = Response.from_app(exc.get_response(), request.environ)
        else:
            name, handler = rule.endpoint
            exchange = Exchange(ehr=self._ehr, request=request, name=name)
            replaced = faults.replacement(exchange)
            if _lacks_header(exchange):
                response = Response("X-Api-Key is missing", 403)
            elif replaced is None:
                response = _handle(handler, exchange, arguments)
                for fault in self._ehr.faults.active("edits", exchange.fault_exchange):
                    response = fault.function(exchange, response)
            else:
                response = replaced
        if request_id := request.headers.get("X-Request-Id"):
            response.headers.setdefault("X-Request-Id", request_id)
        if exchange.name != "control":
            self._ehr.record(exchange, response.status_code)
        return response


def _protocol_rules(base: str, root: str, issuer: str) -> list[Rule]:
    well_known = f"{base}/.well-known/smart-configuration"
    return [
        _get(well_known, "smart-configuration", discovery.smart_configuration),
        # Below the base as well: where the issuer is not known, apps look there.
        *(
            _get(
                f"{path}/.well-known/openid-configuration",
                "openid-configuration",
                discovery.openid_configuration,
            )
            for path in sorted({issuer, base})
        ),
        _get(f"{base}/metadata", "metadata", discovery.metadata),
        _get(f"{root}/auth/jwks", "jwks", discovery.jwks),
        _get("/smart-style.json", "smart-style", discovery.smart_style),
        _get(f"{root}/auth/authorize", "authorize", consent.authorize),
        _post(f"{root}/auth/authorize", "authorize", consent.authorize),
        _post(f"{root}/auth/token", "token", token.token_endpoint),
        _post(f"{root}/auth/revoke", "revoke", token.revocation_endpoint),
        _post(
            f"{root}/auth/introspect",
            "introspect",
            token.introspection_endpoint,
        ),
        _post(f"{root}/auth/register", "register", register.registration_endpoint),
    ]


def _fhir_routes(base: str, page: str) -> Routes:
    yield base or "/", "POST", _answer_bundle
    for path in {base, page}:
        yield from fhir.routes(path)
    for module in (app_state, bulk, changes, history, operations):
        yield from module.routes(base)

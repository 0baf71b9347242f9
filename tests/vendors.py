"""Simulated EHRs in the shape that vendors publish: endpoints and configurations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from requests.adapters import BaseAdapter
from werkzeug.wrappers import Request, Response

from django_smart import transport
from django_smart.protocol.urls import get_origin
from django_smart.testing import EHRSimulator

__all__ = ["VENDORS", "VendorEHR", "serving"]

VENDORS: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("vendors.json").read_text(encoding="utf-8")
)["servers"]

_OPENID = "/.well-known/openid-configuration"
_SMART = "/.well-known/smart-configuration"
# Where the simulator answers what a vendor has at another URL, or at another host.
_ENDPOINTS = {
    "authorization_endpoint": "authorize",
    "introspection_endpoint": "introspect",
    "jwks_uri": "jwks",
    "revocation_endpoint": "revoke",
    "token_endpoint": "token",
}


class VendorEHR(EHRSimulator):
    """The simulator at a vendor's base URL, with that vendor's SMART configuration."""

    def __init__(self, vendor: dict[str, Any]) -> None:
        self.configuration: dict[str, Any] = vendor["configuration"]
        super().__init__(vendor["base_url"], issuer=self.configuration["issuer"])
        self.quirks = vendor.get("quirks", [])
        self.interceptors.append(self._describe)

    @property
    def token_endpoint(self) -> str:
        """The audience of client assertions."""
        return str(self.configuration["token_endpoint"])

    @property
    def urls(self) -> dict[str, str]:
        """The simulator's URLs by the vendor's."""
        endpoints = {
            self.configuration[name]: f"{self.origin}{self.root_path}/auth/{own}"
            for name, own in _ENDPOINTS.items()
            if name in self.configuration
        }
        issuer = self.issuer.removesuffix("/")
        return {**endpoints, f"{issuer}{_OPENID}": f"{self.base_url}{_OPENID}"}

    @property
    def origins(self) -> set[str]:
        """Every origin on which something of this vendor answers."""
        return {get_origin(url) for url in (self.base_url, *self.urls)}

    def _describe(
        self, respond: Callable[[Request], Response], request: Request
    ) -> Response:
        response = respond(request)
        if request.path in (f"{self.base_path}{_SMART}", f"{self.base_path}{_OPENID}"):
            response.set_data(json.dumps(self.configuration))
        return response


class _Adapter(BaseAdapter):
    """Sends what is meant for one of several vendors to its simulator."""

    def __init__(self, ehrs: list[VendorEHR]) -> None:
        super().__init__()
        self._ehrs = ehrs

    def send(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        url, mark, query = (request.url or "").partition("?")
        body = request.body or b""
        form = body.decode() if isinstance(body, bytes) else str(body)
        ehr = self._find(url, f"{query}&{form}")
        request.url = ehr.urls.get(url, url) + mark + query
        return ehr.adapter().send(request, *args, **kwargs)

    def _find(self, url: str, parameters: str) -> VendorEHR:
        matching = [
            each
            for each in self._ehrs
            if url in each.urls or url.startswith(f"{each.base_url}/")
        ]
        assert matching, f"no vendor has {url}"
        # An endpoint of several servers knows which one is meant: by aud, or the code.
        named = (
            each
            for each in matching
            if f"aud={quote(each.base_url, safe='')}&" in f"{parameters}&"
            or any(code in parameters for code in each.store.codes)
        )
        return next(named, matching[0])

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def serving(preset: str) -> Iterator[dict[str, VendorEHR]]:
    """
    The servers of *preset* by base URL, mounted at all their origins.

    They share clients and keys, as the servers of one vendor do.
    """
    ehrs = [VendorEHR(each) for each in VENDORS if each["preset"] == preset]
    for ehr in ehrs[1:]:
        ehr.clients = ehrs[0].clients
        ehr.signing_keys = ehrs[0].signing_keys
    with ExitStack() as stack:
        for origin in set().union(*(ehr.origins for ehr in ehrs)):
            stack.enter_context(transport.mounted(origin, _Adapter(ehrs)))
        yield {ehr.base_url: ehr for ehr in ehrs}

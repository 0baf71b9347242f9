"""Addresses of the FHIR server, as the page's script may use them: through our own."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from django.core import signing
from django.http import HttpRequest

from ..fhir import FHIRClient
from .fhir_outcomes import RefusedError

__all__ = ["PAGE", "Rewriter"]

_SALT = "django_smart.fhir_proxy"
PAGE = "_page"


class Rewriter:
    """
    Puts the proxy's address into answers, and reads it from requests.

    Args:
        proxy_url: absolute, what stands before ``Patient/1``.
        key: of the launch: an address of one launch is of no use to another.
    """

    def __init__(self, client: FHIRClient, *, proxy_url: str, key: str) -> None:
        self._client = client
        self._proxy_url = proxy_url
        self._salt = f"{_SALT}.{key}"

    def rewrite_url(self, url: str) -> str:
        """*url* below the FHIR base, below the proxy; any other as it is."""
        base = f"{self._client.base_url}/"
        is_below = url.startswith(base)
        return self._proxy_url + url.removeprefix(base) if is_below else url

    def rewrite_bundle(self, body: bytes) -> bytes:
        """Replace ``fullUrl``, ``location`` and links; resources stay as they are."""
        # FHIR tells 1.0 from 1.00: numbers are kept by their letters.
        mark = secrets.token_hex(8)
        bundle = json.loads(
            body.decode("utf-8-sig"), parse_float=lambda text: f"{mark}{text}"
        )
        self._rewrite(bundle)
        text = json.dumps(bundle, ensure_ascii=False)
        return re.sub(f'"{mark}([^"]*)"', r"\1", text).encode()

    def _rewrite(self, bundle: dict[str, Any]) -> None:
        for link in _objects(bundle.get("link")):
            url = link.get("url")
            if isinstance(url, str):
                link["url"] = self._rewrite_link(str(link.get("relation")), url)
        for entry in _objects(bundle.get("entry")):
            _replace(entry, "fullUrl", self.rewrite_url)
            for response in _objects([entry.get("response")]):
                _replace(response, "location", self.rewrite_url)

    def read_page_url(self, request: HttpRequest) -> str:
        """
        Read the URL of a further page that this launch's proxy has given out.

        Raises:
            RefusedError: it has not.
        """
        try:
            url = signing.loads(request.GET.get("url", ""), salt=self._salt)
        except signing.BadSignature:
            raise RefusedError(
                404, "not-found", "No page has this address: search again."
            ) from None
        return str(url)

    def _rewrite_link(self, relation: str, url: str) -> str:
        # A server may keep its pages anywhere; what it named is signed, so that a
        # script cannot name another place itself.
        if relation != "self" and self._client.is_within_boundary(url):
            signed = signing.dumps(url, salt=self._salt, compress=True)
            return f"{self._proxy_url}{PAGE}?url={signed}"
        return self.rewrite_url(url)


def _objects(items: object) -> list[dict[str, Any]]:
    if not isinstance(items, list):
        return []
    return [item for item in items if isinstance(item, dict)]


def _replace(item: dict[str, Any], name: str, rewrite: Any) -> None:
    if isinstance(item.get(name), str):
        item[name] = rewrite(item[name])

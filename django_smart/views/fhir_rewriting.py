"""Addresses of the FHIR server, as the page's script may use them: through our own."""

from __future__ import annotations

from typing import Any

from django.core import signing
from django.http import HttpRequest

from ..fhir import FHIRClient
from ..fhir.json import dump_json, load_json
from ..fhir.messages import resolve_url
from .fhir_outcomes import RefusedError

__all__ = ["PAGE", "Rewriter"]

_SALT = "django_smart.fhir_proxy"
PAGE = "_page"


class Rewriter:
    """
    Puts the proxy's address into answers, and reads it from requests.

    Args:
        proxy_url: absolute URL before ``Patient/1``.
        key: of the launch: an address of one launch is of no use to another.
    """

    def __init__(self, client: FHIRClient, *, proxy_url: str, key: str) -> None:
        self._client = client
        self._base = f"{client.base_url}/"
        self._proxy_url = proxy_url
        self._salt = f"{_SALT}.{key}"

    def rewrite_url(self, url: str) -> str:
        """*url* below the FHIR base, below the proxy; any other as it is."""
        is_below = url.startswith(self._base)
        return self._proxy_url + url.removeprefix(self._base) if is_below else url

    def rewrite(self, body: bytes, url: str) -> bytes:
        """
        Replace the addresses in an answer from *url*; without any, *body* as it is.

        In Bundles: ``fullUrl``, ``location`` and links.  In resources: references to
        the server become relative, which are right at the proxy, and at the server if
        the resource is sent back.
        """
        value = load_json(body)
        before = dump_json(value)
        self._rewrite(value, url or self._base)
        after = dump_json(value)
        return after if after != before else body

    def _rewrite(self, value: Any, url: str) -> None:
        if isinstance(value, list):
            for item in value:
                self._rewrite(item, url)
        elif isinstance(value, dict):
            if value.get("resourceType") == "Bundle":
                self._rewrite_bundle(value, url)
            _replace(value, "reference", self._as_relative)
            if "contentType" in value:  # of an attachment
                _replace(value, "url", self._as_relative)
            for item in value.values():
                self._rewrite(item, url)

    def _rewrite_bundle(self, bundle: dict[str, Any], url: str) -> None:
        for link in _objects(bundle.get("link")):
            target = link.get("url")
            if isinstance(target, str):
                relation = str(link.get("relation"))
                link["url"] = self._rewrite_link(relation, resolve_url(url, target))
        for entry in _objects(bundle.get("entry")):
            _replace(entry, "fullUrl", self.rewrite_url)
            for response in _objects([entry.get("response")]):
                _replace(response, "location", self.rewrite_url)

    def _as_relative(self, url: str) -> str:
        return url.removeprefix(self._base)

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
                404, "not-found", "This page link is no longer valid; search again."
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

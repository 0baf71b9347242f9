"""Addresses of the FHIR server, as the page's script may use them: through our own."""

from __future__ import annotations

from typing import Any

from django.core import signing
from django.http import HttpRequest

from ..fhir import FHIRClient
from ..fhir.guard import Guard, parse_entry
from ..fhir.interactions import Interaction
from ..fhir.json import dump_json, load_json
from ..fhir.messages import resolve_url
from ..protocol.messages import HTTPResponse
from .fhir_outcomes import RefusedError

__all__ = ["PAGE", "PAGED_TYPES", "Rewriter", "get_objects"]

_SALT = "django_smart.fhir_proxy"
PAGE = "_page"
# Types of Bundles that a server makes, page by page, for those who ask.
PAGED_TYPES = frozenset({"history", "searchset"})
_PAGED = frozenset(
    {"get", "history-instance", "history-system", "history-type"}
    | {"operation", "search"}
)


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

    def rewrite(self, answer: HTTPResponse, asked: Interaction, guard: Guard) -> bytes:
        """
        Replace the addresses in the body of *answer*; without any, return it unchanged.

        In Bundles: ``fullUrl``, ``location`` and links; only those that the server made
        to answer *asked* lead to further pages.  In resources: references to
        the server become relative, which are right at the proxy, and at the server if
        the resource is sent back.  In a batch, *guard* says what must be left out.
        """
        if not answer.body:
            return b""
        value = load_json(answer.body)
        before = dump_json(value)
        url = answer.url or self._base
        if asked.name in {"batch", "transaction"}:
            self._sign_batch(value, url, asked, guard)
        else:
            self._sign(value, url, asked)
        self._rewrite(value, url)
        after = dump_json(value)
        return after if after != before else answer.body

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
        for link in get_objects(bundle.get("link")):
            _replace(link, "url", lambda it: self.rewrite_url(resolve_url(url, it)))
        for entry in get_objects(bundle.get("entry")):
            _replace(entry, "fullUrl", self.rewrite_url)
            for response in get_objects([entry.get("response")]):
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

    def _sign(self, value: Any, url: str, asked: Interaction) -> None:
        """Sign the links of the Bundles that the server made to answer *asked*."""
        if not isinstance(value, dict) or value.get("resourceType") != "Bundle":
            return
        if asked.name in _PAGED and str(value.get("type")) in PAGED_TYPES:
            self._sign_links(value, url)

    def _sign_batch(
        self, value: dict[str, Any], url: str, asked: Interaction, guard: Guard
    ) -> None:
        entries = [parse_entry(entry) for entry in asked.body.get("entry", [])]
        answers = get_objects(value.get("entry"))
        # An answer is known by its place alone.
        is_known = len(answers) == len(entries)
        for number, answer in enumerate(answers):
            resource = answer.get("resource")
            possible = [entries[number]] if is_known else entries
            if any(guard.hides_match(one, resource) for one in possible):
                _hide_match(answer)
            if is_known:
                self._sign(resource, url, entries[number])

    def _sign_links(self, bundle: dict[str, Any], url: str) -> None:
        # A server may keep its pages anywhere; what it named is signed, so that a
        # script cannot name another place itself, nor in a Bundle that it stored.
        for link in get_objects(bundle.get("link")):
            target = link.get("url")
            if link.get("relation") == "self" or not isinstance(target, str):
                continue
            target = resolve_url(url, target)
            if self._client.is_within_boundary(target):
                signed = signing.dumps(target, salt=self._salt, compress=True)
                link["url"] = f"{self._proxy_url}{PAGE}?url={signed}"


def _hide_match(entry: dict[str, Any]) -> None:
    """Leave out the address of what a create has found."""
    response = entry.get("response") or {}
    if str(response.get("status")).split()[:1] != ["201"]:
        entry.pop("fullUrl", None)
        for name in ("etag", "lastModified", "location"):
            response.pop(name, None)


def get_objects(items: object) -> list[dict[str, Any]]:
    """The objects of a list, or of what should have been one."""
    if not isinstance(items, list):
        return []
    return [item for item in items if isinstance(item, dict)]


def _replace(item: dict[str, Any], name: str, rewrite: Any) -> None:
    if isinstance(item.get(name), str):
        item[name] = rewrite(item[name])

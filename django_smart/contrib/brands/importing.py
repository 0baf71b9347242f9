"""Import bundles: organizations, their portals and their FHIR servers."""

from __future__ import annotations

import codecs
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urljoin

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, reset_queries, router, transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from ...conf import conf
from ...exceptions import BrandError
from ...fields import digest
from ...models import FHIRServer
from ...models.search_words import split_words
from ...models.server import MAX_URL_LENGTH
from ...protocol.messages import HTTPRequest
from ...protocol.urls import normalize_base_url
from ...servers.http import open_stream
from . import resources
from .models import Brand, BrandBundle, BrandEndpoint

__all__ = [
    "BrandImport",
    "fetch_bundle",
    "get_known_urls",
    "import_brand_file",
    "import_brands",
    "is_url",
    "refresh_statistics",
    "remove_brands",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BrandImport:
    """
    What an import did.

    Attributes:
        is_new: false if the bundle had not changed, and so was not read.
        brands, endpoints: how many the bundle has; an endpoint counts once for each
            brand that can be connected there.
        problems: what was left out and how often, by reason.
        licenses: URLs of the licenses of logos (BRAND-11).
        primary_matches: brands with the identifier that the server's configuration
            names, which should be one; ``None`` if it names none (BRAND-03).
    """

    bundle: BrandBundle
    is_new: bool
    brands: int = 0
    endpoints: int = 0
    problems: Mapping[str, int] = field(default_factory=dict)
    licenses: tuple[str, ...] = ()
    primary_matches: int | None = None


def is_url(location: str) -> bool:
    """Whether a bundle comes from there, and not from a file."""
    return location.startswith(("https://", "http://"))


def get_known_urls() -> list[str]:
    """Return the URL of each bundle that came from one."""
    locations = BrandBundle.objects.values_list("location", flat=True)
    return [each for each in locations if is_url(each)]


def import_brands(url: str, *, server: FHIRServer | None = None) -> BrandImport:
    """
    Import the bundle at *url*, all of it or nothing.

    Args:
        server: whose configuration links to the bundle; by default the one it was
            imported for before, or one whose stored configuration has this URL.

    Raises:
        TransportError, BrandError: as met; what is stored stays as it is.
        ImproperlyConfigured: the extra ``brands`` is not installed.
    """
    known = BrandBundle.objects.at(url).first()
    linked = known.server if known is not None else None
    server = server or linked or _find_server(url)
    # A bundle that gets another server is read again: it may show other brands.
    etag = known.etag if known is not None and server == linked else ""
    with tempfile.TemporaryFile() as file:
        new_etag = fetch_bundle(url, etag=etag, file=file, server=server)
        if known is not None and new_etag is None:
            return BrandImport(bundle=known, is_new=False)
        return _store(url, file, etag=new_etag or "", server=server)


def import_brand_file(path: Path, *, name: str = "") -> BrandImport:
    """
    Import the bundle in a file, all of it or nothing.

    Args:
        name: what it is remembered by, so that a later file of the same name replaces
            it; by default the file's own path.

    Raises:
        OSError: the file cannot be read.
        BrandError, ImproperlyConfigured: see :func:`import_brands`.
    """
    with path.open("rb") as file:
        return _store(name or str(path.resolve()), file, etag="", server=None)


def remove_brands(location: str) -> int:
    """
    Remove all that came from *location*.

    Returns:
        How many brands were removed.

    Raises:
        BrandBundle.DoesNotExist: nothing did.
    """
    with transaction.atomic(using=router.db_for_write(BrandBundle)):
        bundle = _lock(location)
        removed = _delete_brands(bundle)
        bundle.delete()
        _choose_shown()
    return removed


def _find_server(url: str) -> FHIRServer | None:
    servers = FHIRServer.objects.active()
    return servers.filter(state__configuration__user_access_brand_bundle=url).first()


def _lock(location: str) -> BrandBundle:
    # One import at a time: each compares its organizations with those of all others.
    bundles = list(BrandBundle.objects.select_for_update().order_by("pk"))
    for bundle in bundles:
        if bundle.location == location:
            return bundle
    raise BrandBundle.DoesNotExist


def _store(
    location: str, file: BinaryIO, *, etag: str, server: FHIRServer | None
) -> BrandImport:
    """Replace all that came from *location* before."""
    if len(location) > MAX_URL_LENGTH:
        raise BrandError(f"The location is longer than {MAX_URL_LENGTH} characters.")
    members: dict[str, object] = {}
    with transaction.atomic(using=router.db_for_write(BrandBundle)):
        BrandBundle.objects.get_or_create(
            location_digest=digest(location), defaults={"location": location}
        )
        bundle = _lock(location)
        _delete_brands(bundle)
        bundle.etag, bundle.server = etag, server
        writer = _Writer(bundle)
        writer.write(_read_entries(file, members))
        bundle.timestamp = _read_timestamp(members.get("timestamp"))
        bundle.save()
        _choose_shown()
        refresh_statistics()
    logger.info("Brand bundle %s: %s brands", bundle.pk, len(writer.organizations))
    return BrandImport(
        bundle=bundle,
        is_new=True,
        brands=len(writer.organizations),
        endpoints=writer.stored_endpoints,
        problems=dict(writer.problems),
        licenses=tuple(sorted(writer.licenses)),
        primary_matches=writer.primary_matches,
    )


def _delete_brands(bundle: BrandBundle) -> int:
    """Delete in batches, because Django loads the rows that it deletes with others."""
    deleted = 0
    brands = Brand.objects.filter(bundle=bundle).order_by("pk")
    while keys := list(brands.values_list("pk", flat=True)[:_BATCH]):
        Brand.objects.filter(pk__in=keys).delete()
        deleted += len(keys)
        _forget_queries()
    return deleted


def _choose_shown() -> None:
    """
    Show one of the brands that several bundles have of an organization (BRAND-06).

    A bundle that a registered server links to takes precedence, then the newer one
    (BRAND-02).
    """
    preceding: list[int] = []
    for bundle in sorted(BrandBundle.objects.all(), key=_rank, reverse=True):
        brands = Brand.objects.filter(bundle=bundle)
        better = Exists(
            Brand.objects.filter(merge_digest=OuterRef("merge_digest")).filter(
                Q(bundle__in=preceding) | Q(bundle=bundle, pk__lt=OuterRef("pk"))
            )
        )
        brands.filter(better, is_shown=True).update(is_shown=False)
        brands.filter(~better, is_shown=False).update(is_shown=True)
        preceding.append(bundle.pk)


def _rank(bundle: BrandBundle) -> tuple[bool, datetime, int]:
    early = datetime.min.replace(tzinfo=UTC)
    return bundle.server_id is not None, bundle.timestamp or early, -bundle.pk


def refresh_statistics() -> None:
    """
    Let PostgreSQL count again what its plans for a search depend on.

    It does so automatically about a minute later; until then a search can take seconds.
    """
    connection = connections[router.db_for_write(Brand)]
    if connection.vendor == "postgresql":
        tables = ", ".join(model._meta.db_table for model in (Brand, BrandEndpoint))
        with connection.cursor() as cursor:
            cursor.execute(f"ANALYZE {tables}")


def _forget_queries() -> None:
    """With ``DEBUG`` Django keeps thousands of queries, and each is long here."""
    if settings.DEBUG:
        reset_queries()


# A national bundle has hundreds of megabytes.
_MAX_DOWNLOAD = 4 * 1024**3
_MAX_REDIRECTS = 3
_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_ETAG = 500
# Of one organization with thousands of places, and of its text.
_MAX_EVENTS = 500_000
_MAX_CHARACTERS = 16 * 1024**2


def fetch_bundle(
    url: str, *, etag: str, file: BinaryIO, server: FHIRServer | None
) -> str | None:
    """
    Fetch a bundle into *file*, unless it is still the one that *etag* names.

    No credentials are sent; redirects to other https URLs are followed.

    Args:
        server: which server named the URL; ``None`` if the operator did.

    Returns:
        The ETag to send the next time, empty if there is none; ``None`` if the bundle
        has not changed.

    Raises:
        BrandError: another answer than 200 or 304.
        TransportError: no usable answer.

    Spec: SMART App Launch 2.2, "User-access Brands and Endpoints", Caching (BRAND-01).
    """
    headers = {"Accept": "application/fhir+json, application/json"}
    if etag:
        headers["If-None-Match"] = etag
    for _ in range(_MAX_REDIRECTS + 1):
        request = HTTPRequest(method="GET", url=url, headers=headers)
        file.seek(0)
        file.truncate()
        with open_stream(request, server=server, max_body=_MAX_DOWNLOAD) as stream:
            file.writelines(stream.chunks)
        response = stream.head
        location = response.headers.get("location", "")
        if response.status_code not in _REDIRECTS or not location:
            break
        try:
            url = urljoin(url, location)
        except ValueError:  # not a URL, so not a redirect either
            break
    if response.status_code == 304 and etag:
        return None
    if response.status_code != 200:
        raise BrandError(f"The brand bundle returned status {response.status_code}.")
    new_etag = response.headers.get("etag", "")
    return new_etag if len(new_etag) <= _MAX_ETAG else ""


def _read_entries(
    file: BinaryIO, members: dict[str, object]
) -> Iterator[dict[str, Any]]:
    """
    Yield the entries of a bundle, holding one at a time.

    Args:
        members: gets the other members that are needed, which may follow the entries.

    Raises:
        BrandError: not JSON, or not a ``Bundle`` of type ``collection``.
        ImproperlyConfigured: the extra ``brands`` is not installed.
    """
    try:
        import ijson
    except ImportError as exc:
        raise ImproperlyConfigured(
            "Reading brand bundles requires ijson, which is not installed: "
            'pip install "django-smart[brands]"'
        ) from exc
    file.seek(0)
    if file.read(3) != codecs.BOM_UTF8:
        file.seek(0)
    builder: Any = None
    events = characters = 0
    try:
        for prefix, event, value in ijson.parse(file, use_float=True):
            if prefix == "entry.item" and event in {"start_map", "end_map"}:
                if event == "start_map":
                    builder, events, characters = ijson.ObjectBuilder(), 0, 0
                builder.event(event, value)
                if event == "end_map":
                    yield cast("dict[str, Any]", builder.value)
                    builder = None
            elif builder is not None:
                events += 1
                characters += len(value) if isinstance(value, str) else 0
                if events > _MAX_EVENTS or characters > _MAX_CHARACTERS:
                    raise BrandError("An entry of the brand bundle is too large.")
                builder.event(event, value)
            elif prefix in {"resourceType", "type", "timestamp"}:
                members[prefix] = value
    except (ijson.JSONError, UnicodeDecodeError) as exc:
        raise BrandError("The brand bundle is not complete JSON.") from exc
    if members.get("resourceType") != "Bundle" or members.get("type") != "collection":
        raise BrandError("The brand bundle is not a Bundle of type collection.")


def _read_timestamp(value: object) -> datetime | None:
    try:
        moment = parse_datetime(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment if moment and timezone.is_aware(moment) else None


# Rows that are written, and held in memory with their logos, at a time.
_BATCH = 200
# Of a laboratory with thousands of places; more would find it by everything.
_MAX_WORDS = 2000
_MAX_SORT_NAME = 100
# From a brand to what it is part of, and from there once more (BRAND-08).
_MAX_DEPTH = 2
_TAIL = re.compile(r"[A-Z][A-Za-z]{0,63}/[A-Za-z0-9\-.]{1,64}\Z")

_Found = TypeVar("_Found")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Organization:
    """
    What is held in memory of a stored brand until all endpoints are known.

    Attributes:
        links: reference and portal of each of its endpoints.
        part_of: reference, empty if there is none.
    """

    pk: int
    full_url: str
    links: tuple[tuple[str, str], ...]
    part_of: str


class _Writer:
    """
    Stores the entries of one bundle, inside the caller's transaction.

    Attributes:
        organizations: those that are stored, by full URL.
        stored_endpoints: how many were stored, each with its brand.
        problems: what was left out and how often, by reason.
        licenses: URLs of the licenses of logos (BRAND-11).
        primary_matches: brands with the identifier in the configuration of the
            bundle's server; ``None`` if it has none (BRAND-03).
    """

    def __init__(self, bundle: BrandBundle) -> None:
        configuration = bundle.server.read_configuration() if bundle.server else None
        self._identifier = (
            configuration.user_access_brand_identifier if configuration else None
        )
        self._bundle = bundle
        self._batch: dict[str, tuple[Brand, resources.Brand]] = {}
        # The address of each, by full URL; empty if it is not of FHIR R4.
        self._endpoints: dict[str, str] = {}
        # Full URLs by Type/id; empty where several entries have it.
        self._full_urls: dict[str, str] = {}
        self.organizations: dict[str, _Organization] = {}
        self.stored_endpoints = 0
        self.problems: Counter[str] = Counter()
        self.licenses: set[str] = set()
        self.primary_matches = 0 if self._identifier is not None else None

    def write(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Store every entry."""
        for entry in entries:
            try:
                self._add(entry)
            except BrandError as exc:
                self.problems[str(exc)] += 1
            if len(self._batch) >= _BATCH:
                self._flush()
        self._flush()
        rows: list[BrandEndpoint] = []
        for organization in self.organizations.values():
            rows += self._build_endpoints(organization)
            if len(rows) >= _BATCH:
                self._store_endpoints(rows)
                rows = []
        self._store_endpoints(rows)

    def _add(self, entry: Mapping[str, Any]) -> None:
        resource = entry.get("resource")
        kind = resource.get("resourceType") if isinstance(resource, dict) else None
        if not isinstance(resource, dict) or kind not in {"Organization", "Endpoint"}:
            return
        brand = address = None
        if kind == "Organization":
            brand = resources.parse_brand(resource)
        else:
            address = resources.parse_brand_endpoint(
                resource, insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS
            )
        if brand is None and address is None:
            return
        full_url, reference = _read_names(entry, resource)
        known = (self.organizations, self._batch, self._endpoints)
        if any(full_url in each for each in known):
            raise BrandError("Duplicate entry.")
        is_first = reference not in self._full_urls
        self._full_urls[reference] = full_url if is_first else ""
        if brand is not None:
            self._batch[full_url] = self._build_brand(brand, full_url), brand
        elif address is not None:
            self._endpoints[full_url] = address

    def _build_brand(self, brand: resources.Brand, full_url: str) -> Brand:
        wanted = self._identifier
        if self.primary_matches is not None and wanted is not None:
            self.primary_matches += any(
                each.value == wanted["value"]
                and each.system == wanted.get("system", each.system)
                for each in brand.identifiers
            )
        if brand.logo_license:
            self.licenses.add(brand.logo_license)
        words = dict.fromkeys(
            word for text in brand.search_texts for word in split_words(text)
        )
        return Brand(
            bundle=self._bundle,
            merge_digest=digest(
                *(brand.merge_key or ("", self._bundle.location, full_url))
            ),
            name=brand.name,
            sort_name=" ".join(split_words(brand.name))[:_MAX_SORT_NAME],
            search_text=f" {' '.join(list(words)[:_MAX_WORDS])}",
            aliases=list(brand.aliases),
            places=list(map(resources.label_place, brand.places)),
            categories=f" {' '.join(brand.categories)} " if brand.categories else "",
            logo=brand.logo,
            logo_license=brand.logo_license,
        )

    def _flush(self) -> None:
        """Write the batch, and keep what finds the endpoints of its brands."""
        _forget_queries()
        Brand.objects.bulk_create([row for row, _ in self._batch.values()])
        for full_url, (row, brand) in self._batch.items():
            self.organizations[full_url] = _Organization(
                pk=row.pk,
                full_url=full_url,
                links=tuple(brand.endpoints.items()),
                part_of=brand.part_of,
            )
        self._batch = {}

    def _build_endpoints(self, organization: _Organization) -> list[BrandEndpoint]:
        """
        Find the endpoints of a brand, its own or those of what it is part of.

        Spec: SMART App Launch 2.2, "User-access Brands and Endpoints" (BRAND-07,
        BRAND-08).
        """
        owner = organization
        for _ in range(_MAX_DEPTH):
            if owner.links or not owner.part_of:
                break
            parent = self._resolve(owner.part_of, owner, self.organizations)
            if parent is None:
                self.problems["A brand is part of a brand that does not exist."] += 1
                break
            owner = parent
        rows: dict[str, BrandEndpoint] = {}
        for reference, portal in owner.links:
            address = self._resolve(reference, owner, self._endpoints)
            if address is None:
                self.problems["A reference to an endpoint cannot be resolved."] += 1
            elif address:
                row = BrandEndpoint(
                    brand_id=organization.pk, address=address, portal_name=portal
                )
                rows.setdefault(normalize_base_url(address), row)
        return list(rows.values())

    def _resolve(
        self, reference: str, owner: _Organization, entries: Mapping[str, _Found]
    ) -> _Found | None:
        """The entry at the reference's URL, or else the only one of its type and id."""
        url, name = resources.resolve_reference(reference, full_url=owner.full_url)
        found = entries.get(url)
        return entries.get(self._full_urls.get(name, "")) if found is None else found

    def _store_endpoints(self, rows: list[BrandEndpoint]) -> None:
        _forget_queries()
        self.stored_endpoints += len(BrandEndpoint.objects.bulk_create(rows))


def _read_names(
    entry: Mapping[str, Any], resource: Mapping[str, Any]
) -> tuple[str, str]:
    """The entry's full URL and its ``Type/id``; the second may be empty."""
    full_url, resource_id = entry.get("fullUrl"), resource.get("id")
    reference = ""
    if isinstance(resource_id, str):
        reference = f"{resource['resourceType']}/{resource_id}"
    elif isinstance(full_url, str):
        reference = full_url
    match = _TAIL.search(reference)
    reference = match[0] if match else ""
    full_url = full_url if isinstance(full_url, str) and full_url else reference
    if not full_url or len(full_url) > MAX_URL_LENGTH or not full_url.isprintable():
        raise BrandError("An entry has no valid fullUrl and no id.")
    return full_url, reference

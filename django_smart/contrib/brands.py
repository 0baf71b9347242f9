"""Import user-access brands: organizations, their portals and their FHIR servers."""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urljoin

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, models, reset_queries, router, transaction
from django.db.models import F, OuterRef, QuerySet, Subquery
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from ..conf import conf
from ..exceptions import BrandError, BrandStatusError
from ..fields import DigestField, digest
from ..models import (
    Brand,
    BrandAccess,
    BrandBundle,
    BrandEndpoint,
    BrandWord,
    FHIRServer,
)
from ..models.search_words import build_key, split_words
from ..models.server import MAX_URL_LENGTH
from ..protocol import brands as wire
from ..protocol.messages import HTTPRequest
from ..servers.http import open_stream

__all__ = [
    "BrandImport",
    "fetch_bundle",
    "import_brand_file",
    "import_brands",
    "refresh_statistics",
    "remove_brands",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BrandImport:
    """
    What an import did.

    Attributes:
        is_new: false if nothing had changed, and so nothing was read.
        brands, endpoints: how many were added, changed and removed.
        problems: what was left out and how often, by reason.
        licenses: URLs of the licenses of logos (BRAND-11).
        primary_matches: brands with the identifier that the server's configuration
            names, which should be one; ``None`` if it names none (BRAND-03).
    """

    bundle: BrandBundle
    is_new: bool
    brands: tuple[int, int, int] = (0, 0, 0)
    endpoints: tuple[int, int, int] = (0, 0, 0)
    problems: Mapping[str, int] = field(default_factory=dict)
    licenses: tuple[str, ...] = ()
    primary_matches: int | None = None


def import_brands(
    url: str, *, server: FHIRServer | None = None, force: bool = False
) -> BrandImport:
    """
    Import the bundle at *url*, all of it or nothing.

    Args:
        server: whose configuration links to the bundle; by default one whose stored
            configuration has this URL, if possible the one it is linked to.
        force: read it even if it has not changed.

    Raises:
        TransportError, BrandError: as met; what is stored stays as it is.
        ImproperlyConfigured: the extra ``brands`` is not installed.
    """
    known = BrandBundle.objects.at(url).first()
    server = server or _find_server(url, linked=known.server if known else None)
    # A bundle that gets another server is stored again: it may show other brands.
    is_same = known is not None and known.server == server
    etag = known.etag if known is not None and is_same and not force else ""
    with tempfile.TemporaryFile() as file:
        new_etag = fetch_bundle(url, etag=etag, file=file, server=server)
        if known is not None and new_etag is None:
            return BrandImport(bundle=known, is_new=False)
        return _store(url, file, etag=new_etag or "", server=server, force=force)


def import_brand_file(
    path: Path, *, name: str = "", force: bool = False
) -> BrandImport:
    """
    Import the bundle in a file, all of it or nothing.

    Args:
        name: what it is remembered by, so that a later file of the same name replaces
            it; by default the file's own path.
        force: see :func:`import_brands`, which also lists the errors.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        location = name or str(path.resolve())
        return _store(location, file, etag="", server=None, force=force)


def remove_brands(location: str) -> int:
    """
    Forget what came from *location*.

    Returns:
        How many brands were removed.

    Raises:
        BrandBundle.DoesNotExist: nothing did.
    """
    removed = 0
    with transaction.atomic(using=router.db_for_write(BrandBundle)):
        bundle = BrandBundle.objects.select_for_update().at(location).get()
        freed: set[str] = set()
        rows = Brand.objects.filter(bundle=bundle).only("merge_digest")
        for batch in _iterate_in_batches(rows):
            freed.update(brand.merge_digest for brand in batch)
            Brand.objects.filter(pk__in=[brand.pk for brand in batch]).delete()
            removed += len(batch)
        endpoints = BrandEndpoint.objects.filter(bundle=bundle).only("pk")
        for part in _iterate_in_batches(endpoints):
            BrandEndpoint.objects.filter(pk__in=[each.pk for each in part]).delete()
        _show_brands(bundle, freed)
        bundle.delete()
    return removed


def _store(
    location: str,
    file: BufferedRandom | BufferedReader,
    *,
    etag: str,
    server: FHIRServer | None,
    force: bool,
) -> BrandImport:
    if len(location) > MAX_URL_LENGTH:
        raise BrandError(f"The location is longer than {MAX_URL_LENGTH} characters.")
    file.seek(0)
    content_digest = hashlib.file_digest(file, "sha256").hexdigest()
    with transaction.atomic(using=router.db_for_write(BrandBundle)):
        BrandBundle.objects.get_or_create(
            location_digest=digest(location), defaults={"location": location}
        )
        # Of two imports of one bundle the second waits, and then finds it done.
        bundle = BrandBundle.objects.select_for_update().at(location).get()
        is_new = force or bundle.content_digest != content_digest
        server = server or bundle.server
        if not is_new and (bundle.etag, bundle.server) == (etag, server):
            return BrandImport(bundle=bundle, is_new=False)
        bundle.etag, bundle.server = etag, server
        if not is_new:
            bundle.save(update_fields=["etag", "server"])
            _show_brands(bundle)
            return BrandImport(bundle=bundle, is_new=False)
        bundle.content_digest = content_digest
        return _write(bundle, file)


def _write(bundle: BrandBundle, file: BinaryIO) -> BrandImport:
    """Store the bundle and all that follows from it."""
    configuration = bundle.server.read_configuration() if bundle.server else None
    identifier = configuration.user_access_brand_identifier if configuration else None
    writer = _RowWriter(bundle, identifier=identifier)
    members: dict[str, object] = {}
    writer.write(_read_entries(file, members))
    bundle.timestamp = _read_timestamp(members.get("timestamp"))
    bundle.save()
    _link_brands(bundle, writer.problems)
    _show_brands(bundle, writer.freed)
    refresh_statistics()
    brands, endpoints = writer.brands, writer.endpoints
    logger.info(
        "Brand bundle %s: %s brands and %s endpoints",
        bundle.pk,
        len(brands.seen),
        len(endpoints.seen),
    )
    return BrandImport(
        bundle=bundle,
        is_new=True,
        brands=(brands.added, brands.changed, brands.removed),
        endpoints=(endpoints.added, endpoints.changed, endpoints.removed),
        problems=dict(writer.problems),
        licenses=tuple(sorted(writer.licenses)),
        primary_matches=writer.primary_matches if identifier is not None else None,
    )


def _find_server(url: str, *, linked: FHIRServer | None) -> FHIRServer | None:
    """A server whose stored configuration names *url*: if it does, the linked one."""
    servers = FHIRServer.objects.active()
    naming = servers.filter(configuration__user_access_brand_bundle=url)
    own = naming.filter(pk=linked.pk).first() if linked else None
    return own or naming.first() or linked


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
        BrandStatusError: another answer than 200 or 304.
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
        raise BrandStatusError(
            f"The brand bundle returned status {response.status_code}.",
            status_code=response.status_code,
        )
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


# The entries of a bundle as rows: what is new, what changed, what is gone.

# Rows that are held in memory at a time, fewer if their logos come to more than that.
_BATCH = 500
_MAX_LOGOS = 4 * 1024**2
# Of a laboratory with thousands of places; more would find it by everything.
_MAX_WORDS = 2000
_MAX_SORT_NAME = 100
_TAIL = re.compile(r"[A-Z][A-Za-z]{0,63}/[A-Za-z0-9\-.]{1,64}\Z")

_Row = Brand | BrandEndpoint


@dataclass(kw_only=True, slots=True)
class _Rows:
    """Rows of one model: those of the current batch, and counts of all."""

    model: type[Any]
    card: tuple[str, ...] = ()
    batch: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    seen: set[int] = field(default_factory=set)
    added: int = 0
    changed: int = 0
    removed: int = 0


class _RowWriter:
    """
    Stores the entries of one bundle in batches, inside the caller's transaction.

    Args:
        identifier: of the primary brand, with ``value`` and perhaps ``system``
            (BRAND-03).

    Attributes:
        brands, endpoints: with the numbers ``added``, ``changed`` and ``removed``.
        problems: what was left out and how often, by reason.
        licenses: URLs of the licenses of logos (BRAND-11).
        primary_matches: brands with *identifier*; there should be one.
        freed: ``merge_digest`` of brands that are gone or have another one now.
    """

    def __init__(
        self, bundle: BrandBundle, *, identifier: Mapping[str, str] | None = None
    ) -> None:
        self._bundle = bundle
        self._identifier = identifier
        self.brands = _Rows(model=Brand, card=("card",))
        self.endpoints = _Rows(model=BrandEndpoint)
        self.problems: Counter[str] = Counter()
        self.licenses: set[str] = set()
        self.primary_matches = 0
        self.freed: set[str] = set()

    def write(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Store every entry, and remove what the bundle no longer has."""
        for entry in entries:
            try:
                row = self._build_row(entry)
            except BrandError as exc:
                self.problems[str(exc)] += 1
                continue
            if row is not None:
                self._add(row)
        for rows in (self.brands, self.endpoints):
            self._flush(rows)
            self._remove_unseen(rows)

    def _build_row(self, entry: Mapping[str, Any]) -> _Row | None:
        resource = entry.get("resource")
        if not isinstance(resource, dict):
            return None
        row: _Row | None = None
        if resource.get("resourceType") == "Organization":
            brand = wire.parse_brand(resource)
            row = self._build_brand(brand) if brand is not None else None
        elif resource.get("resourceType") == "Endpoint":
            endpoint = wire.parse_brand_endpoint(
                resource, insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS
            )
            if endpoint is not None:
                address, is_r4 = endpoint
                row = BrandEndpoint(address=address, is_r4=is_r4)
        if row is None:
            return None
        row.bundle = self._bundle
        row.full_url, row.reference = _read_names(entry, resource)
        if isinstance(row, Brand) and not row.merge_digest:
            row.merge_digest = digest("", str(self._bundle.pk), row.full_url)
        row.content_digest = _compute_digest(row)
        return row

    def _build_brand(self, brand: wire.Brand) -> Brand:
        if self._identifier is not None:
            wanted = self._identifier
            self.primary_matches += any(
                each.value == wanted["value"]
                and each.system == wanted.get("system", each.system)
                for each in brand.identifiers
            )
        licenses = [
            brand.logo_license,
            *(each["logo_license"] for each in brand.portals),
        ]
        self.licenses.update(each for each in licenses if each)
        words = split_words(brand.name)
        key = brand.merge_key
        return Brand(
            merge_digest=digest(*key) if key is not None else "",
            name=brand.name,
            name_key=build_key(words[0] if words else ""),
            sort_name=" ".join(words)[:_MAX_SORT_NAME],
            aliases=list(brand.aliases),
            places=list(brand.places),
            categories=f" {' '.join(brand.categories)} " if brand.categories else "",
            website=brand.website,
            logo=brand.logo,
            logo_license=brand.logo_license,
            portals=list(brand.portals),
            endpoint_references=[
                {"portal": portal, "reference": reference}
                for reference, portal in brand.endpoints.items()
            ],
            part_of=brand.part_of,
        )

    def _add(self, row: _Row) -> None:
        rows = self.brands if isinstance(row, Brand) else self.endpoints
        if rows.batch.setdefault(digest(row.full_url), row) is not row:
            self.problems["Duplicate entry."] += 1
        if isinstance(row, Brand):
            rows.size += len(row.logo) + sum(len(each["logo"]) for each in row.portals)
        if len(rows.batch) >= _BATCH or rows.size > _MAX_LOGOS:
            self._flush(rows)

    def _flush(self, rows: _Rows) -> None:
        """Write the batch: only rows that are new or differ."""
        batch, rows.batch, rows.size = rows.batch, {}, 0
        _forget_queries()
        known = rows.model.objects.filter(
            bundle=self._bundle, full_url_digest__in=list(batch)
        ).values_list("full_url_digest", "pk", "content_digest", *rows.card)
        changed: dict[int, Any] = {}
        for url_digest, pk, content_digest, *card in known:
            row = batch.pop(url_digest)
            if pk in rows.seen:
                self.problems["Duplicate entry."] += 1
            elif content_digest != row.content_digest:
                row.pk = pk
                changed[pk] = row
                if isinstance(row, Brand):
                    row.card_id = card[0]
            rows.seen.add(pk)
        if rows is self.brands:
            self._free(changed)
            BrandWord.objects.filter(brand__in=list(changed)).delete()
        for row in changed.values():
            row.save(force_update=True, update_fields=_get_columns(rows.model))
        added = rows.model.objects.bulk_create(batch.values())
        rows.seen.update(row.pk for row in added)
        rows.changed += len(changed)
        rows.added += len(added)
        if rows is self.brands:
            _write_words([*changed.values(), *added])

    def _remove_unseen(self, rows: _Rows) -> None:
        stored = rows.model.objects.filter(bundle=self._bundle).only("pk")
        for batch in _iterate_in_batches(stored):
            gone = [row.pk for row in batch if row.pk not in rows.seen]
            if rows is self.brands:
                self._free(gone)
            rows.model.objects.filter(pk__in=gone).delete()
            rows.removed += len(gone)

    def _free(self, keys: Iterable[int]) -> None:
        """Remember by what brands were merged until now."""
        brands = Brand.objects.filter(pk__in=list(keys))
        self.freed.update(brands.values_list("merge_digest", flat=True))


def _iterate_in_batches(rows: models.QuerySet[Any]) -> Iterator[list[Any]]:
    """
    Yield lists of *rows*, which may be changed meanwhile.

    By primary key: some drivers keep the whole answer to a large query in memory.
    """
    last = 0
    while batch := list(rows.filter(pk__gt=last).order_by("pk")[:_BATCH]):
        last = batch[-1].pk
        yield batch
        _forget_queries()


def _forget_queries() -> None:
    """With ``DEBUG`` Django keeps thousands of queries, and each is long here."""
    if settings.DEBUG:
        reset_queries()


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


def _get_columns(model: type[models.Model]) -> list[str]:
    """Columns that come from the bundle, and the digests that follow from them."""
    ours = {"id", "bundle", "card"}
    return [each.name for each in model._meta.concrete_fields if each.name not in ours]


def _compute_digest(row: _Row) -> str:
    """What is equal if and only if the row need not be written again."""
    skipped = {"content_digest"} | {
        each.name for each in row._meta.concrete_fields if isinstance(each, DigestField)
    }
    columns = [name for name in _get_columns(type(row)) if name not in skipped]
    return digest(json.dumps([getattr(row, name) for name in columns]))


def _write_words(brands: Iterable[Brand]) -> None:
    words = [
        BrandWord(
            brand=brand,
            card_id=brand.card_id or brand.pk,
            key=build_key(word),
            word=word,
        )
        for brand in brands
        for word in _get_words(brand)
    ]
    BrandWord.objects.bulk_create(words, 5000)


def _get_words(brand: Brand) -> list[str]:
    words = dict.fromkeys(
        word for text in brand.get_search_texts() for word in split_words(text)
    )
    return list(words)[:_MAX_WORDS]


# What follows from the rows of a bundle: who gives access to whom, who is shown.

# From a brand to what it is part of, and from there once more (BRAND-08).
_MAX_DEPTH = 2
_MAX_LINKS = 1000
_EARLY = datetime.min.replace(tzinfo=UTC)

# What ``resolve_reference`` returns.
_Target = tuple[str, str]
# A portal's name and one of its endpoints, not yet looked up.
_Link = tuple[str, _Target]


def _link_brands(bundle: BrandBundle, problems: Counter[str]) -> None:
    """
    Find the endpoints of every brand of *bundle* and store what changed.

    References that lead nowhere are counted in *problems*.

    Spec: SMART App Launch 2.2, "User-access Brands and Endpoints" (BRAND-07, BRAND-08).
    """
    brands = Brand.objects.filter(bundle=bundle).only(
        "card", "full_url", "endpoint_references", "part_of"
    )
    everywhere = BrandEndpoint.objects.filter(bundle=bundle).only(
        "full_url", "reference"
    )
    for batch in _divide(_iterate_in_batches(brands)):
        links = _collect_links(bundle, batch, problems)
        targets = {target for each in links.values() for _, target in each}
        endpoints = _find(everywhere, targets)
        wanted: dict[int, dict[int, str]] = {}
        for brand in batch:
            found = wanted.setdefault(brand.pk, {})
            for portal, target in links[brand.pk]:
                endpoint = endpoints.get(target)
                if endpoint is not None:
                    found.setdefault(endpoint.pk, portal)
                else:
                    problems["A reference to an endpoint cannot be resolved."] += 1
        _store_accesses(wanted, {each.pk: each.card_id or each.pk for each in batch})


def _show_brands(bundle: BrandBundle, freed: Iterable[str] = ()) -> None:
    """
    Choose the brand that is shown for each organization of *bundle* (BRAND-06).

    Among equals one that a server's own configuration links to wins, then the newer
    bundle (BRAND-02).

    Args:
        freed: ``merge_digest`` of other brands to choose for again.
    """
    for batch in _iterate_in_batches(
        Brand.objects.filter(bundle=bundle).only("merge_digest")
    ):
        _show(brand.merge_digest for brand in batch)
    for part in _split(freed):
        _show(part)


def _divide(batches: Iterable[list[Brand]]) -> Iterator[list[Brand]]:
    """Smaller batches where brands have many endpoints: those are held in memory."""
    for batch in batches:
        part: list[Brand] = []
        count = 0
        for brand in batch:
            if part and count >= _MAX_LINKS:
                yield part
                part, count = [], 0
            part.append(brand)
            count += len(brand.endpoint_references)
        yield part


def refresh_statistics() -> None:
    """
    Let PostgreSQL count again what its plans for a search depend on.

    It does so automatically about a minute later; until then a search can take seconds.
    """
    connection = connections[router.db_for_write(Brand)]
    if connection.vendor == "postgresql":
        models = (Brand, BrandAccess, BrandEndpoint, BrandWord)
        tables = ", ".join(model._meta.db_table for model in models)
        with connection.cursor() as cursor:
            cursor.execute(f"ANALYZE {tables}")


def _collect_links(
    bundle: BrandBundle, batch: list[Brand], problems: Counter[str]
) -> dict[int, list[_Link]]:
    """The links of each brand: its own, or those of what it is part of."""
    links: dict[int, list[_Link]] = {brand.pk: _get_links(brand) for brand in batch}
    above = {brand.pk: brand for brand in batch if not links[brand.pk]}
    everyone = Brand.objects.filter(bundle=bundle).only(
        "full_url", "reference", "endpoint_references", "part_of"
    )
    for _ in range(_MAX_DEPTH):
        targets = {
            pk: wire.resolve_reference(brand.part_of, full_url=brand.full_url)
            for pk, brand in above.items()
            if brand.part_of
        }
        parents = _find(everyone, set(targets.values()))
        above = {}
        for pk, target in targets.items():
            parent = parents.get(target)
            if parent is None:
                problems["A brand is part of a brand that does not exist."] += 1
                continue
            links[pk] = _get_links(parent)
            if not links[pk]:
                above[pk] = parent
    return links


def _get_links(brand: Brand) -> list[_Link]:
    return [
        (
            each["portal"],
            wire.resolve_reference(each["reference"], full_url=brand.full_url),
        )
        for each in brand.endpoint_references
    ]


def _find(rows: QuerySet[Any], targets: set[_Target]) -> dict[_Target, Any]:
    """The row for each target: by its full URL, else by type and id if one has it."""
    by_url: dict[str, Any] = {}
    by_name: dict[str, list[Any]] = defaultdict(list)
    for part in _split(targets):
        urls = [digest(url) for url, _ in part if url]
        for row in rows.filter(full_url_digest__in=urls):
            by_url[row.full_url] = row
        names = [digest(name) for url, name in part if name and url not in by_url]
        for row in rows.filter(reference_digest__in=names):
            by_name[row.reference].append(row)
    found = {}
    for url, name in targets:
        named = by_name.get(name, ())
        row = by_url.get(url) or (named[0] if len(named) == 1 else None)
        if row is not None:
            found[url, name] = row
    return found


def _store_accesses(
    wanted: Mapping[int, Mapping[int, str]], cards: Mapping[int, int]
) -> None:
    """Write what differs; *wanted* is portal names by endpoint, by brand."""
    stored: dict[int, list[tuple[int, str]]] = defaultdict(list)
    rows = BrandAccess.objects.filter(brand__in=list(wanted)).order_by("position")
    for access in rows:
        stored[access.brand_id].append((access.endpoint_id, access.portal_name))
    changed = {
        pk: endpoints
        for pk, endpoints in wanted.items()
        if stored[pk] != list(endpoints.items())
    }
    BrandAccess.objects.filter(brand__in=[pk for pk in changed if stored[pk]]).delete()
    BrandAccess.objects.bulk_create(
        [
            BrandAccess(
                brand_id=pk,
                card_id=cards[pk],
                endpoint_id=endpoint_id,
                position=position,
                portal_name=portal,
            )
            for pk, endpoints in changed.items()
            for position, (endpoint_id, portal) in enumerate(endpoints.items())
        ],
        5000,
    )


def _show(digests: Iterable[str]) -> None:
    groups: dict[str, list[Brand]] = defaultdict(list)
    brands = Brand.objects.filter(merge_digest__in=list(digests))
    for brand in brands.select_related("bundle").only(
        "merge_digest", "card", "bundle__server", "bundle__timestamp"
    ):
        groups[brand.merge_digest].append(brand)
    chosen: list[int] = []
    hidden: list[Brand] = []
    for group in groups.values():
        best = max(group, key=_rank)
        if best.card_id != best.pk:
            chosen.append(best.pk)
        for brand in group:
            if brand is not best and brand.card_id != best.pk:
                brand.card_id = best.pk
                hidden.append(brand)
    Brand.objects.filter(pk__in=chosen).update(card=F("pk"))
    Brand.objects.bulk_update(hidden, ["card"], _BATCH)
    moved = [brand.pk for brand in hidden]
    card = Subquery(Brand.objects.filter(pk=OuterRef("brand")).values("card")[:1])
    for rows in (BrandWord.objects.all(), BrandAccess.objects.all()):
        # Of most it is their own brand, as they were written.
        rows.filter(brand__in=chosen).exclude(card=F("brand")).update(card=F("brand"))
        rows.filter(brand__in=moved).update(card=card)


def _rank(brand: Brand) -> tuple[bool, datetime, int]:
    bundle = brand.bundle
    return bundle.server_id is not None, bundle.timestamp or _EARLY, -brand.pk


def _split(values: Iterable[Any]) -> Iterator[list[Any]]:
    """Parts that are short enough for a query."""
    ordered = list(values)
    for start in range(0, len(ordered), _BATCH):
        yield ordered[start : start + _BATCH]

"""Import user-access brands: organizations, their portals and their FHIR servers."""

from __future__ import annotations

import codecs
import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urljoin

from django.core.exceptions import ImproperlyConfigured
from django.db import router, transaction
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from ... import transport
from ...conf import conf
from ...exceptions import BrandStatusError, MalformedBrandError
from ...fields import digest
from ...models import Brand, BrandBundle, BrandEndpoint, FHIRServer
from ...models.server import MAX_URL_LENGTH
from ...protocol.messages import HTTPRequest, HTTPResponse
from ...servers.egress import build_peer_check
from .links import link_brands, refresh_statistics, show_brands
from .rows import RowWriter, iterate_in_batches

__all__ = [
    "BrandImport",
    "fetch_bundle",
    "import_brand_file",
    "import_brands",
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
        for batch in iterate_in_batches(rows):
            freed.update(brand.merge_digest for brand in batch)
            Brand.objects.filter(pk__in=[brand.pk for brand in batch]).delete()
            removed += len(batch)
        endpoints = BrandEndpoint.objects.filter(bundle=bundle).only("pk")
        for part in iterate_in_batches(endpoints):
            BrandEndpoint.objects.filter(pk__in=[each.pk for each in part]).delete()
        show_brands(bundle, freed)
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
        raise MalformedBrandError(
            f"The location is longer than {MAX_URL_LENGTH} characters."
        )
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
            show_brands(bundle)
            return BrandImport(bundle=bundle, is_new=False)
        bundle.content_digest = content_digest
        return _write(bundle, file)


def _write(bundle: BrandBundle, file: BinaryIO) -> BrandImport:
    """Store the bundle and all that follows from it."""
    configuration = bundle.server.read_configuration() if bundle.server else None
    identifier = configuration.user_access_brand_identifier if configuration else None
    writer = RowWriter(bundle, identifier=identifier)
    members: dict[str, object] = {}
    writer.write(_read_entries(file, members))
    bundle.timestamp = _read_timestamp(members.get("timestamp"))
    bundle.save()
    link_brands(bundle, writer.problems)
    show_brands(bundle, writer.freed)
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
_DOWNLOAD_SECONDS = 3600.0
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
        response = _send(request, file, server)
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


def _send(
    request: HTTPRequest, file: BinaryIO, server: FHIRServer | None
) -> HTTPResponse:
    file.seek(0)
    file.truncate()
    connect, read, _ = conf.SMART_HTTP_TIMEOUT
    with transport.open_stream(
        request,
        timeouts=transport.Timeouts(
            connect=connect, read=read, total=max(_DOWNLOAD_SECONDS, connect, read)
        ),
        max_body=_MAX_DOWNLOAD,
        insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
        check_peer=build_peer_check(request.url, server) if server else None,
    ) as stream:
        file.writelines(stream.chunks)
    return stream.head


def _read_entries(
    file: BinaryIO, members: dict[str, object]
) -> Iterator[dict[str, Any]]:
    """
    Yield the entries of a bundle, holding one at a time.

    Args:
        members: gets the other members that are needed, which may follow the entries.

    Raises:
        MalformedBrandError: not JSON, or not a ``Bundle`` of type ``collection``.
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
                    raise MalformedBrandError(
                        "An entry of the brand bundle is too large."
                    )
                builder.event(event, value)
            elif prefix in {"resourceType", "type", "timestamp"}:
                members[prefix] = value
    except (ijson.JSONError, UnicodeDecodeError) as exc:
        raise MalformedBrandError("The brand bundle is not complete JSON.") from exc
    if members.get("resourceType") != "Bundle" or members.get("type") != "collection":
        raise MalformedBrandError(
            "The brand bundle is not a Bundle of type collection."
        )


def _read_timestamp(value: object) -> datetime | None:
    try:
        moment = parse_datetime(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment if moment and timezone.is_aware(moment) else None

"""Import user-access brands: organisations, their portals and their FHIR servers."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from django.db import transaction
from django.utils import timezone

from ...exceptions import MalformedBrandError
from ...fields import digest
from ...models import Brand, BrandBundle, BrandEndpoint, FHIRServer
from ...models.server import MAX_URL_LENGTH
from .bundle import BundleReader, fetch_bundle
from .links import link_brands, refresh_statistics, show_brands
from .rows import RowWriter, iterate_in_batches

__all__ = ["BrandImport", "import_brand_file", "import_brands", "remove_brands"]

logger = logging.getLogger(__name__)

_CHUNK = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class BrandImport:
    """
    What an import did.

    Attributes:
        is_new: false if nothing had changed, and so nothing was read.
        brands, endpoints: how many were added, changed and removed.
        problems: what was left out and how often, by reason.
        licenses: URLs of the licences of logos (BRAND-11).
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
        server: whose configuration links to the bundle; found by itself if the stored
            configuration of one has this very URL.
        force: read it even if it has not changed.

    Raises:
        TransportError, BrandError: as met; what is stored stays as it is.
        ImproperlyConfigured: the extra ``brands`` is not installed.
    """
    with tempfile.TemporaryFile() as file:
        known = BrandBundle.objects.at(url).first()
        etag = known.etag if known is not None and not force else ""
        fetched = fetch_bundle(url, etag=etag, file=file)
        if known is not None and not fetched.is_new:
            return BrandImport(bundle=known, is_new=False)
        server = server or _find_server(url)
        return _store(url, file, etag=fetched.etag, server=server, force=force)


def import_brand_file(
    path: Path, *, name: str = "", force: bool = False
) -> BrandImport:
    """
    Import the bundle in a file, all of it or nothing.

    Args:
        name: what it is remembered by, so that a later file of the same name replaces
            it; by default the file's own path.
        force: as for :func:`import_brands`, which tells the errors too.

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
    with transaction.atomic():
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
    file: BinaryIO,
    *,
    etag: str,
    server: FHIRServer | None,
    force: bool,
) -> BrandImport:
    if len(location) > MAX_URL_LENGTH:
        raise MalformedBrandError(
            f"The location has more than {MAX_URL_LENGTH} characters."
        )
    content_digest = _compute_digest(file)
    with transaction.atomic():
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
    identifier = _get_identifier(bundle.server)
    writer = RowWriter(bundle, identifier=identifier)
    reader = BundleReader(file)
    writer.write(reader)
    bundle.timestamp = reader.timestamp
    bundle.imported_at = timezone.now()
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


def _compute_digest(file: BinaryIO) -> str:
    file.seek(0)
    state = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        state.update(chunk)
    return state.hexdigest()


def _find_server(url: str) -> FHIRServer | None:
    """The server whose stored configuration names *url*, if one does."""
    servers = FHIRServer.objects.active()
    return servers.filter(configuration__user_access_brand_bundle=url).first()


def _get_identifier(server: FHIRServer | None) -> Mapping[str, str] | None:
    configuration = server.read_configuration() if server is not None else None
    return configuration.user_access_brand_identifier if configuration else None

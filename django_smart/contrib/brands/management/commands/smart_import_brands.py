"""Import user-access brands, for people to choose from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_smart.conf import conf
from django_smart.contrib.brands.importing import (
    BrandImport,
    get_known_urls,
    import_brand_file,
    import_brands,
    is_url,
    remove_brands,
)
from django_smart.contrib.brands.models import BrandBundle
from django_smart.exceptions import SMARTError
from django_smart.models import FHIRServer

__all__ = ["Command"]


class Command(BaseCommand):
    """``smart_import_brands``: exit status 1 if a bundle could not be imported."""

    help = (
        "Read a bundle of user-access brands from a file or a URL: "
        "organizations, their portals and their FHIR servers, for people to "
        "choose from at login/. A bundle is stored completely or not at all; "
        "importing it again updates it."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("source", nargs="?", help="File or https URL.")
        parser.add_argument(
            "--server",
            metavar="SLUG",
            help="Import the bundle that this server's SMART configuration links to.",
        )
        parser.add_argument(
            "--known",
            action="store_true",
            help="Import every known bundle again that came from a URL, as for a "
            "scheduled job.",
        )
        parser.add_argument(
            "--name",
            default="",
            help="For a file: importing another file with the same name replaces "
            "this bundle.",
        )
        parser.add_argument(
            "--remove",
            action="store_true",
            help="Remove everything imported from this source or, for a file, this "
            "--name.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Import one bundle or all that are known, or remove one."""
        chosen = [options["source"], options["server"], options["known"]]
        if sum(map(bool, chosen)) != 1:
            raise CommandError("Name a file or URL, or use --server or --known.")
        if options["remove"]:
            self._remove(options)
        elif options["known"]:
            self._import_known()
        else:
            try:
                self._report(_import(options))
            except (SMARTError, ImproperlyConfigured) as exc:
                raise CommandError(str(exc)) from exc
            except OSError as exc:
                raise CommandError(
                    f"Cannot read {options['source'] or options['server']}: "
                    f"{str(exc.strerror).lower()}."
                ) from exc

    def _import_known(self) -> None:
        failures = 0
        urls = get_known_urls()
        for url in urls:
            try:
                self._report(import_brands(url))
            except (SMARTError, ImproperlyConfigured, OSError) as exc:
                failures += 1
                self.stderr.write(f"{url}: {exc}")
        if failures:
            raise CommandError(f"{failures} of {len(urls)} bundles failed.")

    def _remove(self, options: dict[str, Any]) -> None:
        source = options["source"]
        if not source:
            raise CommandError("Name the source to remove.")
        location = options["name"] or source
        if location == source and not is_url(source):
            location = str(Path(source).resolve())
        try:
            removed = remove_brands(location)
        except BrandBundle.DoesNotExist:
            raise CommandError(f"Nothing was imported from {location}.") from None
        self.stdout.write(f"{removed} brands removed.")

    def _report(self, result: BrandImport) -> None:
        location = result.bundle.location
        if not result.is_new:
            self.stdout.write(f"{location}: unchanged")
            return
        self.stdout.write(
            f"{location}: {result.brands} brands, {result.endpoints} endpoints"
        )
        for line in _get_remarks(result):
            self.stderr.write(line)


def _import(options: dict[str, Any]) -> BrandImport:
    source, slug = options["source"], options["server"]
    if slug:
        server = FHIRServer.objects.filter(slug=slug).first()
        if server is None:
            raise CommandError(f"No server has the slug {slug}.")
        configuration = server.read_configuration()
        if configuration is None or not configuration.user_access_brand_bundle:
            raise CommandError(
                f"The stored configuration of {slug} has no "
                "user_access_brand_bundle; run smart_discover to fetch it "
                "again."
            )
        url = configuration.user_access_brand_bundle
        return import_brands(url, server=server)
    if is_url(source):
        return import_brands(source)
    return import_brand_file(Path(source), name=options["name"])


def _get_remarks(result: BrandImport) -> Iterator[str]:
    for reason, count in sorted(result.problems.items()):
        yield f"Skipped {count} times: {reason}"
    accepted = conf.SMART_LOGO_LICENSES
    for url in result.licenses:
        if url not in accepted:
            yield (
                f"Logos from {url} are hidden until SMART_LOGO_LICENSES contains it."
            )
    if result.primary_matches not in {None, 1}:
        yield (
            f"{result.primary_matches} brands match the identifier in the "
            "server's configuration; expected 1."
        )

"""``smart_import_brands``: what it reads, tells and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from django.core.management import CommandError

from django_smart.contrib.brands.models import Brand, BrandBundle
from django_smart.contrib.brands.tasks import import_known_brands
from django_smart.models import FHIRServer
from tests.bundles import VECTORS, Host, bundle, endpoint, host, organization
from tests.factories import make_server
from tests.management.running import run

__all__ = ["host"]

pytestmark = pytest.mark.django_db

URL = "https://brands.example.org/brands.json"


def write(path: Path, *entries: dict[str, object]) -> str:
    path.write_bytes(bundle(*entries))
    return str(path)


def add_server(**configuration: object) -> FHIRServer:
    return make_server(
        slug="harbour",
        name="Harbour",
        base_url="https://fhir.example.org/r4",
        configuration={"token_endpoint": "https://fhir.example.org/t", **configuration},
    )


def test_file_is_imported_and_told():
    ran = run("smart_import_brands", str(VECTORS / "Bundle-example2.json"))
    assert "3 brands, 3 endpoints" in ran.out
    assert ran.err == ""


def test_what_was_left_out_is_told(tmp_path, settings):
    path = write(
        tmp_path / "b.json",
        organization("a", "A", logo="https://a.example/a.png", logo_license=URL),
        organization("b", ""),
    )
    ran = run("smart_import_brands", path)
    assert "Skipped 1 times: An Organization has no name." in ran.err
    assert f"Logos from {URL} are hidden" in ran.err
    settings.SMART_LOGO_LICENSES = [URL]
    ran = run("smart_import_brands", path)
    assert "Logos" not in ran.err


def test_url_and_all_known_urls_are_imported(host: Host, tmp_path):
    run("smart_import_brands", write(tmp_path / "b.json", organization("f", "File")))
    host.on(URL, bundle(organization("a", "A")), ETag='"1"')
    run("smart_import_brands", URL)
    assert f"{URL}: unchanged" in run("smart_import_brands", "--known").out
    host.on(URL, bundle(organization("a", "B")), ETag='"2"')
    assert "1 brands, 0 endpoints" in run("smart_import_brands", "--known").out
    host.on(URL, b"", 500)
    with pytest.raises(CommandError, match=r"1 of 1 bundles failed"):
        run("smart_import_brands", "--known")
    assert Brand.objects.count() == 2


@pytest.mark.compliance("BRAND-03")
def test_bundle_of_a_server_is_found_by_its_configuration(host: Host):
    server = add_server(
        user_access_brand_bundle=URL,
        user_access_brand_identifier={"value": "https://none.example"},
    )
    host.on(URL, bundle(organization("a", "A"), endpoint("e", server.base_url)))
    ran = run("smart_import_brands", "--server", "harbour")
    assert BrandBundle.objects.get().server == server
    assert "0 brands match the identifier" in ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name a file or URL"),
        (["x.json", "--known"], "Name a file or URL"),
        (["--remove", "--known"], "Name the source"),
        (["--server", "nowhere"], "nowhere"),
        (["--server", "harbour"], "no user_access_brand_bundle"),
        (["/nonexistent/brands.json"], "no such file"),
        (["/nonexistent/brands.json", "--remove"], "Nothing was imported from"),
    ],
)
def test_wrong_arguments_are_told(arguments, message):
    add_server()
    with pytest.raises(CommandError, match=message):
        run("smart_import_brands", *arguments)


def test_broken_bundle_is_told(tmp_path):
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"resourceType": "Bundle", "type": "batch"}))
    with pytest.raises(CommandError, match="type collection"):
        run("smart_import_brands", str(path))


def test_bundle_is_removed_by_path_and_by_name(tmp_path):
    path = write(tmp_path / "b.json", organization("a", "A"))
    run("smart_import_brands", path)
    assert "1 brands removed" in run("smart_import_brands", path, "--remove").out
    run("smart_import_brands", path, "--name", "monthly")
    ran = run("smart_import_brands", path, "--name", "monthly", "--remove")
    assert "1 brands removed" in ran.out
    assert not BrandBundle.objects.exists()


def test_task_imports_known_urls_and_goes_on_after_a_failure(host: Host, caplog):
    other = f"{URL}?other"
    for url in (URL, other):
        host.on(url, bundle(organization("a", "A")))
        run("smart_import_brands", url)
    host.on(URL, b"", 500)
    host.on(other, bundle(organization("a", "Anew")))
    import_known_brands.delay()
    assert Brand.objects.filter(name="Anew").count() == 1
    assert f"{URL} was not imported" in caplog.text

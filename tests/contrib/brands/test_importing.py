"""Import brand bundles: whole or not at all, and in little memory."""

from __future__ import annotations

import builtins
import errno
import io
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, reset_queries

from django_smart.contrib.brands.importing import (
    fetch_bundle,
    import_brand_file,
    import_brands,
    remove_brands,
)
from django_smart.contrib.brands.models import Brand, BrandBundle, BrandEndpoint
from django_smart.exceptions import BrandError, InsecureURLError, ServerUnreachableError
from django_smart.models import ServerState
from tests.bundles import (
    VECTORS,
    bundle,
    endpoint,
    host,
    organization,
    write_large,
)
from tests.factories import make_registration, make_server

__all__ = ["host"]

pytestmark = pytest.mark.django_db

URL = "https://brands.example.org/brands.json"
R4 = "https://fhir.example.org/r4"


@pytest.fixture(autouse=True)
def _one_brand_is_shown(db: None) -> Iterator[None]:
    """Whatever was imported and removed, each organization is shown once."""
    yield
    shown = Brand.objects.shown().values_list("merge_digest", flat=True)
    assert len(set(shown)) == len(shown)
    assert set(shown) == set(Brand.objects.values_list("merge_digest", flat=True))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "brands.json"


def read(path: Path, *entries: dict[str, Any], **members: Any):
    """Import a bundle of these entries from *path*."""
    path.write_bytes(bundle(*entries, **members))
    return import_brand_file(path)


def everything() -> list[Any]:
    """Every row of every table, keys and all."""
    models: list[Any] = [Brand, BrandEndpoint, BrandBundle]
    return [list(model.objects.order_by("pk").values()) for model in models]


def accesses(name: str) -> list[tuple[str, str]]:
    """Address and portal of each way to connect to a brand, in order."""
    rows = BrandEndpoint.objects.filter(brand__name=name)
    return list(rows.values_list("address", "portal_name"))


def shown() -> list[str]:
    brands = Brand.objects.shown().order_by("name")
    return list(brands.values_list("name", flat=True))


# The specification's bundles


@pytest.mark.compliance("BRAND-04", "BRAND-07")
@pytest.mark.parametrize(
    ("number", "brands", "endpoints"), [(1, 1, 1), (2, 3, 3), (3, 1, 2), (4, 2, 2)]
)
def test_vector_is_imported_whole(number, brands, endpoints):
    result = import_brand_file(VECTORS / f"Bundle-example{number}.json")
    assert result.is_new
    assert result.brands == brands
    assert result.endpoints == endpoints
    assert result.problems == {}
    assert len(shown()) == brands
    assert result.bundle.timestamp is not None
    assert result.bundle.timestamp.year == 2023


@pytest.mark.compliance("BRAND-08", "BRAND-10")
def test_affiliates_have_the_endpoints_of_what_they_are_part_of():
    import_brand_file(VECTORS / "Bundle-example2.json")
    portal = "My ExampleHealth Portal"
    expected = accesses("ExampleHealth")
    # The other one is for DSTU2.
    assert [each[1] for each in expected] == [portal]
    assert accesses("ExampleHealth Community Hospital") == expected
    assert accesses("ExampleHealth Physicians of Madison") == expected


def test_two_portals_keep_their_own_endpoints():
    import_brand_file(VECTORS / "Bundle-example3.json")
    assert accesses("ExampleHospital") == [
        (
            "https://ehr1.example.org/ExampleHospital/api/FHIR/R4",
            "ExampleHospital Patient Gateway",
        ),
        (
            "https://ehr2.example.org/ExampleHospital/api/FHIR/R4",
            "ExampleHospital Pediatric Portal",
        ),
    ]


# Again


def test_newer_bundle_takes_the_place_of_the_older(path):
    read(
        path,
        organization("a", "Alpha Clinic", endpoints=["Endpoint/e"]),
        organization("b", "Beta Clinic", endpoints=["Endpoint/e"]),
        endpoint("e", R4),
    )
    result = read(
        path,
        organization("a", "Alpha Hospital", endpoints=["Endpoint/f"]),
        organization("c", "Gamma Clinic", endpoints=["Endpoint/f"]),
        endpoint("f", f"{R4}/new"),
    )
    assert (result.brands, result.endpoints) == (2, 2)
    assert shown() == ["Alpha Hospital", "Gamma Clinic"]
    assert accesses("Alpha Hospital") == [(f"{R4}/new", "")]
    assert BrandEndpoint.objects.count() == 2


def test_named_file_is_replaced_by_a_later_one(tmp_path):
    for number, name in enumerate(("A", "B")):
        path = tmp_path / f"{number}.json"
        path.write_bytes(bundle(organization("a", name)))
        import_brand_file(path, name="monthly")
    assert shown() == ["B"]
    assert BrandBundle.objects.get().location == "monthly"


# All or nothing


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not complete JSON"),
        (b"not JSON", "not complete JSON"),
        (b"\xff\xfe", "not complete JSON"),
        (b"[]", "not a Bundle"),
        (b'{"resourceType": "Patient"}', "not a Bundle"),
        (bundle(type="searchset"), "not a Bundle"),
        (bundle(organization("b", "B"))[:-3], "not complete JSON"),
        (bundle(organization("b", "B")) + b"x", "not complete JSON"),
        (bundle(organization("b", "\ud800B"), type="batch"), "not a Bundle"),
    ],
)
def test_bad_bundle_changes_nothing(path, content, message):
    read(path, organization("a", "A", endpoints=["Endpoint/e"]), endpoint("e", R4))
    before = everything()
    path.write_bytes(content)
    with pytest.raises(BrandError, match=message):
        import_brand_file(path)
    assert everything() == before


def test_bad_bundle_at_first_leaves_nothing_at_all(path):
    path.write_bytes(bundle(organization("b", "B"), type="searchset"))
    with pytest.raises(BrandError):
        import_brand_file(path)
    assert everything() == [[], [], []]


def test_giant_entry_is_refused(path):
    path.write_bytes(
        bundle(organization("a", "A", alias=["x" * 1_000_000 for _ in range(17)]))
    )
    with pytest.raises(BrandError, match="too large"):
        import_brand_file(path)


def test_byte_order_mark_is_skipped(path):
    path.write_bytes(b"\xef\xbb\xbf" + bundle(organization("a", "A")))
    import_brand_file(path)
    assert shown() == ["A"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-01-02T03:04:05Z", True),
        ("2026-01-02", False),
        ("2026-01-02T03:04:05", False),
        ("2026-99-99T03:04:05Z", False),
        ("nonsense", False),
        (7, False),
    ],
)
def test_timestamp_is_read_if_it_is_one(path, value, expected):
    read(path, timestamp=value)
    assert (BrandBundle.objects.get().timestamp is not None) is expected


def test_entries_that_cannot_be_used_are_counted_and_left_out(path):
    result = read(
        path,
        organization("a", "A", endpoints=["Endpoint/e", "Endpoint/none"]),
        organization("a", "Twice"),
        organization("b", ""),
        organization("c", "C", part_of="Organization/none"),
        organization("d", "D", active=False),
        endpoint("e", R4),
        endpoint("f", "http://plain.example.org"),
        endpoint("g", R4, connectionType={"code": "dicom-wado-rs"}),
        {"resource": {"resourceType": "Organization", "name": "Nameless"}},
        {"resource": {"resourceType": "Location"}},
        {"fullUrl": "https://a.example"},
    )
    assert shown() == ["A", "C"]
    assert result.endpoints == 1
    assert sorted(result.problems.values()) == [1, 1, 1, 1, 1, 1]
    assert result.problems["Duplicate entry."] == 1
    assert result.problems["A reference to an endpoint cannot be resolved."] == 1
    assert result.problems["A brand is part of a brand that does not exist."] == 1


def test_entry_that_comes_twice_far_apart_is_counted(path):
    # In another batch, when the first one is stored.
    others = [organization(f"{number}", f"B{number}") for number in range(600)]
    result = read(path, organization("a", "A"), *others, organization("a", "Other"))
    assert result.problems == {"Duplicate entry.": 1}
    assert len(shown()) == 601
    assert shown()[0] == "A"


def test_many_large_logos_are_stored(path):
    logo = f"data:image/svg+xml,<svg>{'x' * 32_000}</svg>"
    result = read(path, *[organization(f"{n}", f"O{n}", logo=logo) for n in range(150)])
    assert result.brands == 150
    assert all(Brand.objects.values_list("logo", flat=True))


def test_entries_without_full_url_are_named_by_type_and_id(path):
    entries = [organization("a", "A", endpoints=["Endpoint/e"]), endpoint("e", R4)]
    for entry in entries:
        del entry["fullUrl"]
    read(path, *entries)
    assert accesses("A") == [(R4, "")]


def test_full_url_alone_names_an_entry(path):
    first, second = organization("a", "A"), endpoint("e", R4)
    del first["resource"]["id"], second["resource"]["id"]
    first["resource"]["endpoint"] = [{"reference": second["fullUrl"]}]
    read(path, first, second)
    assert accesses("A") == [(R4, "")]


def test_ambiguous_reference_is_not_guessed(path):
    first, second = endpoint("e", R4), endpoint("e", f"{R4}/other")
    second["fullUrl"] = "https://other.example.org/Endpoint/e"
    brand = organization("a", "A", endpoints=["Endpoint/e"])
    brand["fullUrl"] = "urn:uuid:6d2b"
    result = read(path, brand, first, second)
    assert accesses("A") == []
    assert list(result.problems) == ["A reference to an endpoint cannot be resolved."]


# Parents


@pytest.mark.compliance("BRAND-08")
def test_parents_are_followed_twice_and_no_further(path):
    read(
        path,
        organization("a", "A", endpoints=["Endpoint/e"]),
        organization("b", "B", part_of="Organization/a"),
        organization("c", "C", part_of="Organization/b"),
        organization("d", "D", part_of="Organization/c"),
        endpoint("e", R4),
    )
    assert accesses("B") == accesses("C") == [(R4, "")]
    assert accesses("D") == []


@pytest.mark.compliance("BRAND-08")
def test_loop_of_parents_ends(path):
    result = read(
        path,
        organization("a", "A", part_of="Organization/b"),
        organization("b", "B", part_of="Organization/a"),
        organization("c", "C", part_of="Organization/c"),
    )
    assert shown() == ["A", "B", "C"]
    assert BrandEndpoint.objects.count() == 0
    assert result.problems == {}


# Several bundles


def identified(key: str, name: str, **members: Any) -> dict[str, Any]:
    """An organisation with the website that two bundles have in common."""
    identifier = {"system": "urn:ietf:rfc:3986", "value": "https://www.harbour.example"}
    return organization(key, name, identifier=[identifier], **members)


@pytest.mark.compliance("BRAND-06")
def test_two_bundles_with_one_identifier_give_one_card(tmp_path):
    read(
        tmp_path / "1.json",
        identified("a", "Harbour", endpoints=["Endpoint/e"]),
        endpoint("e", R4),
    )
    read(
        tmp_path / "2.json",
        identified(
            "b", "Harbour Health", alias=["Lighthouse"], endpoints=["Endpoint/e"]
        ),
        endpoint("e", f"{R4}/second"),
        timestamp="2026-03-04T05:06:07Z",
    )
    assert shown() == ["Harbour Health"]
    card = Brand.objects.shown().get()
    assert Brand.objects.shown().with_words(["light", "har"]).get() == card
    for address in (R4, f"{R4}/second"):
        registration = make_registration(
            server__base_url=address,
            server__slug=f"s{len(address)}",
            client_secret="secret",
        )
        assert Brand.objects.shown().connectable().get() == card
        registration.delete()


@pytest.mark.compliance("BRAND-02")
def test_bundle_that_a_server_links_to_is_believed(tmp_path, host):
    server = make_server(
        slug="s", name="S", base_url=R4, configuration={"user_access_brand_bundle": URL}
    )
    host.on(URL, bundle(identified("a", "Own word")))
    read(
        tmp_path / "1.json",
        identified("b", "Somebody's word"),
        timestamp="2026-12-31T00:00:00Z",
    )
    assert shown() == ["Somebody's word"]
    result = import_brands(URL)
    assert result.bundle.server == server
    assert shown() == ["Own word"]


def test_organisation_without_identifier_stays_with_its_bundle(tmp_path):
    for number in range(2):
        read(tmp_path / f"{number}.json", organization("a", "Same"))
    assert shown() == ["Same", "Same"]


def test_card_passes_on_when_its_bundle_drops_it(tmp_path):
    read(tmp_path / "1.json", identified("a", "First"))
    newer = tmp_path / "2.json"
    read(newer, identified("b", "Second"), timestamp="2026-03-04T05:06:07Z")
    assert shown() == ["Second"]
    read(newer, timestamp="2026-04-05T06:07:08Z")
    assert shown() == ["First"]


def test_card_passes_on_when_an_identifier_changes(tmp_path):
    read(tmp_path / "1.json", identified("a", "First"))
    newer = tmp_path / "2.json"
    read(newer, identified("b", "Second"), timestamp="2026-03-04T05:06:07Z")
    read(newer, organization("b", "Second"), timestamp="2026-04-05T06:07:08Z")
    assert shown() == ["First", "Second"]


def test_hidden_brand_that_changes_stays_with_its_card(tmp_path):
    read(tmp_path / "1.json", identified("a", "First"))
    newer = tmp_path / "2.json"
    read(newer, identified("b", "Second"), timestamp="2026-03-04T05:06:07Z")
    read(
        tmp_path / "1.json",
        identified("a", "First of all", endpoints=["Endpoint/e"]),
        endpoint("e", R4),
    )
    (card,) = Brand.objects.shown()
    assert card.name == "Second"
    assert list(Brand.objects.shown().with_endpoint()) == [card]


def test_removed_bundle_leaves_the_others_whole(tmp_path):
    kept, gone = tmp_path / "1.json", tmp_path / "2.json"
    read(kept, identified("a", "First", endpoints=["Endpoint/e"]), endpoint("e", R4))
    before = everything()
    read(
        gone,
        identified("b", "Second", endpoints=["Endpoint/e"]),
        endpoint("e", R4),
        timestamp="2026-03-04T05:06:07Z",
    )
    assert remove_brands(str(gone.resolve())) == 1
    assert everything() == before
    with pytest.raises(BrandBundle.DoesNotExist):
        remove_brands(str(gone))


# Over HTTP


@pytest.mark.compliance("BRAND-01")
def test_etag_is_sent_and_an_unchanged_bundle_changes_nothing(host):
    host.on(URL, bundle(organization("a", "A")), ETag='"one"')
    assert import_brands(URL).is_new
    before = everything()
    assert not import_brands(URL).is_new
    assert [each.headers.get("If-None-Match") for each in host.requests] == [
        None,
        '"one"',
    ]
    assert everything() == before
    host.on(URL, bundle(organization("a", "B")), ETag='"two"')
    assert import_brands(URL).is_new
    assert shown() == ["B"]
    assert BrandBundle.objects.get().etag == '"two"'


def test_full_disk_is_no_failure_of_the_server(host):
    class FullDisk(io.BytesIO):
        def writelines(self, _lines: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    host.on(URL, bundle(organization("a", "A")))
    with FullDisk() as file, pytest.raises(OSError, match="No space left"):
        fetch_bundle(URL, etag="", file=file, server=None)


@pytest.mark.compliance("BRAND-02")
def test_server_is_linked_although_the_bundle_has_not_changed(tmp_path, host):
    host.on(URL, bundle(identified("a", "Own word")), ETag='"one"')
    import_brands(URL)
    read(
        tmp_path / "1.json",
        identified("b", "Somebody's word"),
        timestamp="2026-12-31T00:00:00Z",
    )
    assert shown() == ["Somebody's word"]
    server = make_server(slug="s", name="S", base_url=R4)
    assert import_brands(URL, server=server).bundle.server == server
    assert shown() == ["Own word"]
    other = make_server(slug="a", name="A", base_url=f"{R4}/other")
    ServerState.objects.update(configuration={"user_access_brand_bundle": URL})
    for again in (other, server):
        import_brands(URL, server=again)
        assert import_brands(URL).bundle.server == again
    assert host.requests[-1].headers["If-None-Match"] == '"one"'


def test_overlong_etag_is_not_kept(host):
    host.on(URL, bundle(organization("a", "A")), ETag='"' + "x" * 600 + '"')
    import_brands(URL)
    assert BrandBundle.objects.get().etag == ""


def test_nothing_but_the_address_is_sent(host):
    host.on(URL, bundle())
    import_brands(URL)
    (request,) = host.requests
    assert "Authorization" not in request.headers
    assert "Cookie" not in request.headers


@pytest.mark.parametrize("status", [204, 304, 401, 404, 500])
def test_other_answers_are_refused(host, status):
    host.on(URL, b"<p>no</p>", status)
    with pytest.raises(BrandError, match=str(status)):
        import_brands(URL)
    assert BrandBundle.objects.count() == 0


def test_redirect_to_https_is_followed(host):
    host.on(URL, b"moved", 302, location="/new.json")
    host.on("https://brands.example.org/new.json", bundle(organization("a", "A")))
    import_brands(URL)
    assert shown() == ["A"]
    assert BrandBundle.objects.get().location == URL


def test_redirect_to_http_is_refused(host):
    host.on(URL, b"", 302, location="http://brands.example.org/new.json")
    with pytest.raises(InsecureURLError):
        import_brands(URL)
    assert len(host.requests) == 1


def test_redirect_to_what_is_no_url_is_refused(host):
    host.on(URL, b"", 302, location="https://[brands/new.json")
    with pytest.raises(BrandError, match="302"):
        import_brands(URL)


def test_redirects_in_circles_end(host):
    host.on(URL, b"", 302, location=URL)
    with pytest.raises(BrandError):
        import_brands(URL)
    assert len(host.requests) == 4


def test_overlong_address_is_refused(host):
    url = URL + "?" + "x" * 1000
    host.on(url, bundle())
    with pytest.raises(BrandError, match="1000"):
        import_brands(url)


def test_host_that_is_down_leaves_what_is_stored(host, monkeypatch):
    host.on(URL, bundle(organization("a", "A")))
    import_brands(URL)
    before = everything()

    def fail(*args, **kwargs):
        raise requests.ConnectionError

    monkeypatch.setattr(host, "send", fail)
    with pytest.raises(ServerUnreachableError):
        import_brands(URL)
    assert everything() == before


# The primary brand


@pytest.mark.compliance("BRAND-03")
@pytest.mark.parametrize(
    ("identifier", "matches"),
    [
        ({"value": "https://www.harbour.example"}, 1),
        ({"system": "urn:ietf:rfc:3986", "value": "https://www.harbour.example"}, 1),
        ({"system": "urn:other", "value": "https://www.harbour.example"}, 0),
        ({"value": "https://elsewhere.example"}, 0),
        ({"value": "shared"}, 2),
    ],
)
def test_brands_with_the_identifier_of_the_server_are_counted(
    host, identifier, matches
):
    server = make_server(
        slug="s",
        name="S",
        base_url=R4,
        configuration={
            "token_endpoint": "https://fhir.example.org/token",
            "user_access_brand_bundle": URL,
            "user_access_brand_identifier": identifier,
        },
    )
    shared = [{"value": "shared"}]
    host.on(
        URL,
        bundle(
            identified("a", "A"),
            organization("b", "B", identifier=shared),
            organization("c", "C", identifier=shared),
        ),
    )
    assert import_brands(URL, server=server).primary_matches == matches


def test_no_identifier_is_not_counted(host):
    host.on(URL, bundle(organization("a", "A")))
    assert import_brands(URL).primary_matches is None


@pytest.mark.compliance("BRAND-11")
def test_licences_of_logos_are_kept_and_told(path):
    licence = "https://a.example/licence"
    result = read(
        path,
        organization("a", "A", logo="https://a.example/a.png", logo_license=licence),
        organization("b", "B", logo="https://a.example/b.png"),
    )
    assert result.licenses == (licence,)
    assert Brand.objects.get(name="A").logo_license == licence


# Size


def import_large(path: Path, entries: int, *, endpoints_each: int) -> int:
    """Import a made bundle; returns the most memory that was in use meanwhile."""
    write_large(path, entries // (1 + endpoints_each), endpoints_each=endpoints_each)
    assert path.stat().st_size > 250 * entries
    tracemalloc.start()
    result = import_brand_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.brands + result.endpoints == entries
    assert result.problems == {}
    return peak


def test_memory_is_bounded_for_4_000_entries(path):
    assert import_large(path, 4_000, endpoints_each=9) < 10 * 1024**2


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("endpoints_each", [1, 9, 99])
def test_memory_for_20_000_entries(path, endpoints_each):
    """The names of entries are held, not their texts and logos."""
    peak = import_large(path, 20_000, endpoints_each=endpoints_each)
    assert peak < 20 * 1024**2


def test_queries_are_not_kept_with_debug(path, settings):
    settings.DEBUG = True
    write_large(path, 1_200)
    import_brand_file(path)
    assert len(connection.queries_log) < 40
    reset_queries()


def test_missing_library_is_named(path, monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "ijson":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    path.write_bytes(bundle())
    with pytest.raises(ImproperlyConfigured, match=r"django-smart\[brands\]"):
        import_brand_file(path)

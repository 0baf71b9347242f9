"""The entries of a bundle: read organizations and endpoints, and check their logos."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

from ...exceptions import BrandError, InsecureURLError
from ...protocol.urls import is_https_url, normalize_base_url, validate_https_url

__all__ = [
    "CATEGORIES",
    "MAX_LOGO_BYTES",
    "MAX_URL_CHARACTERS",
    "Brand",
    "BrandIdentifier",
    "label_place",
    "parse_brand",
    "parse_brand_endpoint",
    "resolve_reference",
    "sanitize_logo_url",
]


#: Limit for an image in a ``data:`` URL; larger ones belong on a server.
MAX_LOGO_BYTES = 32 * 1024
MAX_URL_CHARACTERS = 1000

_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+)((?:;[^,;]*)*),(.*)", re.I | re.S)
_SIGNATURES = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
}
# An <img> does not run scripts; an image with one was not made to be a logo.
_ACTIVE = re.compile(
    rb"<\s*(?:script|foreignobject|iframe|object|embed)\b"
    rb"|<!\s*(?:doctype|entity)|javascript:|\son[a-z]+\s*=",
    re.I,
)


def sanitize_logo_url(url: object) -> str:
    """
    Return *url* if it may be the ``src`` of an ``<img>``, else an empty string.

    Accepts https URLs, and ``data:`` URLs with a PNG, JPEG, GIF, WebP or SVG image of
    at most ``MAX_LOGO_BYTES``, whose bytes match the type and which has no script; it
    is re-encoded as base64.

    Spec: SMART App Launch 2.2, "User-access Brands and Endpoints", ``brandLogo``
    (BRAND-11).
    """
    if not isinstance(url, str):
        return ""
    match = _DATA_URL.fullmatch(url) if url[:5].lower() == "data:" else None
    if match is None:
        is_link = len(url) <= MAX_URL_CHARACTERS and is_https_url(_escape(url))
        return _escape(url) if is_link else ""
    media_type, parameters, payload = match[1].lower(), match[2].lower(), match[3]
    picture = _decode(payload, is_base64=parameters.endswith(";base64"))
    if not 0 < len(picture) <= MAX_LOGO_BYTES or not _is_picture(media_type, picture):
        return ""
    return f"data:{media_type};base64,{base64.b64encode(picture).decode()}"


def _escape(url: str) -> str:
    """Percent-encode what browsers would: spaces and letters beyond ASCII."""
    try:
        return quote(url, safe="!#$%&'()*+,/:;=?@[]~")
    except UnicodeEncodeError:  # an unpaired surrogate
        return ""


def _decode(payload: str, *, is_base64: bool) -> bytes:
    """Return the bytes of a ``data:`` URL; none if they cannot be read."""
    # Twice the largest image, percent-encoded or not, is more than enough to read.
    if len(payload) > 3 * MAX_LOGO_BYTES:
        return b""
    try:
        raw = unquote_to_bytes(payload)
        if not is_base64:
            return raw
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return b""


def _is_picture(media_type: str, picture: bytes) -> bool:
    if media_type == "image/svg+xml":
        try:
            text = picture.decode()
        except UnicodeDecodeError:
            return False
        return "<svg" in text.lower() and not _ACTIVE.search(picture)
    return picture.startswith(_SIGNATURES.get(media_type, ()))


#: Codes of ``Organization.type`` in the specification (BRAND-14).
CATEGORIES = frozenset(
    {
        "prov",
        "ins",
        "laboratory",
        "imaging",
        "pharmacy",
        "health-information-network",
        "health-data-aggregator",
    }
)

_TYPE_SYSTEM = "http://terminology.hl7.org/CodeSystem/organization-type"
_STRUCTURE = "http://hl7.org/fhir/StructureDefinition/"
_URI_SYSTEM = "urn:ietf:rfc:3986"
_REST = "hl7-fhir-rest"
_UNUSABLE = frozenset({"off", "entered-in-error"})
# R4 is 4.0; R4B (4.1, 4.3) is a different version with other resources.
_R4 = re.compile(r"4\.0(\..+)?")
_REFERENCE = re.compile(r"(?:.*/)?([A-Z][A-Za-z]{0,63}/[A-Za-z0-9\-.]{1,64})")
_HISTORY = re.compile(r"/_history/[A-Za-z0-9\-.]{1,64}\Z")

_MAX_NAME = 300
_MAX_ITEMS = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class BrandIdentifier:
    """``Organization.identifier``; ``system`` is empty if there is none."""

    system: str
    value: str

    @property
    def merge_key(self) -> tuple[str, str]:
        """
        A key that is equal for one organization in two bundles (BRAND-06).

        For a website, it is the host without ``www.``, in lower case, and the path.
        """
        if self.system != _URI_SYSTEM:
            return self.system, self.value
        parts = urlsplit(self.value) if is_https_url(self.value) else None
        if parts is None:
            return self.system, self.value
        host = parts.netloc.lower().removeprefix("www.")
        return self.system, f"https://{host}{parts.path.rstrip('/')}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Brand:
    """
    One organization as people know it.

    Attributes:
        logo, logo_license: empty if absent or declined.
        categories: its codes that are in ``CATEGORIES``.
        places: ``city``, ``state``, ``postal_code`` and ``country`` of each, as far as
            people search for it; without those that are empty.
        portals: names of its patient portals.
        endpoints: the name of the portal that names it, or "", by reference as written.
        part_of: reference as written, empty if there is none.
    """

    name: str
    aliases: tuple[str, ...] = ()
    identifiers: tuple[BrandIdentifier, ...] = ()
    categories: tuple[str, ...] = ()
    places: tuple[Mapping[str, str], ...] = ()
    logo: str = ""
    logo_license: str = ""
    portals: tuple[str, ...] = ()
    endpoints: Mapping[str, str] = field(default_factory=dict)
    part_of: str = ""

    @property
    def merge_key(self) -> tuple[str, str] | None:
        """The identifier by which two bundles are merged, or ``None``."""
        ordered = sorted(self.identifiers, key=lambda each: each.system != _URI_SYSTEM)
        return ordered[0].merge_key if ordered else None

    @property
    def search_texts(self) -> Iterator[str]:
        """The words that people can search for."""
        yield self.name
        yield from self.aliases
        yield from self.portals
        for place in self.places:
            yield from place.values()


def parse_brand(resource: Mapping[str, Any]) -> Brand | None:
    """
    Read an ``Organization``; ``None`` if it is not active.

    Invalid or declined values (with a ``data-absent-reason``) count as absent.

    Raises:
        BrandError: it has no name.

    Spec: SMART App Launch 2.2, "User-access Brands and Endpoints" (BRAND-05, BRAND-12).
    """
    if resource.get("active") is False:
        return None
    name = _text(resource.get("name"), _MAX_NAME)
    if not name:
        raise BrandError("An Organization has no name.")
    brand = next(_get_extensions(resource, "organization-brand"), {})
    portals = list(_get_extensions(resource, "organization-portal"))
    return Brand(
        name=name,
        aliases=tuple(_texts(resource.get("alias"), _MAX_NAME)),
        identifiers=tuple(_read_identifiers(resource)),
        categories=tuple(dict.fromkeys(_read_categories(resource))),
        places=tuple(_read_places(resource)),
        logo=sanitize_logo_url(_get_value(brand, "brandLogo")),
        logo_license=_link(_get_value(brand, "brandLogoLicense")),
        portals=tuple(filter(None, map(_read_portal_name, portals))),
        endpoints=_read_endpoints(resource, portals),
        part_of=_read_reference(resource.get("partOf")),
    )


def parse_brand_endpoint(
    resource: Mapping[str, Any], *, insecure_hosts: frozenset[str] = frozenset()
) -> str | None:
    """
    Read an ``Endpoint``; ``None`` if it is inactive or not a FHIR REST API.

    Args:
        insecure_hosts: hosts for which http is accepted.

    Returns:
        The FHIR base URL; empty if the endpoint lists versions, and R4 is not one.

    Raises:
        BrandError: no address usable for a launch.

    Spec: as :func:`parse_brand` (BRAND-10).
    """
    connection = resource.get("connectionType")
    code = connection.get("code") if isinstance(connection, dict) else _REST
    if code != _REST or _text(resource.get("status"), 20) in _UNUSABLE:
        return None
    address = _text(resource.get("address"), MAX_URL_CHARACTERS + 1)
    try:
        validate_https_url(address, insecure_hosts=insecure_hosts, what="address")
        normalize_base_url(address)
    except InsecureURLError as exc:
        raise BrandError(f"An Endpoint is unusable: {exc}") from exc
    if len(address) > MAX_URL_CHARACTERS:
        raise BrandError(
            f"The address of an Endpoint has more than {MAX_URL_CHARACTERS} characters."
        )
    versions = [
        version
        for each in _get_extensions(resource, "endpoint-fhir-version")
        if (version := _text(each.get("valueCode"), 20))
    ]
    return address if not versions or any(map(_R4.fullmatch, versions)) else ""


def resolve_reference(reference: str, *, full_url: str) -> tuple[str, str]:
    """
    Resolve *reference* within the entry at *full_url*.

    Returns:
        The absolute URL to look up among the ``fullUrl``s, and the ``Type/id`` to look
        up if that is not found; each may be empty.

    Spec: FHIR R4, Bundle, "Resolving references in Bundles" (BRAND-07).
    """
    reference = _HISTORY.sub("", reference)
    match = _REFERENCE.fullmatch(reference)
    relative = match[1] if match else ""
    if ":" in reference.partition("/")[0]:
        # Absolute: the Type/id of another server is a different resource.
        return reference, ""
    base = _REFERENCE.fullmatch(full_url)
    if base is None or not relative or reference != relative:
        return "", relative
    try:
        return urljoin(full_url.removesuffix(base[1]), relative), relative
    except ValueError:
        return "", relative


def _get_extensions(
    resource: Mapping[str, Any], name: str
) -> Iterator[Mapping[str, Any]]:
    """Return the extensions with HL7's URL for *name*, in order."""
    for each in _objects(resource.get("extension")):
        if each.get("url") == _STRUCTURE + name:
            yield each


def _get_values(extension: Mapping[str, Any], name: str) -> Iterator[Any]:
    """Return the ``value…`` members of the parts called *name*."""
    for part in _objects(extension.get("extension")):
        if part.get("url") == name:
            for key, value in part.items():
                if key.startswith("value"):
                    yield value


def _get_value(extension: Mapping[str, Any], name: str) -> Any:
    return next(_get_values(extension, name), None)


def _read_portal_name(extension: Mapping[str, Any]) -> str:
    return _text(_get_value(extension, "portalName"), _MAX_NAME)


def _read_endpoints(
    resource: Mapping[str, Any], portals: list[Mapping[str, Any]]
) -> dict[str, str]:
    """Return the first portal that names it, if one does, by reference."""
    endpoints: dict[str, str] = {}
    for portal in portals:
        name = _read_portal_name(portal)
        for reference in _read_references(list(_get_values(portal, "portalEndpoint"))):
            endpoints.setdefault(reference, name)
    for reference in _read_references(resource.get("endpoint")):
        endpoints.setdefault(reference, "")
    return endpoints


def _read_identifiers(resource: Mapping[str, Any]) -> Iterator[BrandIdentifier]:
    for each in _objects(resource.get("identifier")):
        value = _text(each.get("value"), _MAX_NAME)
        if value:
            # The specification itself has a stray space in one place.
            system = _text(each.get("system"), _MAX_NAME).replace(" ", "")
            yield BrandIdentifier(system=system, value=value)


def _read_categories(resource: Mapping[str, Any]) -> Iterator[str]:
    for concept in _objects(resource.get("type")):
        for coding in _objects(concept.get("coding")):
            code = _text(coding.get("code"), 40)
            if coding.get("system") == _TYPE_SYSTEM and code in CATEGORIES:
                yield code


def _read_places(resource: Mapping[str, Any]) -> list[dict[str, str]]:
    places: list[dict[str, str]] = []
    for each in _objects(resource.get("address")):
        members = {
            "city": _text(each.get("city"), 100),
            "state": _text(each.get("state"), 100),
            "postal_code": _text(each.get("postalCode"), 20),
            "country": _text(each.get("country"), 100),
        }
        place = {name: text for name, text in members.items() if text}
        if place and place not in places:
            places.append(place)
    return places


def label_place(place: Mapping[str, str]) -> str:
    """Return city and state of one of a brand's places, or what is available."""
    parts = filter(None, (place.get("city"), place.get("state")))
    return ", ".join(parts) or place.get("postal_code") or place.get("country", "")


def _read_references(values: object) -> Iterator[str]:
    for each in _objects(values):
        if reference := _read_reference(each):
            yield reference


def _read_reference(value: object) -> str:
    reference = value.get("reference") if isinstance(value, dict) else None
    return _text(reference, MAX_URL_CHARACTERS)


def _link(value: object) -> str:
    """Return *value* if it is an https or http link, else an empty string."""
    text = _text(value, MAX_URL_CHARACTERS)
    return text if text.lower().startswith(("https://", "http://")) else ""


def _objects(value: object) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, list) else []
    return [item for item in items[:_MAX_ITEMS] if isinstance(item, dict)]


def _texts(value: object, length: int) -> Iterator[str]:
    items = value if isinstance(value, list) else []
    for item in items[:_MAX_ITEMS]:
        if text := _text(item, length):
            yield text


def _text(value: object, length: int) -> str:
    """Return *value* as one line that every database accepts, cut to *length*."""
    if not isinstance(value, str):
        return ""
    printable = "".join(char if char.isprintable() else " " for char in value)
    return " ".join(printable.split())[:length]

"""Targets of references: at hand, in a Bundle, or read from the server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django_smart.exceptions import BearerBoundaryError, FHIRRequestError
from django_smart.fhir.connection import FHIRConnection
from django_smart.fhir.interactions import build_read
from django_smart.fhir.messages import parse_place
from django_smart.fhir.names import iter_mappings

__all__ = ["resolve"]


def resolve(
    client: FHIRConnection,
    reference: str | Mapping[str, Any],
    *,
    within: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """
    Return the target of a reference.

    Args:
        reference: a ``Reference`` of a resource, or its text: relative
            (``Patient/123``), absolute, with a version (``…/_history/2``), to a
            contained resource (``#org``) or within a Bundle (``urn:uuid:…``).
        within: the resource that contains the reference, its Bundle, or a list of
            resources, such as a search's ``included``; targets in it are not
            requested.

    Raises:
        BearerBoundaryError: the reference leads to another server; nothing was
            sent.
        FHIRRequestError: the reference has no target that can be resolved, or its
            document comes from another server and does not contain the target.
        ForeignPatientError: under ``patient/`` scopes, also for a reference to
            another base URL, unless resources of its type belong to no patient.
    """
    text = _get_reference(reference)
    found = _find_within(text, within, base_url=client.base_url)
    if found is not None:
        return found
    url = client.build_url(text)
    if not client.is_within_boundary(url):
        raise BearerBoundaryError("the reference points to another server")
    resource_type, resource_id, version_id = _parse_target(url)
    interaction = build_read(resource_type, resource_id, version_id=version_id)
    return client.perform_read(interaction, url=url)


def _get_reference(reference: object) -> str:
    """Return the text of a reference or a ``Reference``."""
    text = reference.get("reference") if isinstance(reference, Mapping) else reference
    if not isinstance(text, str) or not text:
        raise FHIRRequestError("The reference has no target that can be resolved.")
    return text


def _parse_target(url: str) -> tuple[str, str, str | None]:
    """Return the resource type, id and version (or ``None``) in *url*."""
    place = parse_place(url)
    if place is None or "?" in url:
        raise FHIRRequestError("The reference does not name a resource with an id.")
    return place[0], place[1], place[2] or None


def _find_within(
    reference: str,
    within: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    base_url: str,
) -> dict[str, Any] | None:
    """
    Look for the target in the given resources and Bundles.

    A relative reference is below *base_url*, unless a Bundle shows that the resource
    with the reference comes from elsewhere.

    Spec: FHIR R4, "References", "Bundle", Resolving references in Bundles.
    """
    resources = [within] if isinstance(within, Mapping) else list(within)
    bundles = [each for each in resources if each.get("resourceType") == "Bundle"]
    sources = [each for each in resources if each.get("resourceType") != "Bundle"]
    if reference.startswith("#"):
        return _find_contained(reference[1:], sources)
    if not isinstance(within, Mapping):
        bundles.append({"entry": [{"resource": each} for each in sources]})
    known: dict[str, list[Mapping[str, Any]]] = {}
    for source in sources:
        known.setdefault(_get_key(source), []).append(source)
    is_elsewhere = False
    for bundle in bundles:
        base = _find_base(bundle, known, base_url)
        is_elsewhere |= base != base_url and bundle.get("type") == "document"
        target, _, version = reference.partition("/_history/")
        if ":" not in target:
            target = f"{base}/{target.removeprefix('/')}"
        matches = [
            resource
            for full_url, resource in _get_entries(bundle)
            if (full_url or f"{base_url}/{_get_key(resource)}") == target
            and version in {"", _get_meta(resource).get("versionId")}
        ]
        if matches:
            # Of several versions, the last one is meant.
            return max(
                matches, key=lambda each: str(_get_meta(each).get("lastUpdated", ""))
            )
    if is_elsewhere and ":" not in reference:
        raise FHIRRequestError(
            "The reference is to a resource of another server, which the document "
            "does not contain."
        )
    if reference.lower().startswith("urn:"):
        raise FHIRRequestError(
            "The reference is to an entry of a Bundle: pass the Bundle as within=."
        )
    return None


def _find_contained(name: str, sources: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a contained resource, or the one that contains it for an empty name."""
    # The same id is something else in each resource.
    targets = [
        each
        for source in sources
        for each in (source, *iter_mappings(source.get("contained")))
        if name == ("" if each is source else each.get("id"))
    ]
    if targets and all(each == targets[0] for each in targets):
        return dict(targets[0])
    raise FHIRRequestError(
        "The reference is to a contained resource: pass the resource that "
        "contains it, and no other with the same contained id, as within=."
    )


def _find_base(
    bundle: Mapping[str, Any],
    known: Mapping[str, Sequence[Mapping[str, Any]]],
    base_url: str,
) -> str:
    """
    Return the base of a relative reference in *bundle*.

    It is that of the resource with the reference, which is one of *known*, or the only
    one of a document of another server; empty if that has several.
    """
    found = set()
    for full_url, resource in _get_entries(bundle):
        # Without a URL, an entry shows no base.
        base, _, id_ = full_url.rpartition(f"/{resource.get('resourceType')}/")
        if base and id_ == resource.get("id", id_):
            if resource in known.get(_get_key(resource), ()):
                return base
            found.add(base)
    if bundle.get("type") != "document" or not found or base_url in found:
        return base_url
    return found.pop() if len(found) == 1 else ""


def _get_entries(bundle: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in iter_mappings(bundle.get("entry")):
        resource = entry.get("resource")
        if isinstance(resource, dict):
            yield str(entry.get("fullUrl", "")), resource


def _get_key(resource: Mapping[str, Any]) -> str:
    return f"{resource.get('resourceType')}/{resource.get('id')}"


def _get_meta(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = resource.get("meta")
    return meta if isinstance(meta, Mapping) else {}

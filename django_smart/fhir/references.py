"""
References and their targets: at the server, in a resource or in a Bundle.

Spec: FHIR R4, "References", "Bundle", Resolving references in Bundles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django_smart.exceptions import FHIRRequestError
from django_smart.fhir.messages import parse_place
from django_smart.fhir.names import iter_mappings

__all__ = ["find_within", "get_reference", "parse_target"]

Within = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def get_reference(reference: object) -> str:
    """
    Return the text of a reference or a ``Reference``.

    Raises:
        FHIRRequestError: it has none, for example with only an identifier.
    """
    text = reference.get("reference") if isinstance(reference, Mapping) else reference
    if not isinstance(text, str) or not text:
        raise FHIRRequestError("The reference has no target that can be resolved.")
    return text


def parse_target(url: str) -> tuple[str, str, str | None]:
    """
    Return the resource type, id and version (or ``None``) in *url*.

    Raises:
        FHIRRequestError: it names no resource.
    """
    place = parse_place(url)
    if place is None or "?" in url:
        raise FHIRRequestError("The reference does not name a resource with an id.")
    return place[0], place[1], place[2] or None


def find_within(
    reference: str, within: Within, *, base_url: str
) -> dict[str, Any] | None:
    """
    Look for the target in the given resources and Bundles.

    Args:
        within: the resource that contains the reference, its Bundle, or a list with
            these and other resources of the server, such as a search's ``included``.
            Only one of them may have a target for a reference with ``#``; the same
            resource may be in the list twice.
        base_url: base of relative references, unless a Bundle in *within* shows where
            the resource with the reference comes from.

    Raises:
        FHIRRequestError: it could only be there, and is not.
    """
    resources = [within] if isinstance(within, Mapping) else list(within)
    bundles = [each for each in resources if each.get("resourceType") == "Bundle"]
    sources = [each for each in resources if each.get("resourceType") != "Bundle"]
    if reference.startswith("#"):
        # The same id is something else in each resource.
        targets = [
            each
            for source in sources
            for each in (source, *iter_mappings(source.get("contained")))
            if reference[1:] == ("" if each is source else each.get("id"))
        ]
        if targets and all(each == targets[0] for each in targets):
            return dict(targets[0])
        raise FHIRRequestError(
            "The reference is to a contained resource: pass the resource that "
            "contains it, and no other with the same contained id, as within=."
        )
    if not isinstance(within, Mapping):
        bundles.append({"entry": [{"resource": each} for each in sources]})
    for bundle in bundles:
        found = _find_entry(reference, bundle, sources, base_url=base_url)
        if found is not None:
            return found
    if reference.lower().startswith("urn:"):
        raise FHIRRequestError(
            "The reference is to an entry of a Bundle: pass the Bundle as within=."
        )
    return None


def _find_entry(
    reference: str,
    bundle: Mapping[str, Any],
    sources: Sequence[Mapping[str, Any]],
    *,
    base_url: str,
) -> dict[str, Any] | None:
    entries = list(_get_entries(bundle))
    base = base_url
    for full_url, resource in entries:
        if any(resource is source or resource == source for source in sources):
            base = _get_base(full_url, resource) or base_url
    target, _, version = reference.partition("/_history/")
    if "://" not in target and not target.lower().startswith("urn:"):
        target = f"{base}/{target.removeprefix('/')}"
    matches = [
        resource
        for full_url, resource in entries
        if (full_url or f"{base_url}/{_get_key(resource)}") == target
        and version in {"", _get_meta(resource).get("versionId")}
    ]
    # Of several versions, the last one is meant.
    return max(
        matches,
        key=lambda each: str(_get_meta(each).get("lastUpdated", "")),
        default=None,
    )


def _get_entries(bundle: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in iter_mappings(bundle.get("entry")):
        resource = entry.get("resource")
        if isinstance(resource, dict):
            yield str(entry.get("fullUrl", "")), resource


def _get_base(full_url: str, resource: Mapping[str, Any]) -> str:
    """Return the FHIR base URL of *resource*, or "" if its URL does not show it."""
    tail = f"/{_get_key(resource)}"
    return full_url.removesuffix(tail) if full_url.endswith(tail) else ""


def _get_key(resource: Mapping[str, Any]) -> str:
    return f"{resource.get('resourceType')}/{resource.get('id')}"


def _get_meta(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = resource.get("meta")
    return meta if isinstance(meta, Mapping) else {}

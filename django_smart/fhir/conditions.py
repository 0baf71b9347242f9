"""
On what condition, and with what answer, a request is meant: headers.

Spec: FHIR R4, "RESTful API", conditional interactions, "Prefer".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from django_smart.exceptions import FHIRRequestError
from django_smart.fhir.messages import validate_id
from django_smart.fhir.parameters import SearchParams, build_search_query

__all__ = ["build_condition", "build_etag", "build_headers"]

_ETAG = re.compile(r'(?:W/)?"[!#-~]*"')
_RETURNS = frozenset({"minimal", "representation", "OperationOutcome"})
_HANDLINGS = frozenset({"strict", "lenient"})


def build_etag(version: str | Mapping[str, Any]) -> str:
    """
    ETag of a version: of its id, of a resource that has one, or an ETag as it is.

    Raises:
        FHIRRequestError: none of these.
    """
    if isinstance(version, Mapping):
        meta = version.get("meta")
        version = meta.get("versionId", "") if isinstance(meta, Mapping) else ""
        if not version:
            raise FHIRRequestError("The resource does not tell its version.")
    if isinstance(version, str) and _ETAG.fullmatch(version):
        return version
    return f'W/"{validate_id(version)}"'


def build_condition(params: SearchParams) -> str:
    query = build_search_query(params, {})
    if not query:
        raise FHIRRequestError("A condition without a parameter matches everything.")
    return query


def build_headers(
    prefer: str = "", if_match: str | Mapping[str, Any] | None = None
) -> dict[str, str]:
    headers = {}
    if prefer in _RETURNS:
        headers["Prefer"] = f"return={prefer}"
    elif prefer in _HANDLINGS:
        headers["Prefer"] = f"handling={prefer}"
    elif prefer:
        names = ", ".join(sorted(_RETURNS | _HANDLINGS))
        raise FHIRRequestError(f"A preference is one of {names}.")
    if if_match is not None:
        headers["If-Match"] = build_etag(if_match)
    return headers

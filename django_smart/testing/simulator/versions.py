"""
Every version of a resource, deletions included.

Nothing is changed in place: a change adds a new version.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from django_smart.testing.simulator.data import (
    Resources,
    build_resources,
    get_first_ids,
)
from django_smart.testing.simulator.errors import FHIRError

if TYPE_CHECKING:
    from django_smart.testing.simulator.ehr import EHRSimulator

__all__ = ["Snapshot", "Version", "Versions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version; ``resource`` is None for a deletion."""

    resource_type: str
    resource_id: str
    version_id: str
    method: str
    at: str
    resource: dict[str, Any] | None

    @property
    def etag(self) -> str:
        return f'W/"{self.version_id}"'


Key = tuple[str, str]
Snapshot = tuple[Resources, dict[Key, list[Version]], int]


class Versions:
    """The resources of one EHR as they are and as they were; use it under its lock."""

    def __init__(self, ehr: EHRSimulator) -> None:
        self._ehr = ehr
        self._data: Resources | None = None
        self._lock = threading.Lock()
        self._changed: dict[Key, list[Version]] = {}
        self.written: list[Version] = []
        """The versions that requests stored, in order."""

    @property
    def data(self) -> Resources:
        """The newest ones; the first are made when somebody asks for them."""
        with self._lock:
            if self._data is None:
                # Any type can be added; those without a resource are empty.
                self._data = defaultdict(dict, build_resources())
            return self._data

    def get_ids(self, resource_type: str) -> Collection[str]:
        """The ids of one type; for a launch alone the resources need not be made."""
        with self._lock:
            if self._data is None:
                return get_first_ids(resource_type)
            return self._data.get(resource_type, {})

    def of(self, resource_type: str, resource_id: str) -> list[Version]:
        """The versions of one resource, the oldest first; empty if there is none."""
        known = self._changed.get((resource_type, resource_id))
        if known is not None:
            return known
        resource = self.data.get(resource_type, {}).get(resource_id)
        return [] if resource is None else [_first(resource)]

    def all(self, resource_type: str | None = None) -> list[Version]:
        """Every version of a type or of all types, the newest first."""
        found = [
            version
            for name, kind in self.data.items()
            if resource_type in {None, name}
            for resource_id in kind
            if (name, resource_id) not in self._changed
            for version in self.of(name, resource_id)
        ]
        for (name, _), versions in self._changed.items():
            if resource_type in {None, name}:
                found += versions
        return sorted(found, key=lambda one: one.at, reverse=True)

    def put(
        self,
        resource_type: str,
        resource_id: str,
        resource: dict[str, Any] | None,
        *,
        method: str,
    ) -> Version:
        """Store the next version; None deletes."""
        versions = [*self.of(resource_type, resource_id)]
        version_id = str(len(versions) + 1)
        moment = datetime.fromtimestamp(self._ehr.clock(), tz=UTC)
        at = moment.isoformat(timespec="milliseconds")
        if resource is not None:
            meta = {**resource.get("meta", {})}
            meta |= {"versionId": version_id, "lastUpdated": at}
            resource = {**resource, "id": resource_id, "meta": meta}
        version = Version(
            resource_type=resource_type,
            resource_id=resource_id,
            version_id=version_id,
            method=method,
            at=at,
            resource=resource,
        )
        self._changed[resource_type, resource_id] = [*versions, version]
        self.written.append(version)
        kind = self.data[resource_type]
        if resource is None:
            kind.pop(resource_id, None)
        else:
            kind[resource_id] = resource
        return version

    def get_current(self, resource_type: str, resource_id: str) -> dict[str, Any]:
        """
        The resource as it is now.

        Raises:
            FHIRError: 404, or 410 after a deletion.
        """
        resource = self.data[resource_type].get(resource_id)
        if resource is not None:
            return resource
        if (resource_type, resource_id) in self._changed:
            raise FHIRError(410, "deleted", "this resource was deleted")
        raise FHIRError(404, "not-found", f"there is no {resource_type}/{resource_id}")

    def take_snapshot(self) -> Snapshot:
        """Return the state that a failed transaction restores."""
        data = {name: dict(kind) for name, kind in self.data.items()}
        return defaultdict(dict, data), dict(self._changed), len(self.written)

    def restore(self, snapshot: Snapshot) -> None:
        """Forget what happened since *snapshot*."""
        self._data, self._changed, number = snapshot
        del self.written[number:]


def _first(resource: dict[str, Any]) -> Version:
    return Version(
        resource_type=resource["resourceType"],
        resource_id=resource["id"],
        version_id=resource["meta"]["versionId"],
        method="POST",
        at=resource["meta"]["lastUpdated"],
        resource=resource,
    )

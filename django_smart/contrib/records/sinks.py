"""Where the resources of a record go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from django_smart.fhir.json import dump_json

from .models import StoredResource, SyncRun, get_resource_key
from .plan import get_meta, get_version

__all__ = ["EncryptedModelSink", "ModelSink", "NDJSONSink", "Sink"]

Resource = dict[str, Any]


class Sink:
    """
    Receives the resources of a record; subclass it.

    A sink in the site's default database needs only :meth:`put` and :meth:`delete`:
    they are called inside the transaction that stores the progress. A sink elsewhere
    also implements :meth:`position` and :meth:`truncate`, so that what it received
    after the last stored progress is removed again.

    Attributes:
        name: distinguishes the progress of this sink from that of others; by default,
            the path of the class.
    """

    name: str = ""

    def get_name(self) -> str:
        """Return :attr:`name`, or the path of the class."""
        return self.name or f"{type(self).__module__}.{type(self).__qualname__}"

    def begin(self, run: SyncRun) -> None:
        """Prepare for *run*; nothing has been sent yet."""

    def put(self, resources: Sequence[Resource]) -> None:
        """Store new and changed resources."""
        raise NotImplementedError

    def delete(self, resource_type: str, ids: Sequence[str]) -> None:
        """Remove resources that the EHR has deleted."""
        raise NotImplementedError

    def complete(self, run: SyncRun) -> None:
        """Take note that *run* has finished."""

    def position(self) -> str:
        """Return where the sink is, after making what it received durable."""
        return ""

    def truncate(self, position: str) -> None:
        """Remove what was received after *position*, which is "" for everything."""

    def forget(self, run: SyncRun) -> None:
        """Delete everything of this record, since the connection has ended."""


class ModelSink(Sink):
    """Keeps a :class:`~.models.StoredResource` for each resource."""

    is_encrypted: ClassVar[bool] = False

    def begin(self, run: SyncRun) -> None:
        self._run = run

    def put(self, resources: Sequence[Resource]) -> None:
        StoredResource.put([self._build(resource) for resource in resources])

    def delete(self, resource_type: str, ids: Sequence[str]) -> None:
        keys = [get_resource_key(self._run, resource_type, id_) for id_ in ids]
        StoredResource.objects.filter(key__in=keys).delete()

    def _build(self, resource: Resource) -> StoredResource:
        text = dump_json(resource).decode()
        return StoredResource(
            run=self._run,
            resource_type=resource["resourceType"],
            resource_id=resource["id"],
            version=get_version(resource),
            seen=self._run.number,
            last_updated=get_meta(resource)["lastUpdated"],
            content="" if self.is_encrypted else text,
            encrypted_content=text if self.is_encrypted else "",
        )


class EncryptedModelSink(ModelSink):
    """The same, encrypted with the keys of ``SMART_ENCRYPTION_KEYS``."""

    is_encrypted = True


class NDJSONSink(Sink):
    """
    Writes one file of newline-delimited JSON for each record.

    A changed resource is appended again, so the last line with an id counts. A deletion
    is a line with a ``Bundle`` of one ``DELETE`` request, as in a bulk export.

    Args:
        directory: exists, and only the site can read it. A file is named after the
            primary key of its run.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)

    def begin(self, run: SyncRun) -> None:
        self._path = self._get_path(run)

    def put(self, resources: Sequence[Resource]) -> None:
        self._write(dump_json(resource) for resource in resources)

    def delete(self, resource_type: str, ids: Sequence[str]) -> None:
        self._write(_build_deletion(f"{resource_type}/{id_}") for id_ in ids)

    def position(self) -> str:
        try:
            return str(self._path.stat().st_size)
        except FileNotFoundError:
            return ""

    def truncate(self, position: str) -> None:
        if self._path.exists():
            os.truncate(self._path, int(position or 0))

    def forget(self, run: SyncRun) -> None:
        self._get_path(run).unlink(missing_ok=True)

    def _get_path(self, run: SyncRun) -> Path:
        return self._directory / f"{run.pk}.ndjson"

    def _write(self, lines: Any) -> None:
        with open(self._path, "ab", opener=_open_privately) as file:
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())


def _open_privately(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _build_deletion(url: str) -> bytes:
    request = {"method": "DELETE", "url": url}
    bundle = {"resourceType": "Bundle", "type": "transaction"}
    return dump_json({**bundle, "entry": [{"request": request}]})

"""
Bulk export: all resources of a server, a group or all patients, line by line.

Spec: HL7 Bulk Data Access 2.0, "Export Operation Request Flow".
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from django_smart.exceptions import (
    FHIRRequestError,
    MalformedFHIRResponseError,
    ResponseTooLargeError,
    ServerTimeoutError,
    ServerUnreachableError,
    TransportError,
)
from django_smart.fhir.messages import parse_resource, raise_for_status
from django_smart.fhir.parameters import build_search_query
from django_smart.protocol.messages import HTTPResponse
from django_smart.transport import ResponseStream

if TYPE_CHECKING:
    from django_smart.fhir.client import FHIRClient

__all__ = ["BulkExport", "ExportedFile", "start_export"]

_SCOPE = re.compile(r"|Patient|Group/[A-Za-z0-9\-.]{1,64}")
_NDJSON = "application/fhir+ndjson"
# Seconds between two questions: when the server names none, doubled each time, and at
# most; and at most when it names them.
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 60.0
_LONGEST_TOLD_WAIT = 3600.0
# Bytes of one resource.
_LONGEST_LINE = 50 * 1024 * 1024
# Connections that may break in a row, before a line more has come.
_TRIES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedFile:
    """
    One file of an export.

    Attributes:
        type: of the resources in it.
        count: of resources, if the server tells.
    """

    type: str
    url: str = field(repr=False)
    count: int | None = None


def start_export(
    client: FHIRClient,
    scope: str = "",
    *,
    types: Sequence[str] = (),
    since: datetime | None = None,
    **parameters: object,
) -> BulkExport:
    """
    Ask the server to begin; see :meth:`FHIRClient.export`.

    Raises:
        FHIRRequestError: not a usable scope or parameter; nothing was sent.
        FHIRStatusError: the server refused.
        MalformedFHIRResponseError: it accepted without telling where to ask.
    """
    if not _SCOPE.fullmatch(scope):
        raise FHIRRequestError('An export is of "", "Patient" or "Group/<id>".')
    path = f"{scope}/$export" if scope else "$export"
    pairs: list[tuple[str, object]] = [("_outputFormat", _NDJSON)]
    if types:
        pairs.append(("_type", ",".join(types)))
    if since is not None:
        pairs.append(("_since", since))
    query = build_search_query(pairs, parameters)
    response = client.request(
        "GET", f"{path}?{query}", headers={"Prefer": "respond-async"}
    )
    if response.status_code >= 400:
        raise_for_status(response, "export")
    status_url = response.headers.get("content-location", "")
    if response.status_code != 202 or not status_url:
        raise MalformedFHIRResponseError(
            f"the export was answered with {response.status_code}, not with 202 and "
            "a Content-Location",
            status_code=response.status_code,
        )
    return BulkExport(client, {"status_url": status_url})


class BulkExport:
    """
    An export on its way: a place to ask, and how far its files were read.

    Iterating waits until the server is ready, and yields the resources one by one.

    Args:
        state: what :attr:`state` gave before; in another process, too.
    """

    def __init__(self, client: FHIRClient, state: Mapping[str, Any]) -> None:
        try:
            self._status_url = client.build_url(str(state["status_url"]))
            self._file = int(state.get("file", 0))
            self._line = int(state.get("line", 0))
        except (KeyError, TypeError, ValueError):
            raise FHIRRequestError("This is no state of an export.") from None
        self._client = client
        self._manifest: dict[str, Any] | None = None
        self._own_wait = _FIRST_WAIT

    def __repr__(self) -> str:
        return f"<BulkExport: file {self._file}, line {self._line}>"

    @property
    def state(self) -> dict[str, Any]:
        """
        Where a further process can go on, as JSON.

        The resource that was yielded last counts as handled when the next one is
        asked for, so none is lost: after a crash some come again.
        """
        return {
            "status_url": self._status_url,
            "file": self._file,
            "line": self._line,
        }

    def poll(self) -> float | None:
        """
        Ask once; return the seconds to wait before asking again, ``None`` if ready.

        Raises:
            FHIRStatusError: the export failed, or is known no more.
            MalformedFHIRResponseError: no usable list of files.
        """
        response = self._client.request(
            "GET", self._status_url, headers={"Accept": "application/json"}
        )
        if response.status_code == 202 or response.status_code in {429, 503}:
            wait = _get_wait(response)
            if wait is None:
                # Without a word of the server, ever more seldom.
                wait = self._own_wait
                self._own_wait = min(wait * 2, _LONGEST_WAIT)
            # Zero would be a loop without a pause.
            return min(max(wait, 0.1), _LONGEST_TOLD_WAIT)
        if response.status_code >= 400:
            raise_for_status(response, "export")
        self._manifest = _parse_manifest(response)
        return None

    def wait(self, *, seconds: float = 24 * 3600.0) -> None:
        """
        Ask again and again, as the server's ``Retry-After`` says, until it is ready.

        Raises:
            ServerTimeoutError: it is not within *seconds*; the state can be kept.
            FHIRStatusError, MalformedFHIRResponseError: as :meth:`poll`.
        """
        deadline = time.monotonic() + seconds
        while (wait := self.poll()) is not None:
            if time.monotonic() + wait > deadline:
                raise ServerTimeoutError(f"the export is not ready within {seconds} s")
            self._client.pause(wait)

    @property
    def files(self) -> list[ExportedFile]:
        """The files with resources, once the server is ready."""
        return self._get_files("output")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        files = self.files
        while self._file < len(files):
            for resource in self._read(files[self._file], skip=self._line):
                yield resource
                self._line += 1
            self._file, self._line = self._file + 1, 0

    def problems(self) -> Iterator[dict[str, Any]]:
        """Yield the ``OperationOutcome`` resources of what could not be exported."""
        for file in self._get_files("error"):
            yield from self._read(file)

    @property
    def transaction_time(self) -> str:
        """Of the data, as text: ``since`` of the next export."""
        return str(self._get_manifest()["transactionTime"])

    def delete(self) -> None:
        """
        Tell the server that the files are not needed any more, or not at all.

        Raises:
            FHIRStatusError: the server refused; that it is known no more is fine.
        """
        response = self._client.request("DELETE", self._status_url)
        if response.status_code >= 400 and response.status_code not in {404, 410}:
            raise_for_status(response, "deletion of an export")

    def _get_manifest(self) -> dict[str, Any]:
        while self._manifest is None:
            self.wait()
        return self._manifest

    def _get_files(self, name: str) -> list[ExportedFile]:
        # An object for each file, so that tens of thousands of them do no harm.
        return [
            ExportedFile(
                type=str(item.get("type", "")),
                url=item["url"],
                count=count if isinstance(count := item.get("count"), int) else None,
            )
            for item in self._get_manifest()[name]
        ]

    def _read(self, file: ExportedFile, *, skip: int = 0) -> Iterator[dict[str, Any]]:
        """Read a file; where the connection breaks, again from the line it was at."""
        done, tries = skip, 0
        while True:
            before = done
            try:
                with self._open(file) as stream:
                    if stream.head.status_code != 200:
                        _raise(stream)
                    lines = _split(stream.chunks)
                    for number, line in enumerate(lines):
                        if number < done:
                            continue
                        yield _parse_line(line, file, number)
                        done += 1
                    if _may_be_cut_off(stream.head, file, done):
                        raise ServerUnreachableError("a file of the export was cut off")
                return
            except ResponseTooLargeError:
                raise
            except TransportError:
                tries = tries + 1 if done == before else 1
                if tries >= _TRIES:
                    raise
                self._client.pause(_FIRST_WAIT)

    def _open(self, file: ExportedFile) -> AbstractContextManager[ResponseStream]:
        headers = {"Accept": _NDJSON}
        if self._get_manifest().get("requiresAccessToken") is False:
            return self._client.stream_anonymous(file.url, headers=headers)
        return self._client.stream(
            "GET",
            file.url,
            headers=headers,
            interaction="export",
            resource_type=file.type,
        )


def _parse_manifest(response: HTTPResponse) -> dict[str, Any]:
    try:
        manifest = json.loads(response.body)
    except ValueError:
        manifest = None
    if response.status_code != 200 or not isinstance(manifest, dict):
        raise MalformedFHIRResponseError(
            "the export brought no list of files",
            status_code=response.status_code,
            media_type=response.media_type,
        )
    for name in ("output", "error"):
        items = manifest.setdefault(name, [])
        if not isinstance(items, list) or not all(
            isinstance(item, dict) and isinstance(item.get("url"), str)
            for item in items
        ):
            raise MalformedFHIRResponseError(
                f'"{name}" of the export is no list of files',
                status_code=response.status_code,
                media_type=response.media_type,
            )
    if not isinstance(manifest.get("transactionTime"), str):
        raise MalformedFHIRResponseError("the export has no transactionTime")
    return manifest


def _get_wait(response: HTTPResponse) -> float | None:
    """Seconds of ``Retry-After``, a number or a date; ``None`` without it."""
    if response.retry_after is not None:
        return response.retry_after
    try:
        moment = parsedate_to_datetime(response.headers.get("retry-after", ""))
    except (OverflowError, ValueError):
        return None
    if moment.tzinfo is None:
        # A date of HTTP is one of Greenwich, also without saying so.
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime.now(UTC)).total_seconds()


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines that are not empty; one at a time in memory, with its chunk."""
    rest: list[bytes] = []
    size = 0
    for chunk in chunks:
        *lines, last = chunk.split(b"\n")
        for line in lines:
            whole = b"".join([*rest, line]).strip()
            rest, size = [], 0
            if whole:
                yield whole
        rest.append(last)
        size += len(last)
        if size > _LONGEST_LINE:
            raise ResponseTooLargeError("a line of the export is larger than allowed")
    whole = b"".join(rest).strip()
    if whole:
        yield whole


def _may_be_cut_off(head: HTTPResponse, file: ExportedFile, lines: int) -> bool:
    """Whether lines are missing, and the end of the connection ended the file."""
    encoding = head.headers.get("transfer-encoding", "").lower()
    is_told = "content-length" in head.headers or "chunked" in encoding
    # Where the end is told, fewer lines are a server's mistake in counting.
    return not is_told and file.count is not None and lines < file.count


def _parse_line(line: bytes, file: ExportedFile, number: int) -> dict[str, Any]:
    resource = parse_resource(line)
    if resource is None:
        raise MalformedFHIRResponseError(
            f"line {number + 1} of a file of {file.type or 'the export'} is no resource"
        )
    return resource


def _raise(stream: ResponseStream) -> None:
    head = stream.head
    if head.status_code >= 400:
        raise_for_status(head, "file of an export")
    raise MalformedFHIRResponseError(
        f"a file of the export was answered with {head.status_code}",
        status_code=head.status_code,
        media_type=head.media_type,
    )

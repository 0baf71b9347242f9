"""
Bulk export: all resources of a server, a group or all patients, line by line.

Spec: HL7 Bulk Data Access 2.0 and 3.0, "Export Operation Request Flow".
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from django_smart.exceptions import (
    FHIRRequestError,
    MalformedFHIRResponseError,
    ResponseTooLargeError,
    ServerTimeoutError,
    ServerUnreachableError,
)
from django_smart.fhir.connection import FHIRConnection
from django_smart.fhir.interactions import FHIR_JSON
from django_smart.fhir.messages import (
    build_malformed_error,
    get_issues,
    is_resource_type,
    parse_resource,
    process_delete_response,
    raise_for_status,
    raise_unless_ok,
    resolve_url,
)
from django_smart.fhir.parameters import build_search_query
from django_smart.protocol.messages import HTTPResponse
from django_smart.protocol.urls import is_same_origin
from django_smart.transport import ResponseStream

__all__ = ["BulkExport", "start_export"]

_SCOPE = re.compile(r"|Patient|Group/[A-Za-z0-9\-.]{1,64}")
_NDJSON = "application/fhir+ndjson"
# Seconds between two polls: initial (then doubled) and maximum without a
# Retry-After, and maximum with one.
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 60.0
_LONGEST_TOLD_WAIT = 3600.0
# Maximum bytes of one resource.
_LONGEST_LINE = 50 * 1024 * 1024
# Connections that may break in a row without a new line.
_TRIES = 3
# Statuses of a server that is not ready, or too busy to say.
_WAITING = frozenset({202, 429, 503})
# Parameters of a kick-off by POST that are not strings.
_VALUE_TYPES = {
    "_since": "valueInstant",
    "_until": "valueInstant",
    "patient": "valueReference",
}
_REFERENCE = re.compile(r"[A-Za-z]+/[A-Za-z0-9\-.]{1,64}")
# Lists of files with what went wrong; the second is that of STU 4.
_PROBLEMS = ("error", "outcome")
_IGNORED = re.compile(
    r"\b(ignor\w*|unsupported|not support\w*|unknown)\b", re.IGNORECASE
)


def start_export(
    client: FHIRConnection,
    scope: str = "",
    *,
    types: Sequence[str] = (),
    since: datetime | None = None,
    **parameters: object,
) -> BulkExport:
    """Send the kick-off request; see :meth:`FHIRClient.export`."""
    if not _SCOPE.fullmatch(scope):
        raise FHIRRequestError(
            'The scope of an export is "", "Patient" or "Group/<id>".'
        )
    if isinstance(types, str):
        raise FHIRRequestError("types must be a list of names, not a string.")
    path = f"{scope}/$export" if scope else "$export"
    pairs: list[tuple[str, object]] = [("_outputFormat", _NDJSON)]
    if types:
        pairs.append(("_type", ",".join(types)))
    if since is not None:
        pairs.append(("_since", since))
    query = build_search_query(pairs, parameters)
    headers = {"Prefer": "respond-async"}
    is_limited = "patient" in parameters
    if is_limited:
        headers["Prefer"] += ", handling=strict"
        headers["Content-Type"] = FHIR_JSON
        body = json.dumps(_build_parameters(query)).encode()
        response = client.request("POST", path, headers=headers, body=body)
    else:
        response = client.request("GET", f"{path}?{query}", headers=headers)
    if response.status_code >= 400:
        raise_for_status(response, "export")
    location = response.headers.get("content-location", "")
    status_url = resolve_url(response.url or f"{client.base_url}/", location)
    # Compared with itself: whether it is an absolute http or https URL.
    is_url = bool(location) and is_same_origin(status_url, status_url)
    if response.status_code != 202 or not is_url:
        raise MalformedFHIRResponseError(
            "the export request must return status 202 and a URL as "
            f"Content-Location; the status was {response.status_code}",
            status_code=response.status_code,
        )
    return BulkExport(client, {"status_url": status_url, "is_limited": is_limited})


def _build_parameters(query: str) -> dict[str, Any]:
    """Return the body of a kick-off by POST for the parameters of a GET."""
    parameters = []
    for name, text in parse_qsl(query):
        kind = _VALUE_TYPES.get(name, "valueString")
        value: object = text
        if kind == "valueReference":
            value = {"reference": text}
        parameters.append({"name": name, kind: value})
    return {"resourceType": "Parameters", "parameter": parameters}


class BulkExport:
    """
    A running export: the URL to poll, and how far its files have been read.

    Iterating waits until the export is ready, and yields the resources one by one.
    Iterating again resumes at :attr:`state`; it does not start at the beginning.

    Args:
        state: an earlier value of :attr:`state`, possibly from another process.
    """

    def __init__(self, client: FHIRConnection, state: Mapping[str, Any]) -> None:
        try:
            self._status_url = client.build_url(str(state["status_url"]))
            self._file = int(state.get("file", 0))
            self._line = int(state.get("line", 0))
            # Whether it is only about the patients that its request named.
            self._is_limited = bool(state.get("is_limited"))
        except (KeyError, TypeError, ValueError):
            raise FHIRRequestError("This is not the state of an export.") from None
        self._client = client
        # Empty until the export is ready.
        self._manifest: dict[str, Any] = {}
        self._own_wait = _FIRST_WAIT

    def __repr__(self) -> str:
        return f"<BulkExport: file {self._file}, line {self._line}>"

    @property
    def state(self) -> dict[str, Any]:
        """
        Position where another process can resume, as JSON.

        A yielded resource counts as processed when the next one is requested, so none
        is lost; after a crash, some are repeated.
        """
        return {
            "status_url": self._status_url,
            "file": self._file,
            "line": self._line,
            "is_limited": self._is_limited,
        }

    def poll(self) -> float | None:
        """
        Poll once; return the seconds to wait, or ``None`` if the export is ready.

        Raises:
            FHIRStatusError: the export failed, or the server no longer knows it.
            MalformedFHIRResponseError: the list of files is invalid.
        """
        if self._manifest:
            return None
        response = self._client.request(
            "GET", self._status_url, headers={"Accept": "application/json"}
        )
        status = response.status_code
        if status not in _WAITING:
            if status >= 400:
                raise_for_status(response, "export")
            self._manifest = _load_manifest(response)
            return None
        wait = response.retry_after
        if wait is None:
            # Without Retry-After, at growing intervals.
            wait = self._own_wait
            self._own_wait = min(wait * 2, _LONGEST_WAIT)
        # Zero would be a busy loop.
        return min(max(wait, 0.1), _LONGEST_TOLD_WAIT)

    def wait(self, *, seconds: float = 24 * 3600.0) -> None:
        """
        Poll at the intervals of the server's ``Retry-After`` until the export is ready.

        Raises:
            ServerTimeoutError: it is not ready after *seconds*; ``state`` can be
                stored.
            FHIRStatusError, MalformedFHIRResponseError, BearerBoundaryError: see
                :meth:`poll`.
        """
        deadline = time.monotonic() + seconds
        while (pause := self.poll()) is not None:
            if time.monotonic() + pause > deadline:
                raise ServerTimeoutError(f"the export is not ready after {seconds} s")
            self._client.sleep(pause)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, file in enumerate(self._walk("output")):
            if number < self._file:
                continue
            for resource in self._read(file, skip=self._line):
                yield resource
                self._line += 1
            self._file, self._line = number + 1, 0

    def deleted(self) -> Iterator[str]:
        """
        References to resources that were deleted since ``since``, such as
        ``Patient/123``.

        Raises:
            MalformedFHIRResponseError: an entry is not a deletion.
        """
        for file in self._walk("deleted"):
            for bundle in self._read(file):
                yield from _read_deletions(bundle, base=f"{self._client.base_url}/")

    def problems(self) -> list[dict[str, Any]]:
        """The ``OperationOutcome`` resources of failed parts of the export."""
        return [
            outcome for file in self._walk(*_PROBLEMS) for outcome in self._read(file)
        ]

    @property
    def transaction_time(self) -> str:
        """The time of the data, a string; pass it as ``since`` to the next export."""
        self.wait()
        return str(self._manifest["transactionTime"])

    def delete(self) -> None:
        """
        Tell the server to delete the files, or to cancel the export.

        Raises:
            FHIRStatusError: the server refused; an unknown export is not an error.
            MalformedFHIRResponseError: for example, a redirect.
        """
        response = self._client.request("DELETE", self._status_url)
        if response.status_code not in {404, 410}:
            process_delete_response(response, what="deletion of an export")

    def _walk(self, *names: str) -> Iterator[dict[str, Any]]:
        """Yield the files of the manifest, once the export is ready."""
        self.wait()
        if self._is_limited and "output" in names:
            self._check_limit()
        for name in names:
            yield from self._manifest[name]

    def _check_limit(self) -> None:
        """Refuse the files if the server ignored which patients were named."""
        for outcome in self.problems():
            issues = get_issues(outcome)
            if any(map(_is_about_patients, issues)):
                raise MalformedFHIRResponseError(
                    'the server ignored "patient" of the export', issues=issues
                )

    def _read(self, file: dict[str, Any], *, skip: int = 0) -> Iterator[dict[str, Any]]:
        """Read a file; after a broken connection, continue at the same line."""
        done, tries = skip, 0
        while True:
            before = done
            try:
                with self._open(file) as stream:
                    raise_unless_ok(stream, what="file of an export")
                    lines = _split(stream.chunks)
                    for number, line in enumerate(lines):
                        if number < done:
                            continue
                        yield _parse_line(line, number)
                        done += 1
                return
            except (ServerTimeoutError, ServerUnreachableError):
                tries = tries + 1 if done == before else 1
                if tries >= _TRIES:
                    raise
                self._client.sleep(_FIRST_WAIT)

    def _open(self, file: dict[str, Any]) -> AbstractContextManager[ResponseStream]:
        headers = {"Accept": _NDJSON}
        if self._manifest.get("requiresAccessToken") is False:
            return self._client.stream_anonymous(file["url"], headers=headers)
        kind = file.get("type")
        return self._client.stream(
            "GET",
            file["url"],
            headers=headers,
            interaction="export",
            # It appears in the audit trail, where a server writes no text.
            resource_type=kind if is_resource_type(kind) else "",
        )


def _is_about_patients(issue: Mapping[str, Any]) -> bool:
    """Whether an issue says that the parameter ``patient`` was ignored."""
    details = issue.get("details")
    text = details.get("text") if isinstance(details, Mapping) else ""
    told = f"{text} {issue.get('diagnostics')} {issue.get('expression')}"
    is_ignored = issue.get("code") == "not-supported" or _IGNORED.search(told)
    return bool(is_ignored and re.search(r"\bpatient\b", told))


def _load_manifest(response: HTTPResponse) -> dict[str, Any]:
    """Return the manifest, in which each kind of files is a list."""
    manifest = None
    if response.status_code == 200:
        with suppress(ValueError, RecursionError):
            manifest = json.loads(response.body)
    if not isinstance(manifest, dict):
        raise build_malformed_error(response, "the export returned no list of files")
    for name in ("output", "deleted", *_PROBLEMS, "link"):
        if manifest.get(name) is None:
            # Absent when empty; null is what some servers write.
            manifest[name] = []
        items = manifest[name]
        if not isinstance(items, list) or not all(
            isinstance(item, dict) and isinstance(item.get("url"), str)
            for item in items
        ):
            raise build_malformed_error(
                response, f'"{name}" of the export is not a list of files'
            )
    if not isinstance(manifest.get("transactionTime"), str):
        raise build_malformed_error(response, "the export has no transactionTime")
    if any(link.get("relation") == "next" for link in manifest["link"]):
        raise build_malformed_error(
            response, "the export has partial manifests, which are not supported"
        )
    return manifest


def _read_deletions(bundle: dict[str, Any], *, base: str) -> Iterator[str]:
    entries = bundle.get("entry")
    for entry in entries if isinstance(entries, list) else [None]:
        request = entry.get("request") if isinstance(entry, dict) else None
        request = request if isinstance(request, dict) else {}
        reference = str(request.get("url")).removeprefix(base)
        if request.get("method") != "DELETE" or not _REFERENCE.fullmatch(reference):
            raise MalformedFHIRResponseError(
                "a deletion in the export does not name what was deleted"
            )
        yield reference


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield non-empty lines, with only one chunk in memory."""
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
            raise ResponseTooLargeError("a line of the export is larger than the limit")
    whole = b"".join(rest).strip()
    if whole:
        yield whole


def _parse_line(line: bytes, number: int) -> dict[str, Any]:
    resource = parse_resource(line)
    if resource is None:
        raise MalformedFHIRResponseError(
            f"line {number + 1} of a file of the export is not a resource"
        )
    return resource

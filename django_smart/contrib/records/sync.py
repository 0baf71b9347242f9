"""One run: from the first search to the last deletion."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from django.db import router, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from django_smart.clients import build_fhir_client
from django_smart.exceptions import (
    FHIRError,
    FHIRForbiddenError,
    FHIRNotFoundError,
    FHIRStatusError,
    FHIRUnauthorizedError,
    FHIRUnavailableError,
    ForeignPatientError,
    InsufficientScopeError,
    NoGrantError,
    RecordBusyError,
    ResponseTooLargeError,
    SMARTError,
)
from django_smart.fhir.compartment import (
    Record,
    find_missing_scope,
    find_patient_parameter,
)
from django_smart.fhir.interactions import build_search
from django_smart.fhir.messages import raise_for_status
from django_smart.fhir.paging import SearchPage, SearchStream
from django_smart.fhir.parameters import build_search_query
from django_smart.fhir.record_check import record_check
from django_smart.models import ServerState, TokenGrant
from django_smart.models.clock import DatabaseNow
from django_smart.protocol.messages import HTTPResponse
from django_smart.protocol.scopes import ScopeSet

from .models import (
    ResourceRow,
    StoredResource,
    SyncedResource,
    SyncedType,
    SyncRun,
    get_resource_key,
)
from .plan import (
    find_references,
    get_categories,
    get_meta,
    get_version,
    is_id,
    plan_searches,
)
from .signals import record_synced
from .sinks import ModelSink, Sink

__all__ = ["Sync"]

logger = logging.getLogger(__name__)

# How often everything is read again, to find deletions.
_FULL_EVERY = timedelta(days=7)
# A search may list a change later than its time says.
_OVERLAP = timedelta(minutes=5)
# Seconds that one request waits for a busy EHR; and each time at least, so that this
# ends, or if the EHR does not say how long.
_MAX_WAIT, _MIN_WAIT, _WAIT = 60.0, 0.5, 5.0
_BUSY = frozenset({429, 503})
_PAGE_SIZE = 100

Resource = dict[str, Any]
_State = SyncedType.State
_T = TypeVar("_T")
_Row = TypeVar("_Row", bound=ResourceRow)


class _PauseError(Exception):
    """The run ends here, and continues after *seconds*, or when it is asked to."""

    def __init__(self, code: str, seconds: float = 0.0) -> None:
        super().__init__(code)
        self.code = code
        self.seconds = seconds


class Sync:
    """Reads one record into one sink; see :func:`django_smart.contrib.records`."""

    def __init__(
        self,
        grant: TokenGrant,
        sink: Sink,
        *,
        types: Iterable[str] | None = None,
        attachments: bool = False,
        on_progress: Callable[[SyncRun, int], None] | None = None,
    ) -> None:
        """*on_progress* gets the run and how many resources were delivered."""
        if not grant.patient_id or grant.user_id is None:
            raise ValueError("sync_record() requires a grant of a user for a patient.")
        if TokenGrant.objects.find_usable(grant.pk) is None:
            raise NoGrantError("The grant has ended, or its user is deactivated.")
        # What comes is checked here, so that one resource does not stop the others.
        self._client = build_fhir_client(grant, keeps_to_record=False)
        self._record = Record(
            patient_id=grant.patient_id,
            base_url=self._client.base_url,
            scopes=ScopeSet(),
        )
        self._grant = grant
        self._sink = sink
        self._types = None if types is None else list(types)
        self._attachments = attachments
        self._on_progress = on_progress
        self._page_size = _PAGE_SIZE
        self._run = SyncRun.get_for(grant, sink.get_name())
        # Which rows have the versions that the sink has.
        self._model: type[StoredResource | SyncedResource] = (
            StoredResource if isinstance(sink, ModelSink) else SyncedResource
        )
        self._owner = str(uuid.uuid4())
        self._pauses = ServerState.objects.filter(
            Q(server__paused=True) | Q(paused_until__gt=DatabaseNow()),
            server_id=self._run.server_id,
        )

    def run(self) -> SyncRun:
        """Read until everything is read, or the EHR has to be left alone."""
        if not SyncRun.objects.take(self._run.pk, self._owner):
            raise RecordBusyError("Another process reads this record.")
        error, seconds = "", 0.0
        try:
            self._begin()
            self._read_all()
            self._finish()
        except _PauseError as exc:
            error, seconds = exc.code, exc.seconds
        except SMARTError as exc:
            error = exc.code
        except Exception:
            # The sink's or the database's.
            error = "internal_error"
            raise
        finally:
            SyncRun.objects.release(self._run, self._owner, error, seconds)
        if error:
            logger.warning("Run %s waits (%s)", self._run.pk, error)
        else:
            self._sink.complete(self._run)
            record_synced.send(sender=SyncRun, run=self._run, grant=self._grant)
        return self._run

    # The run

    def _begin(self) -> None:
        run = self._run
        run.refresh_from_db()
        self._sink.begin(run)
        # While the run is this process's: the next one may have written meanwhile.
        with self._storing():
            self._sink.truncate(run.position)
        began, ended = run.started_at, run.finished_at
        if began and (ended is None or ended < began):
            return  # It continues.
        now = timezone.now()
        run.number += 1
        run.is_full = run.full_at is None or run.full_at <= now - _FULL_EVERY
        run.started_at = now
        statement: dict[str, Any] = {}
        with suppress(FHIRError):
            statement = self._ask(self._client.capabilities)
        with self._storing():
            self._plan(statement)
            run.save(update_fields=["number", "is_full", "started_at"])

    def _plan(self, statement: Mapping[str, Any]) -> None:
        """Make a row for each search, and let each begin anew."""
        rows = self._run.types
        rows.update(state=_State.WAITING, reason="", next_url="", foreign_count=0)
        searches = plan_searches(self._grant.scopes, statement, self._types)
        kinds = {kind for kind, _query in searches}
        missing = set(searches)
        for row in rows.all():
            kind, query = row.resource_type, row.query
            is_category = kind in kinds and query in get_categories(kind)
            if not is_category and (kind, query) not in missing:
                row.delete()
            missing.discard((kind, query))
        self._add_searches(pair for pair in searches if pair in missing)

    def _add_searches(self, searches: Iterable[tuple[str, str]]) -> None:
        SyncedType.objects.bulk_create(
            [
                SyncedType(run=self._run, resource_type=kind, query=query)
                for kind, query in searches
            ],
            ignore_conflicts=True,
        )

    def _finish(self) -> None:
        run = self._run
        with self._storing():
            run.finished_at, run.is_finished = timezone.now(), True
            if run.is_full:
                run.full_at = run.started_at
            run.save(update_fields=["finished_at", "is_finished", "full_at"])

    def _read_all(self) -> None:
        waiting = self._run.types.filter(state=_State.WAITING).order_by("pk")
        # One after the other, since a refused search adds those by category.
        while row := waiting.first():
            self._read_type(row)
        unread = SyncedResource.objects.filter(
            run=self._run, seen__lt=self._run.number, version=""
        )
        for reference in _iter_rows(unread):
            self._read_referenced(reference)
        if self._run.is_full:
            unlisted = self._model.objects.filter(
                run=self._run,
                seen__lt=self._run.number,
                resource_type__in=self._run.complete,
            ).only("resource_type", "resource_id", "version", "seen")
            for resource in _iter_rows(unlisted):
                self._read_unlisted(resource)

    # Searches

    def _read_type(self, row: SyncedType) -> None:
        try:
            if row.resource_type == "Patient":
                self._store(row, [self._read("Patient", self._grant.patient_id)])
                self._end_type(row, _State.COMPLETE)
            elif self._search(row):
                self._end_type(row, _State.COMPLETE)
            else:
                self._end_type(row, _State.PARTIAL, "incomplete")
        except (InsufficientScopeError, FHIRForbiddenError) as exc:
            self._end_type(row, _State.REFUSED, exc.code)
        except ResponseTooLargeError as exc:
            self._ask_for_less(row, exc)
        except FHIRStatusError as exc:
            if isinstance(exc, FHIRUnavailableError):
                self._end_type(row, _State.PARTIAL, exc.code)
            else:
                self._ask_differently(row, exc)
        except FHIRError as exc:
            self._end_type(row, _State.PARTIAL, exc.code)

    def _search(self, row: SyncedType) -> bool:
        """Return whether the EHR has sent as many resources as it says it has."""
        if not row.next_url:
            row.started_at, row.newest = timezone.now(), ""
            row.total = row.received = 0
        for page in self._iter_pages(row):
            row.next_url = page.next_url or ""
            row.total = max(row.total, page.total or 0)
            row.received += len(page.new)
            self._store(row, page.resources)
            del page
        if row.received < row.total:
            # The pages have shifted, for example.
            return False
        row.since = self._find_since(row) or row.since
        return True

    def _iter_pages(self, row: SyncedType) -> Iterator[SearchPage]:
        client, kind = self._client, row.resource_type
        parameters = [(find_patient_parameter(kind), self._grant.patient_id)]
        if row.query:
            name, _, value = row.query.partition("=")
            parameters.append((name, value))
        if row.since and not self._run.is_full:
            parameters.append(("_lastUpdated", f"ge{row.since}"))
        parameters.append(("_count", str(self._page_size)))
        search = build_search(kind, build_search_query(parameters, {}))

        def send(url: str) -> HTTPResponse:
            response = client.perform(search, url=url)
            if response.status_code >= 400:
                raise_for_status(response, f"search of {kind}")
            return response

        return SearchStream(
            lambda url: self._ask(partial(send, url)),
            url=row.next_url or client.build_url(search.path),
            resource_type=kind,
        ).pages()

    def _ask_for_less(self, row: SyncedType, error: ResponseTooLargeError) -> None:
        if self._page_size == 1:
            self._end_type(row, _State.PARTIAL, error.code)
            return
        self._page_size //= 10
        row.next_url = ""
        self._save(row)

    def _ask_differently(self, row: SyncedType, error: FHIRStatusError) -> None:
        """Search again, if the EHR refused how it was asked."""
        if row.next_url:
            # The link has run out.
            row.next_url = ""
            self._save(row)
        elif row.since and not self._run.is_full:
            # Perhaps it does not know _lastUpdated.
            row.since = ""
            self._save(row)
        else:
            self._end_type(row, _State.REFUSED, error.code)
            if not row.query and not isinstance(error, FHIRNotFoundError):
                kind = row.resource_type
                self._add_searches((kind, query) for query in get_categories(kind))

    def _end_type(self, row: SyncedType, state: str, reason: str = "") -> None:
        row.state, row.reason, row.next_url = state, reason, ""
        self._save(row)

    def _save(self, row: SyncedType) -> None:
        with self._storing():
            row.save()

    def _find_since(self, row: SyncedType) -> str:
        """
        Return the time from which the next run asks, by the clock of the EHR.

        A resource that changed while the pages were read may have been missed, so their
        time is subtracted; whatever comes twice is compared.
        """
        newest = _parse_instant(row.newest)
        if newest is None:
            return ""
        taken = timezone.now() - row.started_at if row.started_at else timedelta()
        with suppress(OverflowError):
            # Some servers write the year 1 if they know no time.
            return (newest - taken - _OVERLAP).isoformat(timespec="seconds")
        return ""

    # What others refer to, and what is gone

    def _read_referenced(self, row: SyncedResource) -> None:
        kind = row.resource_type
        if not find_missing_scope(self._grant.scopes, "read", kind):
            with suppress(FHIRError, ResponseTooLargeError):
                resource = self._read(kind, row.resource_id)
                if self._store(None, [resource]):
                    row.version = get_version(resource)
        self._mark_seen(row)

    def _read_unlisted(self, row: ResourceRow) -> None:
        """
        Read a resource that no search listed; deliver its end only if it is gone.

        The pages may have shifted, or its category may have vanished.
        """
        try:
            resource = self._read(row.resource_type, row.resource_id)
        except FHIRNotFoundError:
            self._delete(row)
        except (FHIRError, ResponseTooLargeError):
            self._mark_seen(row)
        else:
            if not self._store(None, [resource]):
                self._delete(row)

    def _delete(self, row: ResourceRow) -> None:
        with self._storing():
            self._sink.delete(row.resource_type, [row.resource_id])
            row.delete()

    def _mark_seen(self, row: ResourceRow) -> None:
        row.seen = self._run.number
        with self._storing():
            row.save(update_fields=["version", "seen"])

    # Requests

    def _read(self, resource_type: str, resource_id: str) -> Resource:
        return self._ask(partial(self._client.read, resource_type, resource_id))

    def _ask(self, send: Callable[[], _T]) -> _T:
        """Send a request, after waiting if the EHR is busy, unless it is left alone."""
        waited = 0.0
        while True:
            self._check_pause()
            try:
                return send()
            except FHIRUnauthorizedError as exc:
                raise _PauseError(exc.code) from None
            except FHIRUnavailableError as exc:
                if exc.status_code not in _BUSY:
                    raise
                asked = _WAIT if exc.retry_after is None else exc.retry_after
                wait = max(asked, _MIN_WAIT)
                waited += wait
                if waited > _MAX_WAIT:
                    raise _PauseError(exc.code, wait) from None
                time.sleep(wait)

    def _check_pause(self) -> None:
        if self._pauses.exists():
            raise _PauseError("server_paused")

    # Storing

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """
        A transaction with the sink and the progress, while the run is this process's.

        Its UPDATE locks the row, so no other process takes the run before it ends.
        """
        with transaction.atomic(using=router.db_for_write(SyncRun)):
            if not SyncRun.objects.hold(self._run.pk, self._owner):
                raise _PauseError(RecordBusyError.code)
            yield
            position = self._sink.position()
            if position != self._run.position:
                self._run.position = position
                self._run.save(update_fields=["position"])

    def _store(self, row: SyncedType | None, resources: Sequence[Resource]) -> int:
        """
        Deliver what is new, and note it and the progress in the same transaction.

        Returns:
            How many of *resources* belong to the patient.
        """
        kept = []
        for resource in resources:
            if self._is_of_patient(resource):
                kept.append(resource)
            elif row is not None:
                row.foreign_count += 1
        with self._storing():
            changed = self._compare(kept)
            if changed:
                self._put(changed)
                self._note_references(changed)
            if row is not None:
                row.newest = _find_newest([row.newest, *map(_get_time, kept)])
                row.save()
        if self._on_progress is not None:
            self._on_progress(self._run, len(changed))
        return len(kept)

    def _is_of_patient(self, resource: Resource) -> bool:
        try:
            record_check(resource, self._record, "r")
        except ForeignPatientError:
            return False
        return is_id(resource.get("id"))

    def _compare(self, resources: Sequence[Resource]) -> list[Resource]:
        """Return those that the sink lacks, and note that the others were met."""
        contents: dict[str | None, Resource] = {
            get_resource_key(self._run, one["resourceType"], one["id"]): one
            for one in resources
        }
        known = self._model.objects.filter(key__in=contents)
        same = [
            key
            for key, version in known.values_list("key", "version")
            if version == get_version(contents[key])
        ]
        self._model.objects.filter(key__in=same).update(seen=self._run.number)
        for key in same:
            del contents[key]
        return list(contents.values())

    def _put(self, resources: Sequence[Resource]) -> None:
        self._sink.put(resources)
        if self._model is SyncedResource:
            SyncedResource.put(
                [
                    SyncedResource(
                        run=self._run,
                        resource_type=resource["resourceType"],
                        resource_id=resource["id"],
                        version=get_version(resource),
                        seen=self._run.number,
                    )
                    for resource in resources
                ]
            )

    def _note_references(self, resources: Sequence[Resource]) -> None:
        """Remember what is to be read once, because these refer to it."""
        names = find_references(
            resources, self._client.base_url, attachments=self._attachments
        )
        keys: dict[str | None, tuple[str, str]] = {
            get_resource_key(self._run, *name): name for name in names
        }
        known = SyncedResource.objects.filter(key__in=keys)
        for key in known.values_list("key", flat=True):
            del keys[key]
        SyncedResource.objects.bulk_create(
            SyncedResource(run=self._run, resource_type=kind, resource_id=id_)
            for kind, id_ in keys.values()
        )


def _iter_rows(rows: QuerySet[_Row]) -> Iterator[_Row]:
    """Yield rows one at a time, because processing a row may add more."""
    last = 0
    while batch := list(rows.filter(pk__gt=last).order_by("pk")[:_PAGE_SIZE]):
        # A row that was deleted has no key.
        last = batch[-1].pk
        yield from batch


def _get_time(resource: Resource) -> str:
    return get_meta(resource)["lastUpdated"]


def _find_newest(texts: Iterable[str]) -> str:
    """Return the latest time, as the EHR wrote it; "" if none can be read."""
    moments = {moment: text for text in texts if (moment := _parse_instant(text))}
    return moments[max(moments)] if moments else ""


def _parse_instant(text: str) -> datetime | None:
    with suppress(ValueError):
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else None
    return None

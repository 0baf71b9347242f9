"""
The open charts of a browser, for the user to choose from instead of guessing.

Each name is read with the grant of its own launch, so it can be missing but never
belong to another chart.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from django.db import connections
from django.http import HttpRequest
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme

from ..clients import build_fhir_client
from ..conf import conf
from ..exceptions import ContextChangedError
from ..fhir.dates import parse_date
from ..fhir.names import get_name
from ..grants.lease import can_store_tokens
from ..models import Launch, TokenGrant
from ..servers.http import EHRTransport
from .browser import get_browser
from .prefix import build_launch_url
from .request_state import get_user

__all__ = ["OpenChart", "can_be_used", "fetch_at_once", "get_open_charts"]

logger = logging.getLogger(__name__)

# How long a user waits for names, in seconds, and how many are fetched at once.
_PATIENCE = 5.0
_AT_ONCE = 8

# The name and, if it is known to the day, the date of birth.
_Person = tuple[str, date | None]
_Key = TypeVar("_Key")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class OpenChart:
    """
    One launch to choose, as the page shows it.

    ``patient_name`` is empty, and ``birth_date`` is ``None``, if they are not known.
    """

    url: str
    patient_name: str
    birth_date: date | None
    server_name: str
    kind: str
    opened_at: datetime
    is_from_today: bool
    connection: tuple[Any, ...] | None


def get_open_charts(request: HttpRequest) -> list[OpenChart]:
    """
    Return the launches that *request*'s browser and user can continue, newest first.
    """
    browser = get_browser(request)
    # Without a launch prefix, no URL leads to one of several launches.
    if not browser.digests or not conf.SMART_LAUNCH_PREFIX:
        return []
    launches = list(
        Launch.objects.with_related()
        .of_browser(browser.digests)
        .live(timezone.now())
        .filter(user=get_user(request))
    )
    # No one sees the response to a script's request, so nothing is fetched for it.
    is_seen = request.headers.get("Sec-Fetch-Dest", "") != "empty"
    people = _fetch_people(launches) if is_seen else {}
    return [
        _describe(request, launch, people.get(launch.pk, ("", None)))
        for launch in launches
        if launch.status == Launch.Status.OPEN
    ]


def _describe(request: HttpRequest, launch: Launch, person: _Person) -> OpenChart:
    # Launches in this list are complete, so the time is set.
    opened_at = launch.completed_at or launch.created_at
    if launch.grant is not None:
        launch.grant.registration = launch.registration
    today = timezone.localdate()
    return OpenChart(
        url=build_launch_url(launch, _get_path(request)),
        patient_name=person[0],
        birth_date=person[1],
        server_name=launch.registration.server.name,
        kind=launch.kind,
        opened_at=opened_at,
        is_from_today=timezone.localdate(opened_at) == today,
        connection=launch.grant.connection if launch.grant else None,
    )


def _get_path(request: HttpRequest) -> str:
    """
    Return the page to continue with, if any; submitted form data is not sent again.
    """
    if request.method in {"GET", "HEAD"}:
        return request.get_full_path()
    referer = request.headers.get("Referer", "")
    if url_has_allowed_host_and_scheme(
        referer, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    ):
        parts = urlsplit(referer)
        return parts._replace(scheme="", netloc="", fragment="").geturl()
    return ""


def _fetch_people(launches: list[Launch]) -> dict[int, _Person]:
    """Return the patients of the launches; those not read in time are omitted."""
    calls: dict[Launch, Callable[[float], _Person]] = {}
    for launch in launches:
        grant = launch.grant
        if grant is None or not grant.patient_id or not can_be_used(grant):
            continue
        grant.registration = launch.registration
        calls[launch] = partial(_fetch_person, launch, grant)
    people = {}
    for launch, future in fetch_at_once(calls).items():
        error = future.exception()
        if isinstance(error, ContextChangedError):
            launch.status = Launch.Status.ENDED
        if error is not None:
            code = getattr(error, "code", type(error).__name__)
            logger.info(
                "Launch %s is shown without a patient name (%s)", launch.pk, code
            )
        else:
            people[launch.pk] = future.result()
    return people


def fetch_at_once(
    calls: Mapping[_Key, Callable[[float], _Result]],
) -> dict[_Key, Future[_Result]]:
    """
    Run the calls in threads, each with the deadline of all.

    Returns:
        Those that have ended by then; a running one ends by the same deadline.
    """
    deadline = time.monotonic() + _PATIENCE
    executor = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="django_smart-names")
    futures = {
        executor.submit(_run, call, deadline): key for key, call in calls.items()
    }
    try:
        done, _ = wait(futures, timeout=_PATIENCE)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
    return {futures[future]: future for future in done}


def _run(call: Callable[[float], _Result], deadline: float) -> _Result:
    try:
        return call(deadline)
    finally:
        # Connections that a refresh or signal receiver opened in this thread.
        connections.close_all()


def can_be_used(grant: TokenGrant) -> bool:
    """Return whether *grant*'s token can be sent without a new one, or from threads."""
    # On SQLite, a refresh in another thread would wait for this transaction.
    return not grant.is_stale(timezone.now()) or can_store_tokens()


def _fetch_person(launch: Launch, grant: TokenGrant, deadline: float) -> _Person:
    transport = EHRTransport(grant.registration.server, deadline=deadline)
    fhir = build_fhir_client(grant, launch=launch, transport=transport)
    patient = fhir.read("Patient", grant.patient_id)
    name = get_name(patient, today=timezone.localdate())
    born = parse_date(patient.get("birthDate"))
    is_known = bool(name) and born is not None and born.is_day
    return name, born.first_day if born is not None and is_known else None

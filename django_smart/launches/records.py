"""
Records that patients have connected, each of which opens like a chart.

A patient who comes back signed in opens a record without contacting the EHR: a launch
of kind *connection* uses the grant that is there. Its end does not end the grant.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from functools import partial
from typing import Any

from django.http import HttpRequest
from django.utils import timezone

from ..clients import fetch_patient_name
from ..fields import digest
from ..grants.ending import end_idlest_launches
from ..models import Launch, TokenGrant
from ..servers.http import EHRTransport
from ..signals import launch_completed
from .browser import forget_ended, get_browser
from .open_charts import can_be_used, fetch_at_once

__all__ = [
    "find_newest",
    "find_records",
    "is_navigation",
    "open_record",
    "read_names",
]


def find_records(user: Any) -> list[TokenGrant]:
    """
    Return what *user*, a patient, has connected and can open: the newest grant of each.

    One that is not active is of a connection that the EHR has ended.  Never what a
    clinician has opened from a chart.
    """
    if user is None:
        return []
    grants = (
        TokenGrant.objects.filter(
            user_id=user.pk,
            registration__is_active=True,
            registration__server__is_active=True,
        )
        .offline()
        .connected(timezone.now())
        .select_related("registration__server", "identity", "user")
        .order_by("pk")
    )
    return list(find_newest(each for each in grants if each.is_of_patient).values())


def find_newest(grants: Iterable[TokenGrant]) -> dict[tuple[Any, ...], TokenGrant]:
    """
    Return the newest of *grants* for each connection, if possible an active one.

    Args:
        grants: the oldest first, which is the order of the connections.
    """
    newest: dict[tuple[Any, ...], TokenGrant] = {}
    for grant in grants:
        known = newest.get(grant.connection)
        is_active = grant.status == TokenGrant.Status.ACTIVE
        if known is None or is_active or known.status != TokenGrant.Status.ACTIVE:
            newest[grant.connection] = grant
    return newest


def read_names(grants: Iterable[TokenGrant]) -> None:
    """Read and store the names of patients that no page has shown yet, all at once."""
    unread = {
        each.pk: each
        for each in grants
        if each.status == TokenGrant.Status.ACTIVE
        and each.may_read_name
        and not each.patient_name
        and can_be_used(each)
    }
    names = fetch_at_once({pk: partial(_fetch, each) for pk, each in unread.items()})
    for pk, future in names.items():
        if future.exception() is None:
            TokenGrant.objects.note_patient_name(unread[pk], future.result())


def _fetch(grant: TokenGrant, deadline: float) -> str:
    transport = EHRTransport(grant.registration.server, deadline=deadline)
    return fetch_patient_name(grant, transport=transport)


def is_navigation(request: HttpRequest) -> bool:
    """Whether somebody goes to the page, rather than a script, a form or a frame."""
    if request.method != "GET" or "Sec-Purpose" in request.headers:
        return False
    # Browsers without these headers say what they accept.
    where = request.headers.get("Sec-Fetch-Dest")
    if where is None:
        return "text/html" in request.headers.get("Accept", "")
    return where == "document"


def open_record(request: HttpRequest, grant: TokenGrant) -> Launch:
    """
    Return a launch of *grant* in this browser: the one that is open, or a new one.

    Sends ``launch_completed`` for a new one.
    """
    browser, now = get_browser(request), timezone.now()
    opened = Launch.objects.with_related().of_browser(browser.digests).live(now)
    launch = opened.filter(user=grant.user, grant=grant).first()
    if launch is not None:
        return launch
    registration, identity = grant.registration, grant.identity
    launch = Launch(
        registration=registration,
        kind=Launch.Kind.CONNECTION,
        intent=Launch.Intent.CONNECT,
        status=Launch.Status.OPEN,
        user_id=grant.user_id,
        identity=identity,
        grant=grant,
        # No authorization request was sent, so nothing has these values.
        state_digest=digest(secrets.token_urlsafe(32)),
        scope_asked=grant.scope_asked,
        context={"patient": grant.patient_id} if grant.patient_id else {},
        fhir_user=identity.fhir_user if identity is not None else "",
        expires_at=now,
        completed_at=now,
        last_used_at=now,
    )
    browser.start(launch)
    launch.save()
    end_idlest_launches(launch, browser.digests, now=now)
    forget_ended(browser)
    browser.note_open(launch)
    launch_completed.send(
        sender=Launch,
        launch=launch,
        request=request,
        missing_scope=launch.missing_scope,
    )
    return launch

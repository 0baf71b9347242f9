"""
Read what patients have connected: all of it first, then what changed.

``sync_records`` is queued when a person connects, and ``sync_all_records`` by beat.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from celery import shared_task
from django.db import transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone
from kombu.exceptions import OperationalError

from django_smart.clients import fhir_client_for
from django_smart.exceptions import SMARTError
from django_smart.fhir.client import FHIRClient
from django_smart.fhir.dates import parse_date
from django_smart.models import Launch, TokenGrant
from example_project.records.models import Copy, Progress

__all__ = ["on_connected", "on_disconnected", "sync_all_records", "sync_records"]

logger = logging.getLogger(__name__)

RESOURCE_TYPES = ("Observation", "Condition")
# A search does not say what was deleted: only reading everything does.
FILL_EVERY = timedelta(days=7)


@shared_task
def sync_all_records() -> None:
    """Delete orphaned copies, and queue a task for each lasting connection."""
    _delete_orphans()
    grants = TokenGrant.objects.filter(
        status=TokenGrant.Status.ACTIVE, is_offline=True, user__isnull=False
    ).exclude(patient_id="")
    for grant_id in grants.values_list("pk", flat=True):
        sync_records.delay(grant_id)


@shared_task
def sync_records(grant_id: int) -> None:
    """Bring the copies of one connection up to date."""
    grant = TokenGrant.objects.select_related("registration__server").get(pk=grant_id)
    for resource_type in RESOURCE_TYPES:
        try:
            _sync(fhir_client_for(grant=grant), grant, resource_type)
        except SMARTError as error:
            # The copies stay as they were, and the next run reads the same again.
            logger.warning("Grant %s, %s: %s", grant_id, resource_type, error.code)


def on_connected(launch: Launch, **values: object) -> None:
    """Fill the copies of a new connection."""
    grant = launch.grant
    if grant and grant.is_offline and grant.user_id and grant.patient_id:
        try:
            sync_records.apply_async((grant.pk,), retry=False)
        except OperationalError:
            # The person is connected all the same; beat queues the next run.
            logger.warning("Grant %s: the broker cannot be reached", grant.pk)


def on_disconnected(grant: TokenGrant, **values: object) -> None:
    """Delete what was read, unless the same record is connected by another grant."""
    if grant.user_id is None:
        return
    others = TokenGrant.objects.filter(
        status=TokenGrant.Status.ACTIVE,
        user_id=grant.user_id,
        patient_id=grant.patient_id,
        registration__server=grant.registration.server,
    )
    if not others.exclude(pk=grant.pk).exists():
        for model in (Copy, Progress):
            model.objects.filter(**_get_connection(grant)).delete()


def _sync(fhir: FHIRClient, grant: TokenGrant, resource_type: str) -> None:
    key = {**_get_connection(grant), "resource_type": resource_type}
    progress = Progress.objects.filter(**key).first() or Progress(**key)
    now = timezone.now()
    is_fill = (
        not progress.changed_at
        or progress.filled_at is None
        or progress.filled_at < now - FILL_EVERY
    )
    parameters = {"patient": grant.patient_id}
    if not is_fill:
        # "ge", as several resources may have the same moment; the server's own clock.
        parameters["_lastUpdated"] = f"ge{progress.changed_at}"
    # Read to the end before anything is stored: no request inside a transaction, and
    # no gap after a page that could not be read.
    resources = list(fhir.iterate(resource_type, parameters))
    with transaction.atomic():
        for resource in resources:
            Copy.objects.update_or_create(
                **key, resource_id=resource["id"], defaults={"content": resource}
            )
        if is_fill:
            kept = [resource["id"] for resource in resources]
            Copy.objects.filter(**key).exclude(resource_id__in=kept).delete()
            progress.filled_at = now
        moments = [each.get("meta", {}).get("lastUpdated", "") for each in resources]
        progress.changed_at = _find_newest([progress.changed_at, *moments])
        progress.save()
        # The user may have disconnected during the requests. If they do so now, the
        # lock makes them wait for the commit, and on_disconnected() deletes the copies.
        # It is taken last, because a refresh would wait for it, too.
        active = TokenGrant.objects.active().select_for_update()
        if not active.filter(pk=grant.pk).exists():
            transaction.set_rollback(True)


def _delete_orphans() -> None:
    """Delete the copies of records for which no grant is left, not even a lost one."""
    grants = TokenGrant.objects.endable().filter(
        user_id=OuterRef("owner_id"),
        registration__server__slug=OuterRef("server"),
        patient_id=OuterRef("patient_id"),
    )
    for model in (Copy, Progress):
        model.objects.exclude(Exists(grants)).delete()


def _get_connection(grant: TokenGrant) -> dict[str, Any]:
    return {
        "owner_id": grant.user_id,
        "server": grant.registration.server.slug,
        "patient_id": grant.patient_id,
    }


def _find_newest(moments: Iterable[str]) -> str:
    """The last of them, exactly as it was written; empty if none can be read."""
    known = {
        date.moment: text
        for text in moments
        if (date := parse_date(text)) and date.moment and date.moment.tzinfo
    }
    return known[max(known)] if known else ""

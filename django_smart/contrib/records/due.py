"""Which records are to be read now, and which are to be forgotten."""

from __future__ import annotations

import logging
from datetime import timedelta

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone
from django.utils.module_loading import import_string

from django_smart.conf import conf
from django_smart.models import TokenGrant
from django_smart.models.clock import DatabaseNow

from .models import SyncRun
from .sinks import Sink

__all__ = ["EVERY", "build_sink", "find_due_grants", "forget_ended_records"]

logger = logging.getLogger(__name__)

EVERY = timedelta(days=1)
"""How long after a run the next one is due."""


def build_sink() -> Sink:
    """
    Return the sink that ``SMART_RECORDS_SINK`` names.

    Raises:
        ImproperlyConfigured: it names none, or cannot be imported.
    """
    path = conf.SMART_RECORDS_SINK
    try:
        sink = import_string(path)()
    except (ImportError, TypeError) as exc:
        raise ImproperlyConfigured(
            f"SMART_RECORDS_SINK is {path!r}; expected the dotted path of a callable "
            "without arguments that returns a sink."
        ) from exc
    if not isinstance(sink, Sink):
        raise ImproperlyConfigured(
            f"SMART_RECORDS_SINK returns a {type(sink).__name__}, which is not a "
            "subclass of django_smart.contrib.records.sinks.Sink."
        )
    return sink


def find_due_grants(sink: Sink, *, every: timedelta = EVERY) -> list[int]:
    """
    Return the primary key of the newest grant of each record that is due.

    That is the record of each patient who connected it with offline access, unless it
    was read into *sink* less than *every* ago, a process is reading it, or the EHR is
    to be left alone.
    """
    is_new = Q(is_finished=True, finished_at__gt=timezone.now() - every)
    runs = SyncRun.objects.filter(
        is_new | Q(busy_until__gt=DatabaseNow()),
        user_id=OuterRef("user_id"),
        server_id=OuterRef("registration__server_id"),
        patient_id=OuterRef("patient_id"),
        sink=sink.get_name(),
    )
    grants = (
        TokenGrant.objects.refreshable()
        .filter(kind=TokenGrant.Kind.STANDALONE, user__isnull=False)
        .exclude(patient_id="")
        .exclude(registration__server__state__paused_until__gt=DatabaseNow())
        .exclude(Exists(runs))
        .order_by("pk")
        .select_related("registration", "identity")
        .only(
            *("kind", "user_id", "patient_id", "identity__fhir_user"),
            *("registration__server_id", "registration__ehr_scope"),
            "registration__standalone_scope",
        )
    )
    # A clinician may choose a patient, too, and has connected nothing by that.
    newest = {
        (each.user_id, each.registration.server_id, each.patient_id): each.pk
        for each in grants.iterator()
        if each.is_of_patient
    }
    return list(newest.values())


def forget_ended_records(sink: Sink) -> int:
    """
    Delete progress and copies of records to which no grant is left.

    A grant that the EHR has refused counts until it is purged, so nothing is read again
    if the patient connects again meanwhile.

    Returns:
        How many records were forgotten.
    """
    runs = SyncRun.objects.free().without_grant().filter(sink=sink.get_name())
    number = 0
    for run in runs.iterator():
        sink.forget(run)
        run.delete()
        number += 1
    if number:
        logger.info("Forgot %s records whose connections have ended", number)
    return number

"""
Copies of whole records, kept in step with the EHR.

An installed app of its own: add ``django_smart.contrib.records`` to ``INSTALLED_APPS``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django_smart.clients import Connection
    from django_smart.models import TokenGrant

    from .models import SyncRun
    from .sinks import Sink

__all__ = ["sync_record"]


def sync_record(
    grant: TokenGrant | Connection,
    sink: Sink,
    *,
    types: Iterable[str] | None = None,
    attachments: bool = False,
) -> SyncRun:
    """
    Read everything that *grant* allows of its patient's record into *sink*.

    The first run reads all of it, and later runs what changed since. A run that was
    interrupted continues where it was. Once a week, everything is read again, which
    finds deletions.

    Args:
        grant: a user's usable grant with a patient, or a connection.
        sink: receives resources in batches; see :class:`~.sinks.Sink`.
        types: only these resource types; by default, all that the scopes allow.
        attachments: also read each ``Binary`` that an attachment refers to.

    Returns:
        The run, with a state for each type. It ends early if the EHR asks to wait, if
        it is paused, or if the access has ended: ``is_finished`` is then false,
        ``last_error`` has the code, and the next call continues.

    Raises:
        RecordBusyError: another process reads this record into this sink.
        NoGrantError: the grant has ended.
        ValueError: it has no user or no patient.

    Spec: FHIR R4, "Search"; US Core 6.1, search parameters.
    """
    # With models, which Django has not loaded yet when it imports this package.
    from django_smart.clients import Connection

    from .sync import Sync

    grant = grant.grant if isinstance(grant, Connection) else grant
    return Sync(grant, sink, types=types, attachments=attachments).run()

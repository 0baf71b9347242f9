"""
The audit trail: a line for each FHIR request, in the logger ``django_smart.audit``.

Who asked for what kind of thing, with which launch, and how it went; never a body, a
query or the id of a resource.  The message itself names rows of this site alone: who
is a patient stands in attributes of the record, which only a formatter shows that was
told to.
"""

from __future__ import annotations

import logging

from .fhir.messages import FHIRExchange
from .models import Launch, TokenGrant

__all__ = ["note_exchange"]

logger = logging.getLogger(__name__)


def note_exchange(
    exchange: FHIRExchange,
    *,
    grant: TokenGrant | None,
    launch: Launch | None,
    patient_id: str | None,
) -> None:
    """
    Write the line of *exchange*.

    Args:
        grant: whose token it was; ``None`` if there was none yet.
        launch: whose request it was; ``None`` in background work.
        patient_id: of the patient in context, if there is one.
    """
    if not logger.isEnabledFor(logging.INFO):
        return
    user_id = grant.user_id if grant is not None else None
    logger.info(
        "%s %s: %s in %.3f s (user %s, grant %s, launch %s, request %s)",
        exchange.interaction,
        exchange.resource_type or "-",
        exchange.status_code or "no answer",
        exchange.duration,
        user_id,
        grant.pk if grant is not None else None,
        launch.pk if launch is not None else None,
        exchange.request_id,
        extra={
            "user_id": user_id,
            "grant_id": grant.pk if grant is not None else None,
            "launch_id": launch.pk if launch is not None else None,
            "server": grant.registration.server.slug if grant is not None else "",
            "fhir_user": launch.fhir_user if launch is not None else "",
            "patient_id": patient_id or "",
            "interaction": exchange.interaction,
            "resource_type": exchange.resource_type,
            "status_code": exchange.status_code,
            "duration": exchange.duration,
            "request_id": exchange.request_id,
        },
    )

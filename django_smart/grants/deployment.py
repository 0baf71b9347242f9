"""
Decide which deployment refreshes the grants of this database.

Two deployments that refresh the same grants invalidate each other's tokens: a staging
site with a copy of the database, or the old site after a backup was restored elsewhere.
So the first one that asks for the owner becomes it, identified by its
``SMART_SITE_URL``, and any other one neither refreshes nor revokes until an operator
runs ``smart_refresh --adopt``.
"""

from __future__ import annotations

import logging

from django.db.models import Subquery

from ..conf import conf
from ..exceptions import TokenError
from ..models import TaskRun
from ..models.clock import DatabaseNow
from ..models.task_run import REFRESH

__all__ = [
    "adopt_grants",
    "check_owner",
    "find_owner",
    "hold_grants",
    "is_owner",
    "note_owned_elsewhere",
    "note_tick",
]

logger = logging.getLogger(__name__)

_ON_HOLD = "on hold"


def find_owner() -> Subquery:
    """Read the owner with other columns, for :func:`is_owner`."""
    return Subquery(TaskRun.objects.filter(name=REFRESH).values("owner")[:1])


def is_owner(owner: str | None = None) -> bool:
    """
    Return whether this deployment refreshes the grants, claiming them if unowned.

    Args:
        owner: from :func:`find_owner`; by default, it is read.
    """
    mine = conf.SMART_SITE_URL
    if owner is None:
        owner = TaskRun.objects.get_owner(REFRESH)
    if not owner and mine:
        TaskRun.objects.set_owner(REFRESH, mine, unless_owned=True)
        owner = TaskRun.objects.get_owner(REFRESH)
    return owner == mine


def note_tick() -> bool:
    """Note that this deployment looks for due grants now; return whether it may."""
    own = TaskRun.objects.filter(name=REFRESH, owner=conf.SMART_SITE_URL)
    if not own.update(ran_at=DatabaseNow()):
        if not is_owner():
            note_owned_elsewhere()
            return False
        TaskRun.objects.note(REFRESH)
    return True


def note_owned_elsewhere() -> None:
    """Log that a worker may refresh nothing."""
    logger.error(
        "Nothing is refreshed: the grants of this database belong to another "
        "deployment or are on hold (smart_refresh --adopt)."
    )


def check_owner() -> None:
    """
    Refuse to send a refresh token that another deployment refreshes.

    Raises:
        TokenError: with the code ``deployment_not_adopted``.
    """
    if not is_owner():
        raise TokenError(
            "The grants of this database belong to another deployment or are on hold: "
            "see smart_refresh --adopt.",
            code="deployment_not_adopted",
        )


def adopt_grants() -> None:
    """Make this deployment the only one that refreshes the grants."""
    TaskRun.objects.set_owner(REFRESH, conf.SMART_SITE_URL)


def hold_grants() -> None:
    """Stop all deployments from refreshing the grants until one adopts them."""
    TaskRun.objects.set_owner(REFRESH, _ON_HOLD)

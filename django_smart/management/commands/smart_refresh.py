"""Refresh grants, as the worker does, without Celery."""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_smart.exceptions import SMARTError
from django_smart.grants.engine import (
    BATCH_SIZE,
    RefreshResult,
    claim_due_batches,
    refresh_grants,
)
from django_smart.grants.refresh import refresh_grant
from django_smart.grants.server_limits import resume_refreshes
from django_smart.models import ClientRegistration, TokenGrant

__all__ = ["Command"]

# Called every minute: what is left is due in the next run.
_SECONDS = 50
# Grants of each server that are claimed at a time.
_LIMIT = 10 * BATCH_SIZE


class Command(BaseCommand):
    """``smart_refresh``: for a site without a worker, call it every minute."""

    help = (
        "Refresh the offline grants that are due, as the task refresh_due_grants does. "
        "Safe beside workers: a grant is refreshed by one process at a time."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--grant",
            type=int,
            metavar="ID",
            help="Refresh this grant now, due or not; exit status 1 if that fails.",
        )

        parser.add_argument(
            "--resume",
            action="store_true",
            help=(
                "Before that, let registrations go on whose credentials their server "
                "refused, once they are mended there or in the environment."
            ),
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Refresh, and print the counts."""
        if options["resume"]:
            refused = ClientRegistration.objects.refused()
            count = sum(resume_refreshes(registration) for registration in refused)
            self.stdout.write(f"registrations that go on: {count}")
        if options["grant"] is not None:
            result = _refresh_one(options["grant"])
        else:
            result = _refresh_due()
        self.stdout.write(
            f"refreshed: {result.refreshed}, left to others: {result.skipped}, "
            f"failed: {result.failed}"
        )


def _refresh_one(grant_id: int) -> RefreshResult:
    grant = TokenGrant.objects.filter(pk=grant_id).first()
    if grant is None:
        raise CommandError(f"There is no grant {grant_id}.")
    if grant.status != TokenGrant.Status.ACTIVE:
        raise CommandError(f"Grant {grant_id} has ended ({grant.status}).")
    if not grant.refresh_token_digest:
        raise CommandError(f"Grant {grant_id} has no refresh token.")
    try:
        sent = refresh_grant(grant)
    except SMARTError as exc:
        raise CommandError(f"Grant {grant_id}: {exc} ({exc.code})") from exc
    return RefreshResult(refreshed=int(sent), skipped=int(not sent))


def _refresh_due() -> RefreshResult:
    deadline = time.monotonic() + _SECONDS
    results = []
    while batches := list(claim_due_batches(limit=_LIMIT)):
        results += [refresh_grants(batch) for batch in batches]
        if time.monotonic() > deadline:
            break
    return RefreshResult(
        refreshed=sum(result.refreshed for result in results),
        skipped=sum(result.skipped for result in results),
        failed=sum(result.failed for result in results),
    )

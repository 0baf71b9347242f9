"""Refresh and revoke grants, as the workers do, without Celery."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_smart.exceptions import SMARTError
from django_smart.grants.deployment import adopt_grants, hold_grants, is_owner
from django_smart.grants.ending import revoke_pending
from django_smart.grants.engine import refresh_for
from django_smart.grants.refresh import refresh_grant
from django_smart.grants.stopping import resume_refreshes
from django_smart.grants.turn import RefreshResult
from django_smart.models import ClientRegistration, FHIRServer, TokenGrant

__all__ = ["Command"]

# Called every minute: what is left is due in the next run.
_SECONDS = 50


class Command(BaseCommand):
    """``smart_refresh``: for a site without a worker, call it every minute."""

    help = (
        "Refresh the offline grants that are due, and revoke those that have ended, as "
        "the task refresh_due_grants does. Safe to run alongside workers: only one "
        "process refreshes a grant at a time."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--grant",
            type=int,
            metavar="ID",
            help="Refresh this grant now, even if it is not due, or if the server "
            "refused it in the last 24 hours. Exits with status 1 on failure.",
        )

        parser.add_argument(
            "--resume",
            nargs="?",
            const=True,
            default=False,
            metavar="SLUG",
            help=(
                "First resume stopped registrations, of this server or of all, "
                "after the cause is fixed. Grants lost in the last 24 hours at a "
                "server that refused nearly all of them are restored."
            ),
        )
        parser.add_argument(
            "--accept-losses",
            action="store_true",
            help=(
                "With --resume: each grant that the server refuses now is lost, and "
                "the registration does not stop again because of them, for example "
                "after a restored backup."
            ),
        )

        owner = parser.add_mutually_exclusive_group()
        owner.add_argument(
            "--adopt",
            action="store_true",
            help=(
                "From now on, let only this deployment (SMART_SITE_URL) "
                "refresh the grants in this database."
            ),
        )
        owner.add_argument(
            "--hold",
            action="store_true",
            help=(
                "Let no deployment refresh the grants until one adopts them. "
                "Run this on a copy of the database before anything else "
                "uses the copy."
            ),
        )
        parser.add_argument(
            "--pause", metavar="SLUG", help="Pause all refreshes at this server."
        )
        parser.add_argument(
            "--unpause", metavar="SLUG", help="Resume refreshes at this server."
        )

    def run_from_argv(self, argv: list[str]) -> None:
        """Let a signal that ends the process wait until new tokens are stored."""
        for name in ("SIGTERM", "SIGHUP", "SIGINT"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _exit)
        super().run_from_argv(argv)

    def handle(self, *args: Any, **options: Any) -> None:
        """Refresh, and print the counts."""
        accept_losses, slug = options["accept_losses"], options["resume"]
        if accept_losses and slug is False:
            raise CommandError("--accept-losses requires --resume.")
        for name, paused in (("pause", True), ("unpause", False)):
            if options[name] is not None:
                server = _get_server(options[name])
                FHIRServer.objects.filter(pk=server.pk).update(paused=paused)
                done = "paused until --unpause" if paused else "resumed"
                self.stdout.write(f"{options[name]}: background refreshes {done}.")
        if options["hold"]:
            hold_grants()
            self.stdout.write(
                "No grant is refreshed until a deployment runs smart_refresh --adopt."
            )
            return
        if options["adopt"]:
            adopt_grants()
        if slug is not False:
            stopped = ClientRegistration.objects.stopped()
            if slug is not True:
                stopped = stopped.filter(server=_get_server(slug))
            count = sum(
                resume_refreshes(each, by_operator=True, accept_losses=accept_losses)
                for each in stopped
            )
            self.stdout.write(f"registrations resumed: {count}")
        if options["grant"] is not None:
            result = _refresh_one(options["grant"])
        else:
            result = _refresh_due()
        self.stdout.write(
            f"refreshed: {result.refreshed}, skipped: {result.skipped}, "
            f"failed: {result.failed}"
        )
        if options["grant"] is None and (number := revoke_pending()):
            self.stdout.write(f"revocations finished: {number}")


def _exit(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _get_server(slug: str) -> FHIRServer:
    server = FHIRServer.objects.filter(slug=slug).first()
    if server is None:
        raise CommandError(f"No server has the slug {slug}.")
    return server


def _refresh_one(grant_id: int) -> RefreshResult:
    # The server may have refused it by mistake.
    TokenGrant.objects.filter(pk=grant_id).offline().restore_lost()
    grant = TokenGrant.objects.read_with_clock(grant_id)
    if grant is None:
        raise CommandError(f"No grant has the ID {grant_id}.")
    if grant.status != TokenGrant.Status.ACTIVE:
        raise CommandError(f"Grant {grant_id} has ended ({grant.status}).")
    if not grant.refresh_token_digest:
        raise CommandError(f"Grant {grant_id} has no refresh token.")
    if not grant.is_offline:
        raise CommandError(
            f"Grant {grant_id} has no offline access: it is refreshed only while its "
            "user is present."
        )
    try:
        sent = refresh_grant(grant)
    except SMARTError as exc:
        raise CommandError(f"Grant {grant_id}: {exc} ({exc.code})") from exc
    return RefreshResult(refreshed=int(sent), skipped=int(not sent))


def _refresh_due() -> RefreshResult:
    if not is_owner():
        raise CommandError(
            "The grants of this database belong to another deployment or are "
            "on hold. To refresh them here, run smart_refresh --adopt."
        )
    results = list(refresh_for(_SECONDS))
    return RefreshResult(
        refreshed=sum(result.refreshed for result in results),
        skipped=sum(result.skipped for result in results),
        failed=sum(result.failed for result in results),
    )

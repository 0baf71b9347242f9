"""
A site whose database router sends every model to another database than the default.

``python -m tests.grants.routed FOLDER`` registers clients, rotates keys, imports brands
and refreshes grants there, in each of the ways, and completes a launch.
"""

from __future__ import annotations

import sys
from io import StringIO
from pathlib import Path
from typing import Any

import django
from django.conf import settings

__all__ = ["Router"]


class Router:
    """Everything is in the database *smart*."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        """Whatever the model."""
        return "smart"

    db_for_write = db_for_read


def main(folder: Path) -> None:
    """Fail if a grant is not refreshed, or the default database is asked."""
    sqlite = {"ENGINE": "django.db.backends.sqlite3"}
    settings.DATABASES = {
        "default": {**sqlite, "NAME": folder / "nothing.sqlite3"},
        "smart": {
            **sqlite,
            "NAME": folder / "smart.sqlite3",
            "ATOMIC_REQUESTS": True,
        },
    }
    settings.DATABASE_ROUTERS = ["tests.grants.routed.Router"]
    django.setup()
    from django.core.management import call_command
    from django.db import connections, transaction
    from django.utils import timezone

    from django_smart import tasks, transport
    from django_smart.exceptions import RefreshInTransactionError
    from django_smart.grants.refresh import get_access_token
    from django_smart.launches.purge import purge
    from django_smart.models import TokenGrant
    from django_smart.testing import EHRSimulator
    from tests.celery import app  # the tasks run where they are called
    from tests.factories import make_grants, make_registration, reload_grant
    from tests.known import BASE_URL, CLIENT_ID, CLIENT_SECRET, REDIRECT_URI

    call_command("migrate", database="smart", verbosity=0)
    _administer(folder)
    assert connections["default"].connection is None
    ehr = EHRSimulator(BASE_URL)
    ehr.register_client(
        CLIENT_ID, client_secret=CLIENT_SECRET, redirect_uris=[REDIRECT_URI]
    )
    with transport.mounted("https://ehr.example.org", ehr.adapter()):
        first, *others = make_grants(ehr, make_registration(), 3)
        assert app.conf.task_always_eager
        tasks.refresh_due_grants()
        assert len(ehr.requests_to("refresh")) == 3
        call_command("smart_refresh", "--grant", str(others[0]), verbosity=0)
        TokenGrant.objects.filter(pk=first).update(expires_at=timezone.now())
        with transaction.atomic(using="smart"):
            try:
                get_access_token(reload_grant(first))
            except RefreshInTransactionError:
                pass
            else:
                raise AssertionError("a transaction of the other database was not seen")
        get_access_token(reload_grant(first))
        assert len(ehr.requests_to("refresh")) == 5
        assert ehr.reused_refresh_tokens == 0
        ehr.revoke_grant(reload_grant(first).refresh_token)
        TokenGrant.objects.update(refresh_due_at=timezone.now())
        call_command("smart_refresh")
        assert reload_grant(first).status == "needs_reauthorization"
        TokenGrant.objects.active().end_pending_revocation(now=timezone.now())
        assert purge().revocations_finished == 2
        _launch(ehr)
    assert connections["default"].connection is None


def _administer(folder: Path) -> None:
    """What must be stored as a whole or not at all."""
    from django.core.management import CommandError, call_command

    from django_smart import transport
    from django_smart.contrib.brands.importing import import_brand_file, remove_brands
    from django_smart.models import ClientRegistration, FHIRServer
    from django_smart.testing import EHRSimulator

    ehr = EHRSimulator("https://other.example.org/fhir")
    where = ["--base-url", ehr.base_url, "--ehr-scope", "launch openid fhirUser"]
    ehr.faults = ["discovery_404"]
    with transport.mounted("https://other.example.org", ehr.adapter()):
        try:
            call_command("smart_register", *where, "--client-id", "c")
        except CommandError:
            assert not FHIRServer.objects.exists()
        else:
            raise AssertionError("a server without a configuration was stored")
        ehr.faults = []
        call_command("smart_register", *where, "--dynamic", stdout=StringIO())
        assert ClientRegistration.objects.get().client_id in ehr.clients
    for _ in ("the first", "the next"):
        call_command(
            "smart_keys", "generate", "--algorithm", "ES384", stdout=StringIO()
        )
    call_command("smart_keys", "rotate", "--now", stdout=StringIO())
    bundle = folder / "brands.json"
    bundle.write_text('{"resourceType": "Bundle", "type": "collection", "entry": []}')
    import_brand_file(bundle, name="brands")
    assert remove_brands("brands") == 0
    ClientRegistration.objects.all().delete()
    FHIRServer.objects.all().delete()


def _launch(ehr: Any) -> None:
    """What the EHR has granted is kept, although the site's code fails."""
    from django_smart.models import Launch
    from django_smart.signals import launch_completed
    from tests.ehr import get_callback, make_browser, start_ehr_launch

    def fail(**_values: Any) -> None:
        raise RuntimeError("a bug in the site's receiver")

    browser = make_browser()
    browser.raise_request_exception = False
    launch_completed.connect(fail)
    callback_url = ehr.authorize(start_ehr_launch(browser, ehr))
    assert get_callback(browser, callback_url).status_code == 500
    launch = Launch.objects.with_related().get()
    assert launch.status == "open", "the request's transaction was rolled back"
    assert launch.user is not None
    assert launch.grant is not None


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""
Make the tables of the deployment and fill in its grants.

Standard input is JSON: tokens by the base URL of their server.  The grants of a server
come due one after another within the life of their access tokens.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta

import django

from tests.known import PATIENT

__all__: list[str] = []


def main() -> None:
    """Read what there is to be, and make it."""
    django.setup()
    from django.core.management import call_command
    from django.utils import timezone

    from django_smart.models import TokenGrant
    from tests.ehr import make_registration

    call_command("migrate", verbosity=0)
    wanted = json.load(sys.stdin)
    now, life = timezone.now(), timedelta(seconds=wanted["lifetime"])
    scope = "patient/Patient.rs offline_access"
    grants = []
    for number, (base_url, tokens) in enumerate(wanted["servers"].items(), 1):
        registration = make_registration(
            server__slug=f"ehr-{number}", server__base_url=base_url
        )
        for place, (access_token, refresh_token) in enumerate(tokens):
            grant = TokenGrant(
                registration=registration,
                is_offline=True,
                scope=scope,
                scope_granted=scope,
                patient_id=PATIENT,
                received_at=now,
                expires_at=now + life,
                refresh_due_at=now + life * place / len(tokens) * 0.7,
            )
            grant.set_tokens(access_token=access_token, refresh_token=refresh_token)
            grants.append(grant)
    TokenGrant.objects.bulk_create(grants, batch_size=500)


if __name__ == "__main__":
    main()

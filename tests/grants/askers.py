"""
One of the processes of the race: threads that ask for one grant's token at once.

It takes the keys of grants from its standard input, one a line, and says ``ready`` when
each thread has a client and waits.  The next line lets them go.
"""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import django

from tests.known import PATIENT

__all__ = ["THREADS"]

THREADS = 16  # in each process


def _ask(grant_id: int, barrier: threading.Barrier) -> str:
    """Read with the grant's token; returns the patient's id, or what went wrong."""
    from django_smart.clients import fhir_client_for
    from django_smart.models import TokenGrant

    try:
        grant = TokenGrant.objects.select_related("registration__server").get(
            pk=grant_id
        )
        client = fhir_client_for(grant=grant)
        barrier.wait(60)
        barrier.wait(60)
        return str(client.read("Patient", PATIENT)["id"])
    except Exception as exc:  # noqa: BLE001 (the test looks at it)
        barrier.abort()
        return f"{type(exc).__name__}: {exc}"


def main() -> None:
    """Take part in rounds until the input ends."""
    from django.conf import settings

    django.setup()
    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
    barrier = threading.Barrier(THREADS + 1)
    # All of them wait for each other, so none takes the part of two.
    with ThreadPoolExecutor(THREADS) as pool:
        for line in sys.stdin:
            asked = [pool.submit(_ask, int(line), barrier) for _ in range(THREADS)]
            barrier.wait(60)
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            sys.stdin.readline()
            barrier.wait(60)
            answers = [each.result() for each in asked]
            sys.stdout.write(json.dumps(answers) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

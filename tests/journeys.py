"""
Count the files of ``django_smart`` that warm journeys enter.

    python -m tests.journeys            a table
    python -m tests.journeys --files    also the files, in the order of first entry

A call counts if the function's code is in a file of the package outside of
``django_smart/testing``.  A generator counts once, when its body starts, not each time
it resumes; returns do not count.  A step is a call in a different file from the call
counted before it, whatever other code ran between the two.  The calls of each thread
are counted together, one thread after the other, so that the numbers do not depend on
how threads take turns.

All rounds are made in one browser; only the last is printed.  Compare numbers of one
version of Python only: since 3.12, list comprehensions are not calls.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import django

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()

from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.test.utils import override_settings, setup_databases, teardown_databases
from django.urls import path, reverse
from django.utils import timezone

import django_smart
from django_smart import tasks
from django_smart.decorators import smart_required
from django_smart.grants.ending import revoke_pending
from django_smart.testing.client import SMARTClient
from django_smart.testing.site import create_registration, mounted_ehr
from tests.celery import app as celery_app
from tests.urls import urlpatterns as site

__all__ = ["PAGE", "celery_app", "count_steps", "list_files", "make_journeys"]

PAGE = "/patient/"
"""The page that reads the patient; the registration's landing page."""

_PACKAGE = f"{Path(django_smart.__file__).parent}{os.sep}"
_TESTING = f"{_PACKAGE}testing{os.sep}"
_ROUNDS = 3


@smart_required
def _show_patient(request: HttpRequest) -> JsonResponse:
    smart: Any = request.smart  # type: ignore[attr-defined]  # the middleware's
    return JsonResponse({"id": smart.fhir.read("Patient", smart.patient_id)["id"]})


urlpatterns = [*site, path(PAGE.removeprefix("/"), _show_patient)]


def make_journeys(browser: SMARTClient) -> dict[str, list[str]]:
    """
    Make the journeys once; returns, for each, the file of every call.

    Args:
        browser: at a registration whose landing page is ``PAGE``.

    Raises:
        AssertionError: a journey did not end as it should.
    """
    ehr, registration = browser.ehr, browser.registration
    patient = next(iter(ehr.data["Patient"]))
    launch_id = ehr.create_launch(registration.client_id, patient=patient)
    query = {"iss": ehr.base_url, "launch": launch_id}
    started, begin = _trace(browser.get, reverse("django_smart:launch"), query)
    assert started.status_code == 302, started.content
    url = urlsplit(ehr.authorize(started["Location"]))
    landed, complete = _trace(browser.get, url.path, dict(parse_qsl(url.query)))
    assert landed.status_code == 302, landed.content
    page, show = _trace(browser.get, landed["Location"])
    assert page.json() == {"id": patient}
    grant = SMARTClient(registration, ehr).connect().grant
    assert grant is not None
    grant.refresh_due_at = timezone.now()
    grant.save()
    refreshes = len(ehr.requests_to("refresh"))
    _, refresh = _trace(tasks.refresh_grants, registration.server_id)
    assert len(ehr.requests_to("refresh")) == refreshes + 1
    signed_out, leave = _trace(browser.post, reverse("django_smart:logout"))
    assert signed_out.status_code == 302, signed_out.content
    assert ehr.requests_to("revoke") == []
    finished, revoke = _trace(revoke_pending)
    assert finished == 1
    ehr.clear_requests()
    return {
        "launch request": begin,
        "callback": complete,
        "page": show,
        "background refresh": refresh,
        "sign-out": leave,
        "revocation": revoke,
    }


def _trace(function: Callable[..., Any], *args: Any) -> tuple[Any, list[str]]:
    calls: dict[int, list[str]] = defaultdict(list)
    seen: set[FrameType] = set()

    def note(frame: FrameType, event: str, arg: object) -> None:
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(_PACKAGE):
            return
        # Resuming a generator is also a "call", in the same frame.
        if frame not in seen and not name.startswith(_TESTING):
            seen.add(frame)
            calls[threading.get_ident()].append(name.removeprefix(_PACKAGE))

    before = threading.getprofile(), sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        result = function(*args)
    finally:
        threading.setprofile(before[0])
        sys.setprofile(before[1])
    return result, list(chain.from_iterable(calls.values()))


def list_files(calls: list[str]) -> list[str]:
    """The files of *calls*, in the order of first entry."""
    return list(dict.fromkeys(calls))


def count_steps(calls: list[str]) -> int:
    """How often the next call is in another file."""
    return sum(one != other for one, other in pairwise(calls))


def main() -> None:
    """Make the journeys in a new database, and print the last round."""
    parser = argparse.ArgumentParser(prog="python -m tests.journeys")
    parser.add_argument("--files", action="store_true", help="print the files as well")
    with_files = parser.parse_args().files
    settings.RUN_DIR.mkdir(exist_ok=True)
    databases = setup_databases(verbosity=0, interactive=False)
    try:
        with override_settings(ROOT_URLCONF=__name__), mounted_ehr() as ehr:
            browser = SMARTClient(create_registration(ehr, landing_page=PAGE), ehr)
            journeys = [make_journeys(browser) for _ in range(_ROUNDS)][-1]
    finally:
        teardown_databases(databases, verbosity=0)
        shutil.rmtree(settings.RUN_DIR, ignore_errors=True)
    sys.stdout.write(f"{'journey':<20}{'files':>5}{'steps':>7}\n")
    for name, calls in journeys.items():
        files = list_files(calls)
        sys.stdout.write(f"{name:<20}{len(files):>5}{count_steps(calls):>7}\n")
        if with_files:
            sys.stdout.writelines(f"    {each}\n" for each in files)


if __name__ == "__main__":
    main()

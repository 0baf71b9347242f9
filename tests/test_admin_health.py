"""The health of a server's grants in the admin."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from django_smart.models import FHIRServer, ServerState
from tests.factories import make_grant, make_registration, make_server

pytestmark = pytest.mark.django_db

LIST = "admin:django_smart_fhirserver_changelist"


@pytest.fixture
def operator() -> Client:
    """Somebody who may see everything."""
    browser = Client()
    browser.force_login(
        User.objects.create_superuser("operator"),
        backend="django.contrib.auth.backends.ModelBackend",
    )
    return browser


def test_list_reads_all_servers_at_once(operator):
    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert operator.get(reverse(LIST)).status_code == 200
        return len(queries)

    make_grant(make_registration())
    count()  # content types and the like are read once
    before = count()
    for number in range(5):
        make_server(
            slug=f"s{number}", name="S", base_url=f"https://ehr.example.org/{number}"
        )
    assert count() == before


def test_page_of_a_server_shows_every_count_and_nothing_of_a_person(operator):
    registration = make_registration(
        server__state__last_error="server_timeout",
        server__state__last_failure_at=timezone.now(),
    )
    make_grant(registration, patient_id="hush-patient", refresh_failures=1)
    make_grant(registration, status="needs_reauthorization")
    due_at = timezone.now() - timedelta(minutes=42)
    make_grant(registration, refresh_due_at=due_at)
    page = operator.get(
        reverse("admin:django_smart_fhirserver_change", args=[registration.server_id])
    )
    assert "<dt>needs reauthorization</dt><dd>1</dd>" in page.text
    assert "<dt>failing</dt><dd>1</dd>" in page.text
    assert "<dt>longest wait</dt><dd>42\xa0minutes</dd>" in page.text
    assert "<dt>last success</dt><dd>–</dd>" in page.text
    assert "<dt>last failure</dt><dd>–</dd>" not in page.text
    assert ">server_timeout</a>" in page.text
    assert "hush" not in page.text


def test_pause_is_seen_in_the_list_and_on_the_page(operator):
    server = make_server()
    until = timezone.now() + timedelta(minutes=5)
    page = reverse("admin:django_smart_fhirserver_change", args=[server.pk])

    def read() -> list[str]:
        shown = (
            r'<td class="field-paused_until">(.*?)</td>',
            r"<dt>paused until</dt><dd>(.*?)</dd>",
        )
        texts = (operator.get(url).text for url in (reverse(LIST), page))
        return [
            found
            for text, pattern in zip(texts, shown, strict=True)
            for found in re.findall(pattern, text)
        ]

    assert read() == ["–", "–"]
    ServerState.objects.update(paused_until=until)
    in_list, on_page = read()
    assert in_list == on_page != "–"
    # An operator's pause has no end; an outage's ends before it.
    FHIRServer.objects.update(paused=True)
    in_list, on_page = read()
    assert in_list == on_page
    assert "resumes" in on_page
    found = operator.get(reverse(LIST), {"paused__exact": "0"})
    assert page not in found.text


def test_form_for_a_new_server_has_no_numbers(operator):
    page = operator.get(reverse("admin:django_smart_fhirserver_add"))
    assert page.status_code == 200
    assert "<dt>failing</dt>" not in page.text

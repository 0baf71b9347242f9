"""Rows that are read together: the same values as a queryset returns."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import models

from django_smart.fields import digest
from django_smart.models import ClientRegistration, FHIRServer, Launch
from django_smart.testing import EHRSimulator
from tests.ehr import launch, make_browser, start_ehr_launch

pytestmark = pytest.mark.django_db


def _assert_same(row: models.Model, expected: models.Model) -> None:
    assert row == expected
    assert not row._state.adding
    assert row._state.db == expected._state.db == "default"
    assert not row.get_deferred_fields()
    for field in row._meta.concrete_fields:
        value, wanted = (getattr(each, field.attname) for each in (row, expected))
        assert (type(value), value) == (type(wanted), wanted), field


@pytest.fixture
def opened(ehr: EHRSimulator, registration: ClientRegistration) -> Launch:
    """An open launch, with a value in each kind of column."""
    FHIRServer.objects.update(
        frame_origins=["https://ehr.example.com"],
        request_headers='{"X-Api-Key": "one"}',
    )
    return launch(make_browser(), ehr)


def test_launch_is_read_with_its_rows_by_one_query(
    opened: Launch, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(1):
        found = Launch.objects.find_with_key(opened.key)
        assert found is not None
        rows = found, found.registration, found.registration.server, found.grant
    related = Launch.objects.select_related("registration__server", "grant")
    stored = related.get(pk=opened.pk)
    expected = stored, stored.registration, stored.registration.server, stored.grant
    for row, wanted in zip(rows, expected, strict=True):
        assert row is not None
        assert wanted is not None
        _assert_same(row, wanted)


def test_launch_without_tokens_has_no_grant(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    django_assert_num_queries: Any,
) -> None:
    start_ehr_launch(make_browser(), ehr)
    pending = registration.launches.get()
    with django_assert_num_queries(1):
        found = Launch.objects.find_with_key(pending.key)
        assert found is not None
        assert found.grant is None
        assert found.grant_id is None
    _assert_same(found, pending)


def test_registration_is_read_with_the_state_of_its_server(
    opened: Launch, django_assert_num_queries: Any
) -> None:
    stored = opened.registration
    stored.refresh_from_db()
    server = FHIRServer.objects.select_related("state").get()
    assert server.state.configuration
    for _ in range(2):
        with django_assert_num_queries(1):
            found = ClientRegistration.objects.find_ehr(server.base_url)
            assert found is not None
            assert found.server.state.server is found.server
        _assert_same(found, stored)
        _assert_same(found.server, server)
        _assert_same(found.server.state, server.state)


def test_server_without_state_is_read_as_well(registration: ClientRegistration) -> None:
    registration.server.state.delete()
    found = ClientRegistration.objects.find_ehr(registration.server.base_url)
    assert found is not None
    assert found == registration
    assert not hasattr(found.server, "state")


def test_values_of_one_call_are_not_those_of_the_next(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    browser = make_browser()
    keys = [launch(browser, ehr).key for _ in range(2)]
    for key in (*keys, "unknown", *reversed(keys)):
        found = Launch.objects.find_with_key(key)
        assert (found and found.key_digest) == (digest(key) if key in keys else None)

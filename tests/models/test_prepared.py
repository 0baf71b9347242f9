"""Look-ups whose SQL is made once find what Django's own would."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext

from django_smart.models import ClientRegistration, Launch
from django_smart.testing import EHRSimulator
from tests.ehr import launch, make_browser, make_registration


def _columns(row: Any) -> dict[str, Any]:
    return {
        field.attname: getattr(row, field.attname)
        for field in row._meta.concrete_fields
    }


@pytest.mark.django_db
def test_launch_comes_whole_with_what_belongs_to_it(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    first, second = (launch(make_browser(), ehr) for _ in range(2))
    for each in (first, second, first):
        with CaptureQueriesContext(connection) as captured:
            found = Launch.objects.find_with_key(each.key)
            assert found is not None
            assert found.grant is not None
            rows = (
                found,
                found.grant,
                found.registration,
                found.registration.server,
            )
            values = [_columns(row) for row in rows]
        assert len(captured) == 1
        again = Launch.objects.get(pk=each.pk)
        assert again.grant is not None
        expected = (
            again,
            again.grant,
            again.registration,
            again.registration.server,
        )
        assert rows == expected
        assert values == [_columns(row) for row in expected]
        assert not found._state.adding
        assert found._state.db == "default"


@pytest.mark.django_db
def test_what_is_not_there_is_not_found(registration: ClientRegistration) -> None:
    assert Launch.objects.find_with_key("none") is None
    assert Launch.objects.find_with_state("none") is None
    assert ClientRegistration.objects.find_standalone("nowhere") is None
    assert ClientRegistration.objects.find_standalone("harbour") == registration


@pytest.mark.django_db
def test_slug_is_compared_exactly(registration: ClientRegistration) -> None:
    assert ClientRegistration.objects.find_standalone("HARBOUR") is None


@pytest.mark.django_db
def test_change_is_seen_by_the_next_look_up(registration: ClientRegistration) -> None:
    assert ClientRegistration.objects.find_standalone("harbour")
    ClientRegistration.objects.update(is_active=False)
    assert ClientRegistration.objects.find_standalone("harbour") is None


@pytest.mark.django_db(transaction=True)
def test_threads_do_not_share_a_connection(ehr: EHRSimulator) -> None:
    registration = make_registration()

    def find(_number: int) -> Any:
        try:
            return ClientRegistration.objects.find_standalone("harbour")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(find, range(16))) == {registration}

"""Writes that are tried again on a connection that can write."""

from __future__ import annotations

import pytest
from django.db import InternalError, connection, transaction

from django_smart.grants.storing import store_together
from django_smart.models import FHIRServer

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="as PostgreSQL fails"),
    pytest.mark.usefixtures("registration"),
]


def _become_read_only() -> None:
    """As a server that was the first one until the failover."""
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")


def _rename() -> int:
    return FHIRServer.objects.update(name="renamed")


def test_launch_is_stored_by_the_server_that_took_over() -> None:
    _become_read_only()
    assert store_together(_rename, restart=lambda: None) == 1
    assert FHIRServer.objects.get().name == "renamed"


def test_transaction_of_the_callers_is_not_taken_apart() -> None:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
        with pytest.raises(InternalError):
            store_together(_rename, restart=lambda: None)
        assert not connection.closed_in_transaction
    assert FHIRServer.objects.get().name != "renamed"

"""Tasks that are handed over while somebody waits for a page."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from celery import Celery

from django_smart import tasks
from django_smart.grants.workers import hand_to_worker
from tests.celery import Broker
from tests.celery import app as celery_app


@pytest.fixture
def second_app(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Celery, Broker]]:
    """The current app of this thread alone, with its broker."""
    app, messages = Celery("second"), Broker()
    monkeypatch.setattr(app, "send_task", messages.send_task)
    yield app, messages
    celery_app.set_current()


def test_error_of_the_broker_is_raised(broker: Broker) -> None:
    broker.error = ConnectionError("refused")
    with pytest.raises(ConnectionError, match="refused"):
        hand_to_worker(tasks.refresh_grants, [1])


def test_while_a_message_waits_no_other_is_sent(broker: Broker) -> None:
    broker.answers.clear()
    with pytest.raises(TimeoutError):
        hand_to_worker(tasks.refresh_grants, [1])
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        hand_to_worker(tasks.refresh_grants, [1])
    assert time.monotonic() - started < 1
    assert len(broker.waiting) == 1
    broker.thaw()
    hand_to_worker(tasks.refresh_grants, [2])
    assert broker.messages == [("refresh_grants", ([1],)), ("refresh_grants", ([2],))]


def test_message_is_sent_by_the_current_app(
    broker: Broker, second_app: tuple[Celery, Broker]
) -> None:
    app, messages = second_app
    assert app == tasks.purge.app
    hand_to_worker(tasks.purge)
    assert (broker.messages, messages.messages) == ([], [("purge", ())])

"""
Fixtures for the tests of a site that uses django_smart, with pytest-django.

Add ``pytest_plugins = ["django_smart.testing.pytest_plugin"]`` to the topmost
``conftest.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from django_smart.models import ClientRegistration
from django_smart.testing.client import SMARTClient
from django_smart.testing.simulator.ehr import EHRSimulator
from django_smart.testing.site import create_registration, mounted_ehr

__all__ = ["ehr", "launched_client", "smart_client", "smart_registration"]


@pytest.fixture
def ehr() -> Iterator[EHRSimulator]:
    """A simulated EHR that the site reaches without a network."""
    with mounted_ehr() as simulator:
        yield simulator


@pytest.fixture
def smart_registration(db: None, ehr: EHRSimulator) -> ClientRegistration:
    """The site's registration at ``ehr``, for both kinds of launch."""
    return create_registration(ehr)


@pytest.fixture
def smart_client(
    smart_registration: ClientRegistration, ehr: EHRSimulator
) -> SMARTClient:
    """A client without a launch."""
    return SMARTClient(smart_registration, ehr)


@pytest.fixture
def launched_client(
    smart_registration: ClientRegistration, ehr: EHRSimulator
) -> Callable[..., SMARTClient]:
    """
    A function that returns a client with a launch from a chart.

    It has the arguments of :meth:`.SMARTClient.launch`.
    """

    def launch(*args: Any, **kwargs: Any) -> SMARTClient:
        client = SMARTClient(smart_registration, ehr)
        client.launch(*args, **kwargs)
        return client

    return launch

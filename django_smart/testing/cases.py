"""Support for ``unittest`` test classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_smart.models import ClientRegistration
from django_smart.testing.client import SMARTClient
from django_smart.testing.simulator.ehr import EHRSimulator
from django_smart.testing.site import create_registration, mounted_ehr

__all__ = ["SMARTTestMixin"]

if TYPE_CHECKING:
    from django.test import TestCase as _Base
else:
    _Base = object


class SMARTTestMixin(_Base):
    """
    A mixin, listed before ``django.test.TestCase``: an EHR for each test, and clients.

    Attributes:
        ehr: the simulated EHR.
        smart_registration: the site's registration there, for both kinds of launch.
    """

    ehr: EHRSimulator
    smart_registration: ClientRegistration

    def setUp(self) -> None:
        """Start the EHR, and register the site."""
        super().setUp()
        self.ehr = self.enterContext(mounted_ehr())
        self.smart_registration = create_registration(self.ehr)

    def smart_client(self) -> SMARTClient:
        """Return a client without a launch."""
        return SMARTClient(self.smart_registration, self.ehr)

    def launched_client(self, *args: Any, **kwargs: Any) -> SMARTClient:
        """Return a client with a launch; see :meth:`.SMARTClient.launch`."""
        client = self.smart_client()
        client.launch(*args, **kwargs)
        return client

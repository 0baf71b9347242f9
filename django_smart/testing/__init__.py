"""
Help for tests: an EHR to launch from.

``EHRSimulator`` is a SMART App Launch 2.2 server with a FHIR R4 API over
synthetic patients. It needs the ``testing`` extra, but neither pytest nor
configured Django settings. It shares no code with the rest of the package, so
that it can judge it.
"""

from __future__ import annotations

from django_smart.testing.simulator.adapter import SimulatorAdapter
from django_smart.testing.simulator.ehr import EHRSimulator
from django_smart.testing.simulator.records import RecordedRequest

__all__ = ["EHRSimulator", "RecordedRequest", "SimulatorAdapter"]

"""
Test helpers: a simulated EHR.

``EHRSimulator`` is a SMART App Launch 2.2 server with a FHIR R4 API over
synthetic patients. It needs the ``testing`` extra, but neither pytest nor
configured Django settings. It shares no code with the rest of the package, so that it
does not share its faults.
"""

from __future__ import annotations

try:
    import werkzeug  # noqa: F401
except ImportError as exc:
    raise ImportError(
        "The simulated EHR requires Werkzeug, which is not installed: "
        'pip install "django-smart[testing]"'
    ) from exc

from django_smart.testing.simulator.adapter import SimulatorAdapter
from django_smart.testing.simulator.ehr import EHRSimulator
from django_smart.testing.simulator.exchange import RecordedRequest

__all__ = ["EHRSimulator", "RecordedRequest", "SimulatorAdapter"]

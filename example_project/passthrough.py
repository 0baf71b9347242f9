"""``/fhir/``: the launch's FHIR server, read-only, for scripts of this site's pages."""

from __future__ import annotations

from django_smart.views import FHIRProxyView

__all__ = ["fhir"]

fhir = FHIRProxyView.as_view()

"""What is filled in for a vendor."""

from __future__ import annotations

import pytest

from django_smart.models import FHIRServer
from django_smart.servers.presets import PRESETS


def test_every_vendor_of_the_model_was_looked_at():
    vendors = {preset for preset in FHIRServer.Preset.values if preset}
    assert set(PRESETS) == vendors


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_values_are_quirks(preset):
    server = FHIRServer(
        slug="harbour", name="Harbour", base_url="https://ehr.example.org/fhir"
    )
    server.quirks = PRESETS[preset]
    # What equals the default says nothing of the vendor.
    assert server.quirks.as_json() == PRESETS[preset]
    server.preset = preset
    server.full_clean(validate_unique=False, validate_constraints=False)

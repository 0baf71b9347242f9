"""What is filled in for a vendor."""

from __future__ import annotations

import pytest

from django_smart.models import FHIRServer
from django_smart.servers.presets import PRESETS, get_preset_values


def test_every_vendor_of_the_model_was_looked_at():
    vendors = {preset for preset in FHIRServer.Preset.values if preset}
    assert set(PRESETS) == vendors


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_values_fit_their_columns(preset):
    server = FHIRServer(
        slug="harbour", name="Harbour", base_url="https://ehr.example.org/fhir"
    )
    values = get_preset_values(preset, client_id="client-1")
    for name, value in values.items():
        # What equals the default says nothing of the vendor.
        assert value != getattr(FHIRServer(), name)
        setattr(server, name, value)
    server.preset = preset
    server.full_clean(validate_unique=False, validate_constraints=False)


def test_epic_is_told_which_client_asks():
    values = get_preset_values("epic", client_id="client-1")
    assert values["discovery_headers"] == {"Epic-Client-ID": "client-1"}
    # The next client is not told of this one.
    other = get_preset_values("epic", client_id="client-2")
    assert other["discovery_headers"] == {"Epic-Client-ID": "client-2"}


def test_epic_is_sent_no_empty_header():
    values = get_preset_values("epic", client_id="")
    assert values["discovery_headers"] == {}


@pytest.mark.parametrize("preset", ["", "acme"])
def test_no_vendor_fills_in_nothing(preset):
    assert get_preset_values(preset, client_id="client-1") == {}

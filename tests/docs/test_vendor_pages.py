"""The pages on vendors: their commands work, and name the URLs they print."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.core.management import call_command

from django_smart.models import ClientRegistration, FHIRServer
from django_smart.servers.presets import PRESETS
from tests.docs.blocks import DOCS, read_blocks

_PAGES = {
    FHIRServer.Preset.EPIC: "how-to/register-epic.rst",
    FHIRServer.Preset.ORACLE_HEALTH: "how-to/register-oracle-health.rst",
    FHIRServer.Preset.ATHENAHEALTH: "how-to/register-athenahealth.rst",
    FHIRServer.Preset.ECLINICALWORKS: "how-to/register-eclinicalworks.rst",
    FHIRServer.Preset.SMART_LAUNCHER: "how-to/smart-launcher.rst",
}


def test_every_preset_has_a_page():
    assert set(_PAGES) == set(PRESETS)


@pytest.mark.django_db
@pytest.mark.parametrize(("preset", "page"), _PAGES.items())
def test_commands_of_the_page_register_the_client(preset, page, settings):
    settings.SMART_SITE_URL = "https://app.example.org"
    text = (DOCS / page).read_text(encoding="utf-8")
    slugs: set[str] = set()
    for words in _commands(page):
        assert words[:2] == ["python", "manage.py"]
        if words[2] == "smart_discover":
            # Asks the vendor, which no test does: the name is right.
            assert set(words[3:]) <= slugs
            continue
        out = io.StringIO()
        call_command(*words[2:], stdout=out, stderr=io.StringIO())
        printed: dict[str, Any] = json.loads(out.getvalue())
        slugs.add(printed["slug"])
        registration = ClientRegistration.objects.get(server__slug=printed["slug"])
        registration.full_clean()
        assert registration.server.preset == preset
        if registration.ehr_scope:
            assert f"\n{printed['launch_url']}\n" in _dedented(text)
        if registration.token_endpoint_auth_method != "none":
            for name in ("redirect_uri", "jwks_url"):
                assert f"\n{printed[name]}\n" in _dedented(text)
    assert slugs


@pytest.mark.parametrize("page", _PAGES.values())
def test_page_names_its_sources_and_what_was_not_checked(page):
    sources = (DOCS / page).read_text(encoding="utf-8").partition("Sources\n-------\n")
    assert "https://" in sources[2]
    assert "Not checked:" in sources[2]


def _commands(page: str) -> list[list[str]]:
    blocks = read_blocks(page)
    commands = [words for block in blocks for words in block.commands]
    return [words for words in commands if words[0] != "docker"]


def _dedented(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())

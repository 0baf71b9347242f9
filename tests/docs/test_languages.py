"""The page on languages, by its settings and its catalogue."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import translation

from tests.docs.blocks import apply, read_blocks

_PAGE = "how-to/style.rst"


def _read(language: str) -> str:
    """Connections, for a reader of *language*, by the settings as they are now."""
    browser = Client(headers={"Accept-Language": language})
    return browser.get("/smart/connections/").content.decode()


@pytest.mark.django_db
@pytest.mark.skipif(shutil.which("msgfmt") is None, reason="needs GNU gettext")
def test_settings_and_catalogue_of_the_page(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow, paths, catalogue, compile_ = read_blocks(_PAGE, "Translate pages")
    assert "Connected records" in _read("de")
    apply(settings, follow)
    assert "Verbundene Gesundheitsdaten" in _read("de")

    monkeypatch.chdir(tmp_path)
    apply(settings, paths)
    file = tmp_path / "locale" / "de" / "LC_MESSAGES" / "django.po"
    file.parent.mkdir(parents=True)
    header = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
    file.write_text(header + catalogue.code, encoding="utf-8")
    ((*words,),) = compile_.commands
    call_command(*words[2:], verbosity=0)
    assert "Verbundene Kliniken" in _read("de")
    # The page's site has no Spanish.
    assert "Connected records" in _read("es")
    translation.deactivate()

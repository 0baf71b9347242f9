"""A site that a page of the documentation has its reader make."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def put_urls(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a list of URLs the site's."""

    def put(urlpatterns: list[Any]) -> None:
        module: Any = ModuleType("clinic_urls")
        module.urlpatterns = urlpatterns
        monkeypatch.setitem(sys.modules, "clinic_urls", module)
        settings.ROOT_URLCONF = "clinic_urls"

    return put


@pytest.fixture
def put_templates(settings: Any) -> Any:
    """Give the site templates by their names."""

    def put(**contents: str) -> None:
        (engine,) = settings.TEMPLATES
        templates = {f"{name}.html": text for name, text in contents.items()}
        loaders = [
            ("django.template.loaders.locmem.Loader", templates),
            "django.template.loaders.app_directories.Loader",
        ]
        options = {**engine["OPTIONS"], "loaders": loaders}
        settings.TEMPLATES = [
            {**engine, "DIRS": [], "APP_DIRS": False, "OPTIONS": options}
        ]

    return put

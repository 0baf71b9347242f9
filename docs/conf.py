"""Configuration of the documentation (make docs)."""

from __future__ import annotations

import sys
from pathlib import Path

import django
from django.conf import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from django_smart import __version__  # noqa: E402 - found through the line above

# Models can be documented from their docstrings only with an app registry.
if not settings.configured:
    import os

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()

project = "django_smart"
author = "the django_smart contributors"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx's name
release = __version__
version = ".".join(__version__.split(".")[:2])

# The docstrings have sections such as "Args:", which napoleon reads.
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "conformance_matrix",
    "codes",
    "internal_links",
    "model_fields",
    "quirk_table",
    "reference_anchors",
    "requirement_ids",
    "screenshots",
]
exclude_patterns = ["_build"]
default_role = "code"
nitpicky = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"

html_theme = "furo"
html_title = f"django_smart {__version__}"
html_show_sourcelink = False
html_copy_source = False

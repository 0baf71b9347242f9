"""How values are shown in the admin."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from django.utils.functional import Promise
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _

__all__ = ["EMPTY", "as_copyable", "as_json", "as_list", "as_scopes", "shorten"]

EMPTY = "–"


def as_copyable(value: str) -> SafeString:
    """*value* with a button that copies it (``admin.js``; hidden without scripts)."""
    if not value:
        return format_html("{}", EMPTY)
    return format_html(
        '<span class="smart-copy"><code class="smart-copy-value">{}</code> '
        '<button type="button" class="button smart-copy-button" data-done="{}" hidden>'
        "{}</button></span>",
        value,
        _("Copied"),
        _("Copy"),
    )


def as_json(value: Any) -> SafeString:
    """JSON, indented."""
    return format_html("<pre>{}</pre>", json.dumps(value, indent=2, sort_keys=True))


def as_list(items: Iterable[str | Promise]) -> SafeString | str:
    """A list, or a dash if there is nothing in it."""
    rows = format_html_join("", "<li>{}</li>", ((item,) for item in items))
    return format_html('<ul class="smart-list">{}</ul>', rows) if rows else EMPTY


def as_scopes(scope: str) -> SafeString | str:
    """A scope string, one scope a line."""
    rows = format_html_join(
        "", "<li><code>{}</code></li>", ((item,) for item in scope.split())
    )
    return format_html('<ul class="smart-list">{}</ul>', rows) if rows else EMPTY


def shorten(text: str) -> str:
    """*text* for a column of a list."""
    return Truncator(text).chars(48) or EMPTY

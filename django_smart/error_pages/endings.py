"""Why a page was closed, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = ["ENDINGS"]

ENDINGS: Mapping[str, StrOrPromise] = {
    "context_changed": _(
        "The EHR has changed to another patient. It was closed so that nothing is "
        "mixed up."
    ),
    "disconnected": _("The access it used was ended."),
    "ended_by_staff": _("The staff of this site ended it."),
    "idle": _("Nobody used it for a long time."),
    "lifetime": _("It was open for a long time."),
    "signed_out": _("You signed out."),
    "too_many_open": _(
        "Many were open in this browser, and this one had been left alone for longest."
    ),
    "user_changed": _("Another user signed in here."),
}
"""By the reason a launch ended with; what has no entry needs no further words."""

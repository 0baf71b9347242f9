"""An app of its own, for the one model that signing in by hand needs."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["SiteConfig"]


class SiteConfig(AppConfig):
    """Not named ``site``, which is a module of Python's."""

    name = "benchmarks.site"
    label = "bench_site"

"""Reads one record in a process of its own, which a test kills."""

from __future__ import annotations

import sys

import django


def main(grant_id: str, directory: str) -> None:
    """Read into files if there is a *directory*, or else into the database."""
    django.setup()

    from django.conf import settings

    from django_smart.contrib.records import sync_record
    from django_smart.contrib.records.sinks import ModelSink, NDJSONSink
    from django_smart.models import TokenGrant

    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
    grant = TokenGrant.objects.select_related("registration__server").get(pk=grant_id)
    sync_record(grant, NDJSONSink(directory) if directory else ModelSink())


if __name__ == "__main__":
    main(*sys.argv[1:])

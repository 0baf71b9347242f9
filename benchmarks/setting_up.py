"""Databases, rows and a browser for what is measured."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from benchmarks.stub import CLIENT_ID, CLIENT_SECRET, Stub

__all__ = [
    "LoginDriver",
    "configure",
    "configured",
    "drop_database",
    "make_database",
    "make_registration",
    "make_tables",
]

_SCOPE = "openid fhirUser launch/patient patient/*.rs"


def configure(
    *, database: str = "sqlite", name: str = "", stub: Stub | None = None, **extra: str
) -> None:
    """
    Set Django up, once in a process, with all tables.

    Args:
        database: ``sqlite``, ``postgresql`` or ``mariadb``.
        name: of a database that is there; empty for SQLite in memory.
        extra: further variables of :mod:`benchmarks.settings`, less their prefix.
    """
    values = {"DATABASE": database, "DATABASE_NAME": name} | extra
    if stub is not None:
        values["STUB"] = stub.origin
    os.environ |= {f"BENCH_{key}": value for key, value in values.items()}
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    import django

    django.setup()
    make_tables("default")


def make_tables(alias: str) -> None:
    """All tables, in the database *alias*."""
    from django.apps import apps
    from django.core.management import call_command
    from django.db import connections

    call_command("migrate", verbosity=0, database=alias)
    with connections[alias].schema_editor() as editor:
        for model in apps.get_app_config("bench_site").get_models():
            editor.create_model(model)


def make_database(database: str) -> str:
    """Make an empty database on a server; returns its name."""
    name = f"bench_{secrets.token_hex(4)}"
    _execute(database, f"CREATE DATABASE {name}")
    return name


def drop_database(database: str, name: str) -> None:
    """Take a database away again, whoever still is connected."""
    force = " WITH (FORCE)" if database == "postgresql" else ""
    _execute(database, f"DROP DATABASE {name}{force}")


def _execute(database: str, statement: str) -> None:
    if database == "postgresql":
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", user="postgres", autocommit=True
        ) as connection:
            connection.execute(statement)
        return
    import MySQLdb

    maria = MySQLdb.connect(host="127.0.0.1", user="root")
    try:
        maria.cursor().execute(statement)
    finally:
        maria.close()


@contextmanager
def configured(
    database: str, *, stub: Stub | None = None, **extra: str
) -> Iterator[str]:
    """:func:`configure` with a database of its own on a server, until the block ends."""
    name = make_database(database)
    try:
        configure(database=database, name=name, stub=stub, **extra)
        yield name
    finally:
        from django.db import connections

        connections.close_all()
        drop_database(database, name)


def make_registration(stub: Stub, **values: Any) -> Any:
    """This site's registration at the stub; *values* of its server as ``server__…``."""
    from django_smart.models import ClientRegistration, FHIRServer

    server_values = {
        name.removeprefix("server__"): values.pop(name)
        for name in list(values)
        if name.startswith("server__")
    }
    server = FHIRServer.objects.create(
        **{
            "slug": "stub",
            "name": "Stub",
            "base_url": stub.base_url,
            **server_values,
        }
    )
    return ClientRegistration.objects.create(
        server=server,
        **{
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "ehr_scope": f"launch {_SCOPE}",
            "standalone_scope": _SCOPE,
            "redirect_uri": "http://127.0.0.1/smart/callback/",
            **values,
        },
    )


class LoginDriver:
    """
    Somebody who signs in: from a site's first address to its callback's answer.

    Args:
        begin: path that redirects to the authorization endpoint.
        callback: path of the redirect URI.
        middleware: of the site; see ``MIDDLEWARES`` of the settings.
    """

    def __init__(self, begin: str, callback: str, *, middleware: str) -> None:
        from django.test import Client, override_settings

        from benchmarks import settings

        self._begin, self._callback = begin, callback
        self._client = Client
        with override_settings(MIDDLEWARE=settings.MIDDLEWARES[middleware]):
            client = Client()
            client.handler.load_middleware()
        self.handler = client.handler

    def browser(self) -> Any:
        """A browser without cookies."""
        browser = self._client(HTTP_HOST="127.0.0.1", HTTP_SEC_FETCH_SITE="same-origin")
        browser.handler = self.handler
        return browser

    def sign_in(self, browser: Any = None) -> Any:
        """One login; returns the last answer, a redirect."""
        browser = browser or self.browser()
        answer = browser.get(self._begin)
        assert answer.status_code == 302, answer.content
        query = parse_qs(urlsplit(answer["Location"]).query)
        answer = browser.get(
            self._callback,
            {
                "state": query["state"][0],
                "code": f"nonce-{query.get('nonce', [''])[0]}",
            },
        )
        assert answer.status_code == 302, answer.content
        return answer

    def run(self, number: int) -> None:
        """*number* logins, each in a browser of its own."""
        for _ in range(number):
            self.sign_in()

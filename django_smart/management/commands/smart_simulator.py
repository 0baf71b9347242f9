"""``manage.py smart_simulator``: an EHR to launch from, on this machine."""

from __future__ import annotations

import shlex
import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_smart.testing import EHRSimulator, RecordedRequest
from django_smart.testing.simulator.clients import AUTH_METHODS
from django_smart.testing.simulator.ehr import QUIRKS
from django_smart.testing.simulator.faults import FAULTS

_SITE = "http://127.0.0.1:8000/smart"
_DEMO_SECRET = "simulated-secret"  # noqa: S105 (opens synthetic data alone)
_SCOPE = "openid fhirUser patient/Patient.rs patient/Observation.rs offline_access"


class Command(BaseCommand):
    """
    Serve the simulated EHR until SIGINT or SIGTERM.

    It has a FHIR API, an authorization server, pages for people at ``/``, and, for
    tests in other processes, a JSON control API at ``/_control/``.
    """

    help = "Serve a simulated EHR: SMART App Launch, FHIR R4, synthetic patients."
    requires_system_checks = []  # it needs neither the site nor its database

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="localhost")
        parser.add_argument(
            "--port", type=int, default=8010, help="0 for any free port"
        )
        parser.add_argument(
            "--path", default="/fhir", help="path of the FHIR base (default: /fhir)"
        )
        parser.add_argument("--client-id", default="django-smart-demo")
        parser.add_argument(
            "--client-secret", help=f"default: {_DEMO_SECRET}, if one is needed"
        )
        parser.add_argument("--client-name", default="My app")
        parser.add_argument(
            "--auth-method", choices=AUTH_METHODS, default="client_secret_basic"
        )
        parser.add_argument(
            "--jwks-url",
            default=f"{_SITE}/jwks.json",
            help="URL where a private_key_jwt client publishes its keys",
        )
        parser.add_argument(
            "--redirect-uri",
            action="append",
            metavar="URL",
            help=f"can be repeated; default: {_SITE}/callback/",
        )
        parser.add_argument("--launch-url", default=f"{_SITE}/launch/", metavar="URL")
        parser.add_argument(
            "--access-token-lifetime", type=int, default=3600, metavar="SECONDS"
        )
        parser.add_argument(
            "--fault",
            action="append",
            default=[],
            metavar="NAME",
            help="fault to simulate; can be repeated",
        )
        parser.add_argument(
            "--quirk",
            action="append",
            default=[],
            choices=sorted(QUIRKS),
            metavar="NAME",
            help=f"quirk to simulate; can be repeated: {', '.join(sorted(QUIRKS))}",
        )
        parser.add_argument(
            "--list-faults", action="store_true", help="list the faults and exit"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["list_faults"]:
            self._list_faults()
            return
        ehr = self._build(options)
        stop = threading.Event()
        handlers = {
            number: signal.signal(number, lambda *_: stop.set())
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            with ehr.serve(options["host"], options["port"]) as origin:
                # First, or a request right after the greeting is not printed.
                ehr.on_request = self._log
                self._greet(ehr, origin, options)
                stop.wait()
        except OSError as exc:
            where = f"{options['host']}:{options['port']}"
            raise CommandError(f"Cannot listen on {where}: {exc.strerror}") from exc
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _list_faults(self) -> None:
        """One line each: name, where it strikes, what an app does, what it is."""
        width = max(map(len, FAULTS))
        exchange = max(len(fault.exchange) for fault in FAULTS.values())
        for fault in sorted(FAULTS.values(), key=lambda one: (one.exchange, one.name)):
            self.stdout.write(
                f"{fault.name:<{width}} {fault.exchange:<{exchange}} {fault.verdict:<9}"
                f"{fault.description}"
            )

    def _build(self, options: dict[str, Any]) -> EHRSimulator:
        path = "/" + options["path"].strip("/")
        ehr = EHRSimulator(
            base_url=f"http://{options['host']}{path}",
            access_token_lifetime=options["access_token_lifetime"],
            control=True,
        )
        method = options["auth_method"]
        secret = options["client_secret"]
        if secret is None and method.startswith("client_secret_"):
            secret = _DEMO_SECRET
        try:
            ehr.faults = options["fault"]
            ehr.quirks = options["quirk"]
            ehr.register_client(
                options["client_id"],
                client_secret=secret,
                auth_method=method,
                redirect_uris=options["redirect_uri"] or [f"{_SITE}/callback/"],
                launch_url=options["launch_url"],
                jwks_url=options["jwks_url"] if method == "private_key_jwt" else None,
                name=options["client_name"],
            )
        except ValueError as exc:
            raise CommandError(str(exc)) from exc
        return ehr

    def _greet(self, ehr: EHRSimulator, origin: str, options: dict[str, Any]) -> None:
        self.stdout.write(f"Simulated EHR: {origin}/")
        self.stdout.write(f"FHIR base URL: {ehr.base_url}")
        if options["verbosity"] > 0:
            self._explain(ehr)
        self.stdout.flush()

    def _explain(self, ehr: EHRSimulator) -> None:
        """How to register its clients; not for a site that has registered them."""
        for client in ehr.clients.values():
            words = [
                *("python", "manage.py", "smart_register"),
                *("--base-url", ehr.base_url),
                *("--client-id", client.client_id),
                *("--token-endpoint-auth-method", client.auth_method),
                *("--ehr-scope", f"launch {_SCOPE}"),
                *("--standalone-scope", f"launch/patient {_SCOPE}"),
            ]
            if client.client_secret is not None:
                words += ["--client-secret", client.client_secret]
            self.stdout.write(f"\nTo register {client.client_id} in your site:\n")
            self.stdout.write(f"  {shlex.join(words)}")
            self.stdout.write(f"  redirect URI: {', '.join(client.redirect_uris)}")
            self.stdout.write(f"  launch URL:   {client.launch_url}")
        self.stdout.write("\nStop with Ctrl+C.")

    def _log(self, request: RecordedRequest) -> None:
        """One line for each request; queries hold codes and states."""
        self.stdout.write(f"{request.status} {request.method} {request.path}")
        self.stdout.flush()

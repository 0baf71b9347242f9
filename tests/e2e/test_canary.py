"""
Canaries: nothing secret gets out, whatever happens and whoever writes about it.

Tokens, codes, states, verifiers, secrets and a patient's name go through launches,
refreshes and failures, with every logger at DEBUG and error reports on.  They are then
looked for, in every spelling, wherever anything was written.
"""

from __future__ import annotations

import base64
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from celery import current_app
from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from kombu.transport.memory import Channel

from django_smart import tasks
from django_smart.clients import fhir_client_for
from django_smart.contrib.style import get_style
from django_smart.exceptions import SMARTError
from django_smart.fhir.client import FHIRClient
from django_smart.grants.ending import revoke_pending
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    ServerState,
    SigningKey,
    TokenGrant,
)
from django_smart.servers.signing_keys import ensure_active_key
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.people import PATIENTS
from tests.e2e.canaries import Canaries, Everywhere, WatchedBrowser, spell
from tests.ehr import (
    CLIENT_ID,
    CLIENT_SECRET,
    PATIENT,
    REDIRECT_URI,
    SITE,
    get_callback,
    get_launch,
    start_ehr_launch,
)
from tests.factories import register_at, register_key_at
from tests.grants.working import refresh_grants
from tests.known import BY_POST
from tests.launches.forms import Form
from tests.processes import ExampleSite, wait_for
from tests.redaction.reporting import ADMINS, redacted_reports
from tests.spans import recording_spans

FAILING_REDIRECT_URI = f"{SITE}/failing-callback/"
EVERYTHING = "patient/Patient.rs patient/Observation.rs offline_access"
# One of each kind: refused by status, by form, by value, by signature and by the web.
LAUNCH_FAULTS = (
    "authorize_code_and_error",
    "authorize_error_markup",
    "authorize_long_code",
    "authorize_state_twice",
    "authorize_wrong_iss",
    "id_token_absent",
    "id_token_bad_signature",
    "id_token_expired",
    "id_token_hs256_secret",
    "id_token_wrong_nonce",
    "token_500",
    "token_array",
    "token_broken_access_token",
    "token_error_markup",
    "token_html_200",
    "token_invalid_grant",
    "token_not_json",
    "token_object_refresh_token",
    "token_path_patient",
    "token_redirect_302",
)
REFRESH_FAULTS = ("refresh_500", "refresh_not_json", "refresh_number_patient")
FHIR_FAULTS = ("fhir_404", "fhir_html_200", "fhir_next_other_origin", "fhir_wrong_id")


@pytest.fixture
def broker(settings: Any) -> Iterator[None]:
    """Tasks are put into messages, which stay where they are."""
    Channel.queues.clear()
    # Whichever app has the tasks: importing the example's makes it that one.  Celery
    # 5.4 prefers the setting; later versions the app's configuration.
    settings.CELERY_TASK_ALWAYS_EAGER = False
    current_app.conf.task_always_eager = False
    yield
    current_app.conf.task_always_eager = True
    Channel.queues.clear()


@pytest.mark.urls("tests.redaction.views")
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize("sessions", ["db", "cache", "signed_cookies"])
def test_nothing_secret_gets_out(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    settings: Any,
    sessions: str,
) -> None:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{sessions}"
    settings.ADMINS = ADMINS
    ehr.access_token_lifetime = 3600
    canaries = make_canaries()
    everywhere = Everywhere()
    with (
        canaries.watching_answers(ehr),
        everywhere.logging_everything(),
        redacted_reports(include_html=True),
        recording_spans() as spans,
    ):
        journey = Journey(ehr, everywhere, settings)
        journey.launch_and_use()
        if sessions == "db":
            journey.meet_faults()
        journey.fail_in_hooks()
        journey.go_by_form()
        journey.use_keys(canaries)
        journey.visit_admin()
        journey.leave()
    canaries.learn(ehr)
    assert canaries.names == KINDS
    places = everywhere.read() | {"spans": "\n".join(one.to_json() for one in spans)}
    for logger in ("django.db.backends", "django.request", "django_smart.launches"):
        assert logger in places["logs"]
    check(canaries, places)
    check_wire(canaries, ehr)
    # A form has what the address of a redirect has.
    (form,) = [form for each in everywhere.browsers for form in each.forms]
    assert canaries.find(form) == {"launch", "state"}


KINDS = {
    "access_token",
    "client_assertion",
    "client_secret",
    "code",
    "code_verifier",
    "id_token",
    "launch",
    "patient_name",
    "private_key",
    "refresh_token",
    "state",
}


def make_canaries() -> Canaries:
    """What is known beforehand; the rest is learned from the EHR."""
    canaries = Canaries(client_secret=CLIENT_SECRET)
    person = next(each for each in PATIENTS if each.patient_id == PATIENT)
    for name in (*person.given, person.family, person.mrn):
        canaries.add("patient_name", name)
    return canaries


def check(canaries: Canaries, places: dict[str, str]) -> None:
    """Each place has something in it, and no canary."""
    for place, text in places.items():
        assert text.strip(), f"nothing was found in the {place}: was it looked for?"
        if place == "pages":
            # The list of one's own connections shows whose records they are.
            text = re.sub(r'<h2 id="connection-\d+">.*?</h2>', "", text, flags=re.S)
        found = canaries.find(text)
        assert not found, f"{place}: {found}\n{show(canaries, text)}"


def show(canaries: Canaries, text: str) -> str:
    """Where it is, for whoever has to mend it."""
    lines = [line[:500] for line in text.splitlines() if canaries.find(line)]
    return "\n".join(lines[:10])


def check_wire(canaries: Canaries, ehr: EHRSimulator) -> None:
    """Secrets went to the EHR alone, and never in an address but the browser's."""
    assert ehr.requests_to("elsewhere") == []
    for request in ehr.requests:
        if request.exchange != "authorize":
            assert canaries.find(request.url) == set()


class Journey:
    """What people, programs and a bad EHR do with the site."""

    def __init__(
        self, ehr: EHRSimulator, everywhere: Everywhere, settings: Any
    ) -> None:
        self._ehr = ehr
        self._everywhere = everywhere
        self._settings = settings
        self._browser = everywhere.browser()
        ClientRegistration.objects.update(
            ehr_scope=f"launch openid fhirUser {EVERYTHING}",
            standalone_scope=f"launch/patient openid fhirUser {EVERYTHING}",
        )
        self._register(REDIRECT_URI)

    def launch_and_use(self) -> None:
        """An EHR launch, a connection, a refresh, FHIR, and reports of errors."""
        browser = self._browser
        opened = get_launch(self._open(browser))
        assert get_style(
            f"{self._ehr.origin}/smart-style.json",
            server=opened.registration.server,
            launch_id=opened.pk,
        )
        for path in ("fail/launch/", "fail/fhir/"):
            self._report(browser, f"/~{opened.key}/{path}")
        connection = self._everywhere.browser()
        url = connection.get("/smart/login/", {"server": "harbour"})["Location"]
        granted = get_launch(get_callback(connection, self._ehr.authorize(url))).grant
        assert granted is not None
        self._make_due()
        refresh_grants([granted.pk])
        granted.refresh_from_db()
        client = fhir_client_for(grant=granted)
        assert client.read("Patient", PATIENT)["id"] == PATIENT
        assert client.session.get(f"{self._ehr.base_url}/Patient/{PATIENT}").ok
        connection.get("/smart/connections/")

    def meet_faults(self) -> None:
        """Everything goes wrong in turn."""
        for fault in LAUNCH_FAULTS:
            self._ehr.faults.add(fault)
            response = self._open(self._everywhere.browser())
            assert response.status_code >= 400, fault
            self._ehr.faults.clear()
        grant = TokenGrant.objects.offline().active().order_by("pk").last()
        assert grant is not None
        for fault in REFRESH_FAULTS:
            self._ehr.faults.add(fault)
            self._make_due()
            refresh_grants([grant.pk])
            self._ehr.faults.clear()
        # It is left alone after these, also by revocations.
        ServerState.objects.update(paused_until=None)
        opened = get_launch(self._open(self._everywhere.browser()))
        client = fhir_client_for(grant=opened.grant)
        for fault in FHIR_FAULTS:
            self._ehr.faults.add(fault)
            with pytest.raises(SMARTError):
                _search_and_read(client)
            self._ehr.faults.clear()

    def fail_in_hooks(self) -> None:
        """The site's own code fails in the middle of a callback."""
        self._register(FAILING_REDIRECT_URI)
        for is_debug in (False, True):
            self._settings.DEBUG = is_debug
            response = self._open(self._everywhere.browser())
            assert response.status_code == 500
        self._settings.DEBUG = False
        self._register(REDIRECT_URI)
        # Callbacks that belong to nothing, or come twice.
        browser = self._everywhere.browser()
        callback = self._ehr.authorize(start_ehr_launch(browser, self._ehr))
        assert get_callback(self._everywhere.browser(), callback).status_code == 403
        callback = self._ehr.authorize(start_ehr_launch(browser, self._ehr))
        assert get_callback(browser, callback).status_code == 302
        assert get_callback(browser, callback).status_code == 409

    def go_by_form(self) -> None:
        """The authorization request is a page of this site, with a form."""
        FHIRServer.objects.update(authorization_parameters=BY_POST)
        browser = self._everywhere.browser()
        launch_id = self._ehr.create_launch(CLIENT_ID, patient=PATIENT)
        query = {"iss": self._ehr.base_url, "launch": launch_id}
        form = Form(browser.get("/smart/launch/", query).content)
        callback = self._ehr.authorize(form.action, form=form.inputs)
        assert get_launch(get_callback(browser, callback)).status == "open"
        FHIRServer.objects.update(authorization_parameters={})

    def use_keys(self, canaries: Canaries) -> None:
        """The same with a key in place of the secret."""
        key = ensure_active_key("RS384")
        lines = SigningKey.objects.get(pk=key.pk).private_key.splitlines()
        canaries.add("private_key", lines[len(lines) // 2])
        register_key_at(self._ehr)
        ClientRegistration.objects.update(token_endpoint_auth_method="private_key_jwt")
        opened = get_launch(self._open(self._everywhere.browser()))
        self._make_due()
        assert opened.grant is not None
        refresh_grants([opened.grant.pk])

    def visit_admin(self) -> None:
        """A superuser looks at everything there is."""
        browser = self._everywhere.browser()
        user = get_user_model().objects.create_superuser("operator")
        browser.force_login(user)
        for model in apps.get_app_config("django_smart").get_models():
            if not admin.site.is_registered(model):
                continue
            name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
            assert browser.get(reverse(f"{name}_changelist")).status_code == 200
            for row in model._default_manager.all()[:5]:
                for page in ("change", "history", "delete"):
                    url = reverse(f"{name}_{page}", args=[row.pk])
                    assert browser.get(url).status_code in {200, 403}

    def leave(self) -> None:
        """Sign-out and disconnection, and what the tick and a worker make of them."""
        self._browser.post("/smart/logout/")
        self._make_due()
        tasks.refresh_due_grants()
        # A patient with the offline grants.
        for grant in TokenGrant.objects.offline().active().filter(user__isnull=False):
            browser = self._everywhere.browser()
            browser.force_login(grant.user)  # type: ignore[arg-type]  # it has one
            browser.post("/smart/connections/", {"grant": grant.pk})
        assert revoke_pending()

    def _open(self, browser: Client) -> Any:
        return get_callback(
            browser, self._ehr.authorize(start_ehr_launch(browser, self._ehr))
        )

    def _report(self, browser: WatchedBrowser, url: str) -> None:
        """By mail, and as a page."""
        for is_debug in (False, True):
            self._settings.DEBUG = is_debug
            assert browser.get(url).status_code == 500
        self._settings.DEBUG = False
        assert "Traceback" in browser.pages[-1]

    def _register(self, redirect_uri: str) -> None:
        ClientRegistration.objects.update(redirect_uri=redirect_uri)
        register_at(self._ehr, redirect_uri)

    @staticmethod
    def _make_due() -> None:
        now = timezone.now()
        TokenGrant.objects.active().update(
            expires_at=now, refresh_due_at=now, lease_expires_at=None
        )


def _search_and_read(client: FHIRClient) -> None:
    """Both, as some faults are of the one and some of the other."""
    list(client.search("Observation", patient=PATIENT, _count=2))
    client.read("Patient", PATIENT)


# The servers' own logs


@pytest.fixture(scope="module")
def real_ehr() -> Iterator[EHRSimulator]:
    """The EHR at ``localhost``, on a port of its own."""
    ehr = EHRSimulator("https://ehr.example.org/r4/fhir")
    with ehr.serve():
        yield ehr


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, real_ehr: EHRSimulator
) -> ExampleSite:
    """The example, registered at the EHR, with everything logged."""
    site = ExampleSite(tmp_path_factory.mktemp("site"), LOG_LEVEL="DEBUG")
    scope = f"launch/patient openid fhirUser {EVERYTHING}"
    site.register_at(real_ehr, "--slug", "harbour", "--standalone-scope", scope)
    return site


@pytest.mark.process
@pytest.mark.parametrize("server", ["runserver", "gunicorn"])
def test_nothing_secret_is_in_what_the_example_writes(
    real_ehr: EHRSimulator, site: ExampleSite, server: str
) -> None:
    canaries = make_canaries()
    running = site.web() if server == "runserver" else site.gunicorn()
    with canaries.watching_answers(real_ehr), running as log:
        walk_through(site, real_ehr)
    text = log.read_text()
    # One of each line was written, without its query.
    for line in ("GET /smart/login/?server=harbour", "/patient/ HTTP/1.1", "POST "):
        assert line in text
    assert text.count("/smart/callback/?[hidden]") >= 3
    assert "Authorization: Bearer" not in text
    canaries.learn(real_ehr)
    assert {"code", "state", "access_token", "code_verifier"} <= canaries.names
    assert canaries.find(text) == set(), show(canaries, text)
    for file in site.folder.joinpath("var").rglob("*"):
        if file.is_file():
            content = file.read_bytes().decode("latin-1")
            assert canaries.find(content) == set(), file


def walk_through(site: ExampleSite, ehr: EHRSimulator) -> None:
    """A launch, and what goes wrong with one, by plain HTTP."""
    with requests.Session() as browser:
        browser.headers["Sec-Fetch-Site"] = "same-origin"
        login = f"{site.url}/smart/login/?server=harbour"
        started = browser.get(login, allow_redirects=False, timeout=60)
        callback = ehr.authorize(started.headers["Location"], patient=PATIENT)
        opened = browser.get(callback, timeout=60)
        assert PATIENTS[0].family in opened.text
        assert browser.get(callback, timeout=60).status_code == 409
        assert requests.get(callback, timeout=60).status_code == 409
        # Elsewhere, without the slash, as a form, quoted in another address.
        for url in (
            callback.replace("/smart/callback/", "/no-such-page/"),
            callback.replace("/callback/?", "/callback?"),
            f"{site.url}/?next={quote(callback, safe='')}",
        ):
            browser.get(url, timeout=60, headers={"Referer": callback})
        browser.post(callback, timeout=60)
        requests.get(
            site.url, headers={"Authorization": f"Bearer {_last(ehr)}"}, timeout=60
        )
        # What is no HTTP is logged as it came.
        with socket.create_connection(("127.0.0.1", site.port), 20) as connection:
            target = callback.removeprefix(site.url)
            connection.sendall(f"GET {target} HTTP/1.1 and more\r\n\r\n".encode())
            connection.recv(1000)


def _last(ehr: EHRSimulator) -> str:
    return list(ehr.store.access_tokens)[-1]


@pytest.mark.process
def test_nothing_secret_is_in_what_a_worker_writes_or_is_sent(
    real_ehr: EHRSimulator, site: ExampleSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So short that the first tick of beat finds every grant due.
    monkeypatch.setattr(real_ehr, "access_token_lifetime", 10)
    canaries = make_canaries()
    with canaries.watching_answers(real_ehr):
        with site.web():
            for person in PATIENTS[:2]:
                connect_and_leave(site, real_ehr, person.patient_id, ends=False)
            connect_and_leave(site, real_ehr, PATIENTS[2].patient_id, ends=True)
        # What waits for a worker.
        waiting = site.folder.glob("var/celery/messages/*")
        messages = "".join(read_message(each) for each in waiting)
        # Not just once: a job that finds an expired token sends a second request.
        real_ehr.faults = {"refresh_503", "revoke_invalid_request"}
        with site.worker("DEBUG") as log:

            def wait_for_line(line: str) -> None:
                wait_for(lambda: line in log.read_text(), what=line)

            wait_for_line("has no new access token: token_server_error")
            # Before anything else: each further failure doubles the wait for a retry.
            real_ehr.faults.discard("refresh_503")
            wait_for_line(" refreshed")
            wait_for_line("its revocation was refused")
    real_ehr.faults.clear()
    text = log.read_text()
    for line in (
        "DEBUG/MainProcess",
        "DEBUG django.db.backends",
        "DEBUG django_smart.transport: POST to localhost: 200",
    ):
        assert line in text
    canaries.learn(real_ehr)
    assert {"access_token", "refresh_token", "patient_name"} <= canaries.names
    for place in (text, messages):
        assert canaries.find(place) == set(), show(canaries, place)


def connect_and_leave(
    site: ExampleSite, ehr: EHRSimulator, patient: str, *, ends: bool
) -> None:
    """Connect one patient's records; disconnect them too, or go away."""
    with requests.Session() as browser:
        browser.headers["Sec-Fetch-Site"] = "same-origin"
        login = f"{site.url}/smart/login/?server=harbour"
        started = browser.get(login, allow_redirects=False, timeout=60)
        callback = ehr.authorize(started.headers["Location"], patient=patient)
        assert browser.get(callback, timeout=60).ok
        if ends:
            url = f"{site.url}/smart/connections/"
            page = browser.get(url, timeout=60).text
            form = {
                "csrfmiddlewaretoken": browser.cookies["csrftoken"],
                "grant": re.findall(r'name="grant" value="(\d+)"', page)[-1],
            }
            browser.post(url, form, timeout=60, headers={"Referer": url})


def read_message(path: Path) -> str:
    """A message of the broker that keeps files, as it is and with its body unpacked."""
    text = path.read_text()
    return text + base64.b64decode(json.loads(text)["body"]).decode()


# The test itself


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
def test_canaries_are_found_in_every_spelling(before: str) -> None:
    secret = CLIENT_SECRET
    canaries = Canaries(secret=secret)
    packed = base64.b64encode(f"{before}{secret}{before}".encode()).decode()
    for text in (
        f"{before}{secret}",
        quote(secret),
        json.dumps({"a": secret}),
        packed,
        packed.replace("+", "-").replace("/", "_").rstrip("="),
    ):
        assert canaries.find(f"… {text} …") == {"secret"}
    assert canaries.find("nothing of it: a secret, 100 %") == set()
    assert all(len(spelling) > 10 for spelling in spell(secret))

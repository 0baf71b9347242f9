"""
The pages on vendors, followed by a new operator.

Each command of a page is run as it is written, against simulated servers in the shape
that the vendor publishes (``tests/vendors.json``); what it prints is entered
in the vendor's form, and every launch of the page then succeeds.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from django.core.management import call_command

from django_smart.contrib.doctor import examine_server
from django_smart.diagnoses import Severity
from django_smart.models import ClientRegistration, FHIRServer, Launch, SigningKey
from django_smart.servers.presets import PRESETS
from tests.docs.blocks import DOCS, read_blocks, read_section
from tests.ehr import get_callback, get_launch, make_browser
from tests.known import PATIENT, SITE
from tests.vendors import VENDORS, VendorEHR, serving

_PAGES = {
    FHIRServer.Preset.EPIC: "how-to/register-epic.rst",
    FHIRServer.Preset.ORACLE_HEALTH: "how-to/register-oracle-health.rst",
    FHIRServer.Preset.ATHENAHEALTH: "how-to/register-athenahealth.rst",
    FHIRServer.Preset.ECLINICALWORKS: "how-to/register-eclinicalworks.rst",
    FHIRServer.Preset.MEDITECH: "how-to/register-meditech.rst",
    FHIRServer.Preset.MEDPLUM: "how-to/register-medplum.rst",
    FHIRServer.Preset.OPENEMR: "how-to/register-openemr.rst",
    FHIRServer.Preset.NEXTGEN: "how-to/register-nextgen.rst",
    FHIRServer.Preset.VERADIGM: "how-to/register-veradigm.rst",
    FHIRServer.Preset.SMART_LAUNCHER: "how-to/smart-launcher.rst",
}
# Their SMART configurations are not known in full, so nothing can answer for them.
_BEHIND = "how-to/register-behind-an-authorization-server.rst"
_WITHOUT_CONFIGURATION = {
    FHIRServer.Preset.BLUE_BUTTON: "how-to/register-blue-button.rst",
    FHIRServer.Preset.VA_LIGHTHOUSE: "how-to/register-va-lighthouse.rst",
    FHIRServer.Preset.KEYCLOAK: _BEHIND,
    FHIRServer.Preset.SPRING: _BEHIND,
    FHIRServer.Preset.ENTRA: _BEHIND,
}


def test_every_preset_has_a_page_and_a_published_one_a_fixture():
    assert {*_PAGES, *_WITHOUT_CONFIGURATION} == set(PRESETS)
    assert {each["preset"] for each in VENDORS} == set(_PAGES)


@pytest.mark.django_db
@pytest.mark.parametrize(("preset", "page"), _WITHOUT_CONFIGURATION.items())
def test_whoever_follows_the_page_registers_with_the_preset(
    preset, page, settings, monkeypatch
):
    settings.SMART_SITE_URL = SITE
    # A page of this site, which the doctor need not look up elsewhere.
    settings.SMART_LAUNCH_REDIRECT_URL = "/admin/"
    text = (DOCS / page).read_text(encoding="utf-8")
    *registering, (*_, slug) = _commands(page)
    for words in registering:
        if "--client-secret-env" in words:
            variable = words[words.index("--client-secret-env") + 1]
            monkeypatch.setenv(variable, "of the vendor")
        out = io.StringIO()
        call_command(*words[2:], "--offline", stdout=out, stderr=io.StringIO())
        printed = json.loads(out.getvalue())
        if ClientRegistration.objects.count() == 1:
            assert printed["slug"] == slug
            assert f"``{printed['redirect_uri']}``" in text
    server = FHIRServer.objects.get(preset=preset)
    assert server.quirks.as_json() == PRESETS[preset]


class _Operator:
    """Somebody who follows a page, with the vendor's form in another window."""

    def __init__(self, page: str, ehrs: dict[str, VendorEHR], environ: Any) -> None:
        self._ehrs = ehrs
        self._environ = environ
        text = (DOCS / page).read_text(encoding="utf-8")
        self._text = text
        self._shown = {line.strip() for line in text.splitlines()}
        self._shown.update(re.findall(r"``(\S+)``", text))
        self.registered: dict[int, dict[str, str]] = {}

    def run(self, words: list[str]) -> None:
        """Type one command, and do what its answer asks for."""
        assert words[:2] == ["python", "manage.py"]
        command, *options = words[2:]
        if "--from" in options:
            self._register_list()
        elif command == "smart_register":
            self._register(options)
        elif command == "smart_doctor":
            self._consult(options)
        else:
            call_command(command, *options, stdout=io.StringIO())

    def _register(self, options: list[str]) -> None:
        if "--client-secret-env" in options:
            variable = options[options.index("--client-secret-env") + 1]
            self._environ.setenv(variable, f"a+secret of {variable}")
        out, remarks = io.StringIO(), io.StringIO()
        call_command("smart_register", *options, stdout=out, stderr=remarks)
        assert remarks.getvalue() == ""
        printed: dict[str, str] = json.loads(out.getvalue())
        registration = ClientRegistration.objects.latest("updated_at")
        registration.full_clean()
        self.registered[registration.pk] = printed
        self._fill_in_the_form(registration, printed)
        # The page shows what the form asks for, as it is printed.
        if registration.token_endpoint_auth_method != "none":
            assert printed["redirect_uri"] in self._shown
        if registration.ehr_scope:
            assert printed["launch_url"] in self._shown

    def _register_list(self) -> None:
        """The file of the page; its servers are examples, which nothing answers for."""
        (block,) = re.findall(r"code-block:: json\n\n((?: +.*\n)+)", self._text)
        self._environ.setattr("sys.stdin", io.StringIO(block))
        out = io.StringIO()
        call_command("smart_register", "--from", "-", stdout=out, stderr=io.StringIO())
        slugs = [each["slug"] for each in json.loads(out.getvalue())]
        assert len(slugs) == len(set(slugs)) == block.count("base_url")
        examples = FHIRServer.objects.filter(slug__in=slugs)
        ClientRegistration.objects.filter(server__in=examples).delete()
        examples.delete()

    def _fill_in_the_form(
        self, registration: ClientRegistration, printed: dict[str, str]
    ) -> None:
        method = registration.token_endpoint_auth_method
        if registration.uses_private_key:
            assert printed["jwks_url"] in self._shown
        variable = registration.client_secret_env
        ehr = self._get_ehr(registration)
        known = ehr.clients.get(registration.client_id)
        ehr.register_client(
            registration.client_id,
            auth_method=method,
            client_secret=f"a+secret of {variable}" if variable else None,
            jwks=SigningKey.objects.as_jwks() if method == "private_key_jwt" else None,
            redirect_uris=[
                *(known.redirect_uris if known else ()),
                printed["redirect_uri"],
            ],
            launch_url=printed["launch_url"],
        )

    def _consult(self, slugs: list[str]) -> None:
        """Only what is found at the servers is about the page."""
        assert slugs
        for slug in slugs:
            findings = examine_server(FHIRServer.objects.get(slug=slug))
            assert [f for f in findings if f.severity != Severity.NOTE] == []

    def launch(self) -> Iterator[Launch]:
        """Open the site in every way that the page has registered."""
        for number, printed in self.registered.items():
            registration = ClientRegistration.objects.get(pk=number)
            if registration.ehr_scope:
                yield self._open_from_chart(registration, printed["launch_url"])
            if registration.standalone_scope:
                yield self._connect(registration, printed["login_url"])

    def _open_from_chart(self, registration: ClientRegistration, url: str) -> Launch:
        ehr, browser = self._get_ehr(registration), make_browser()
        iss, quirks = ehr.base_url, ehr.quirks
        if registration.server.preset == FHIRServer.Preset.MEDPLUM:
            # As its documentation says.
            iss, ehr.quirks = f"{iss}/", ["aud_slash"]
        launch_id = ehr.create_launch(registration.client_id, patient=PATIENT)
        parts = urlsplit(url)
        query = {**dict(parse_qsl(parts.query)), "iss": iss, "launch": launch_id}
        sent = browser.get(parts.path, query)
        assert sent.status_code == 302, sent.content
        opened = get_launch(get_callback(browser, ehr.authorize(sent["Location"])))
        ehr.quirks = quirks
        return opened

    def _connect(self, registration: ClientRegistration, url: str) -> Launch:
        ehr, browser = self._get_ehr(registration), make_browser()
        parts = urlsplit(url)
        sent = browser.post(parts.path, dict(parse_qsl(parts.query)))
        assert sent.status_code == 302, sent.content
        return get_launch(get_callback(browser, ehr.authorize(sent["Location"])))

    def _get_ehr(self, registration: ClientRegistration) -> VendorEHR:
        return self._ehrs[registration.server.base_url]


@pytest.mark.django_db
@pytest.mark.parametrize(("preset", "page"), _PAGES.items())
def test_whoever_follows_the_page_can_launch(preset, page, settings, monkeypatch):
    settings.SMART_SITE_URL = SITE
    # A page of this site, which the doctor need not look up elsewhere.
    settings.SMART_LAUNCH_REDIRECT_URL = "/admin/"
    with serving(preset) as ehrs:
        operator = _Operator(page, ehrs, monkeypatch)
        for words in _commands(page):
            operator.run(words)
        launches = list(operator.launch())
    servers = FHIRServer.objects.all()
    assert {each.base_url for each in servers} == set(ehrs)
    assert all(each.preset == preset and not each.state.moved for each in servers)
    assert {each.registration_id for each in launches} == set(operator.registered)
    for launch in launches:
        assert launch.status == Launch.Status.OPEN
        assert launch.context["patient"]
        assert launch.user is not None


_ALL = sorted({*_PAGES.values(), *_WITHOUT_CONFIGURATION.values()})


@pytest.mark.parametrize("page", _ALL)
def test_page_lists_its_sources_with_dates_and_what_was_not_checked(page):
    read, _, rest = read_section(page, "Sources").partition("\nNot checked: ")
    assert re.search(r"^Read on \d{4}-\d\d-\d\d", read, re.MULTILINE)
    assert re.search(r"^- .*https://", read, re.MULTILINE)
    assert rest


def _commands(page: str) -> list[list[str]]:
    blocks = read_blocks(page)
    commands = [words for block in blocks for words in block.commands]
    return [words for words in commands if words[0] != "docker"]

"""The page on servers that depart from the specification."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from django.core.management import call_command

from django_smart.models import FHIRServer, Launch
from django_smart.protocol.quirks import QUIRKS
from django_smart.servers.signing_keys import ensure_active_key
from django_smart.testing import EHRSimulator
from tests.docs.blocks import DOCS, read_blocks
from tests.ehr import PATIENT, get_callback, make_browser, start_login
from tests.factories import make_registration, register_at, register_key_at

PAGE = "how-to/odd-servers.rst"


@pytest.mark.django_db
def test_column_is_set_and_its_quirk_simulated(registration):
    command, test, _ = read_blocks(PAGE)
    ((_, _, *words),) = command.commands
    words[words.index("--base-url") + 1] = registration.server.base_url
    call_command(*words, stdout=io.StringIO())
    assert FHIRServer.objects.get().quirks.aud_rule == "base_url"
    ehr = EHRSimulator()
    exec(str(test.code), {"ehr": ehr})
    assert ehr.quirks


# What each odd server wants, where its launches show it.
_WANTED: dict[str, Any] = {
    "aud_rule": "base_url",
    "basic_credentials": "form_encoded",
    "client_id_with_assertion": True,
    "context_in_access_token": True,
    "patient_from_fhir_user": True,
}


def _make_odd(ehr: EHRSimulator, quirk: str) -> None:
    """Register this site at a server that wants *quirk*."""
    values: dict[str, Any] = {}
    if quirk == "aud_rule":
        values["server__base_url"] = f"{ehr.base_url}/"
    elif quirk == "basic_credentials":
        values["client_secret"] = "s3:cr/et+ %&="
        register_at(ehr, client_secret=values["client_secret"])
    elif quirk == "client_id_with_assertion":
        ensure_active_key("RS384")
        register_key_at(ehr)
        values = {"token_endpoint_auth_method": "private_key_jwt", "client_secret": ""}
    make_registration(**values)
    ehr.quirks = [QUIRKS[quirk].simulated]


def _find_patient(ehr: EHRSimulator) -> str:
    """Return whose record a launch is about; empty if it does not open."""
    url = start_login(browser := make_browser())
    answer = ehr.authorize(url, user=f"Patient/{PATIENT}")
    if get_callback(browser, answer).status_code != 302:
        return ""
    grant = Launch.objects.latest("pk").grant
    return grant.patient_id if grant else ""


@pytest.mark.django_db
@pytest.mark.parametrize("quirk", _WANTED)
def test_odd_server_launches_with_its_quirk_and_not_without(
    ehr: EHRSimulator, quirk: str
) -> None:
    _make_odd(ehr, quirk)
    assert _find_patient(ehr) == ""
    FHIRServer.objects.update(quirks={quirk: _WANTED[quirk]})
    assert _find_patient(ehr)


def test_every_simulated_quirk_is_launched() -> None:
    simulated = {name for name, quirk in QUIRKS.items() if quirk.simulated}
    # No launch revokes, which this one is about.
    assert simulated - {"assertion_audience"} == _WANTED.keys()


def test_fields_of_the_page_exist_and_its_overrides_are_valid():
    text = (DOCS / PAGE).read_text(encoding="utf-8")
    names = {field.name for field in FHIRServer._meta.concrete_fields}
    assert set(re.findall(r":Field: ``(\w+)``", text)) <= names
    pair = r":Quirk: ``(\w+)``\n(?:    :Simulated: ``(\w+)``)?"
    for name, simulated in re.findall(pair, text):
        assert simulated == QUIRKS[name].simulated
    shown = re.search(r'^ +(\{"code_challenge.*\})$', text, re.MULTILINE)
    assert shown is not None
    FHIRServer(overrides=json.loads(shown[1])).clean_fields(
        exclude=names - {"overrides"}
    )

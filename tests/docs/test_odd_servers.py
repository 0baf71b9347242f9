"""The page on servers that depart from the specification."""

from __future__ import annotations

import io
import json
import re

import pytest
from django.core.management import call_command

from django_smart.models import FHIRServer
from django_smart.protocol.quirks import QUIRKS
from django_smart.testing import EHRSimulator
from tests.docs.blocks import DOCS, read_blocks

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

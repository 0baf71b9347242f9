"""What the page about frames says to type."""

from __future__ import annotations

import pytest
from django.core.management import call_command

from django_smart.models import FHIRServer, Launch
from django_smart.testing import EHRSimulator
from tests.docs.blocks import read_blocks
from tests.ehr import PATIENT, make_browser
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

_PAGE = "how-to/embed-in-a-frame.rst"


def test_commands_say_who_may_embed_the_site():
    allow, window, _ = read_blocks(_PAGE)
    arguments = allow.commands[0]
    named = dict(zip(arguments[3:7:2], arguments[4:8:2], strict=True))
    make_registration(
        server__base_url=named["--base-url"], client_id=named["--client-id"]
    )
    call_command(*allow.commands[0][2:])
    server = FHIRServer.objects.get()
    assert server.frame_origins == ["https://ehr.hospital.example"]
    assert server.quirks.authorize_in_frame
    call_command(*window.commands[0][2:])
    assert not FHIRServer.objects.get().quirks.authorize_in_frame


def test_client_can_be_a_frame(ehr: EHRSimulator) -> None:
    make_registration(server__frame_origins=["https://ehr.example.org"])
    code = read_blocks(_PAGE)[2].code
    launch_id = ehr.create_launch("growth-chart", patient=PATIENT)
    names = {"client": make_browser(), "ehr": ehr, "launch_id": launch_id}
    exec(code, names)  # the first look at the cookies
    exec(code, names)
    assert names["response"].status_code == 302  # type: ignore[attr-defined]
    assert Launch.objects.get().is_framed is True

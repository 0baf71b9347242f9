"""The page about patients who come back: its view, its list and its form."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.urls import include, path

from django_smart.models import ClientRegistration
from django_smart.testing import EHRSimulator
from django_smart.testing.client import SMARTClient
from tests.docs.blocks import do, execute, read_blocks
from tests.ehr import connect, make_browser
from tests.factories import make_user

pytestmark = pytest.mark.django_db

OTHER = "1c6a5a3e-4d2b-4c8e-9a70-0f5b7d1e9b11"


def test_page(
    ehr: EHRSimulator, put_urls: Any, put_templates: Any, monkeypatch: Any
) -> None:
    command, view, page, form, test = read_blocks(
        "how-to/when-a-patient-comes-back.rst"
    )
    ((*words,),) = command.commands
    monkeypatch.setenv("EHR_SECRET", "not-a-secret")
    # The page names no real EHR.
    words[words.index("--base-url") + 1] = ehr.base_url
    do([*words, "--offline", "--slug", "harbour"])
    ClientRegistration.objects.update(
        redirect_uri="https://app.example.org/smart/callback/"
    )
    scope = ClientRegistration.objects.get().standalone_scope
    ehr.register_client(
        "my-app",
        client_secret="not-a-secret",
        redirect_uris=["https://app.example.org/smart/callback/"],
    )
    assert "offline_access" in scope
    names = execute(view, page)
    put_urls(
        [
            path("medications/", names["medications"], name="medications"),
            path("my-records/", names["my_records"]),
            path("smart/", include("django_smart.urls")),
        ]
    )
    put_templates(medications="{{ requests|length }} found", my_records=form.code)
    pat, browser = make_user("pat"), make_browser()
    browser.force_login(pat)
    shown = make_browser()
    smart_client = SMARTClient(ClientRegistration.objects.get(), ehr)
    smart_client.force_login(pat)
    # Connects one record, before there is a second.
    execute(test)["test_patient_comes_back"](shown, smart_client)
    connect(browser, ehr, user=f"Patient/{OTHER}")
    text = shown.get("/my-records/").content.decode()
    assert "Marisol Jean Quillfeather (" in text
    grants = re.findall(r'name="grant" value="(\d+)"', text)
    assert len(grants) == 2
    (url,) = set(re.findall(r'action="([^"]+)"', text))
    opened = shown.post(url, {"grant": grants[0], "next": "/medications/"})
    assert opened["Location"].endswith("/medications/")
    assert "found" in shown.get(opened["Location"]).content.decode()

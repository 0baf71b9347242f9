"""Basic credentials, raw or form-encoded: found out, and never on a guess."""

from __future__ import annotations

from typing import Any

import pytest

from django_smart.contrib.doctor import Finding, examine
from django_smart.models import FHIRServer
from tests.ehr import CLIENT_ID, REDIRECT_URI

OTHER = {"raw": "form_encoded", "form_encoded": "raw"}
SECRET = "s3:cr/et+ %&="


def examine_world(world: Any) -> list[Finding]:
    return examine([FHIRServer.objects.get()])


def set_secret(world: Any, secret: str) -> None:
    world.ehr.register_client(
        CLIENT_ID, client_secret=secret, redirect_uris=[REDIRECT_URI]
    )
    world.registration.client_secret = secret
    world.registration.save()


@pytest.mark.parametrize("taken", OTHER)
def test_other_encoding_is_tried_once_and_the_column_named(
    world: Any, taken: str
) -> None:
    set_secret(world, SECRET)
    world.ehr.quirks = [f"basic_{taken}"]
    world.set_server(basic_credentials=OTHER[taken])
    found = {each.code: each for each in examine_world(world)}
    assert f"to {taken}" in (found["basic_encoding_wrong"].fix)
    world.set_server(basic_credentials=taken)
    assert examine_world(world) == []


def test_wrong_secret_is_no_wrong_encoding(world: Any) -> None:
    world.registration.client_secret = "not : the secret"
    world.registration.save()
    codes = {each.code for each in examine_world(world)}
    assert "credentials_refused" in codes
    assert "basic_encoding_wrong" not in codes


def test_secret_that_encodes_to_itself_is_asked_about_once(world: Any) -> None:
    set_secret(world, "plain")
    world.ehr.clear_requests()
    examine_world(world)
    # With a code that nobody gave, as this client and as one that does not exist.
    assert len(world.ehr.requests_to("token")) == 2

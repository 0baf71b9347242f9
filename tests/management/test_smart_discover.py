"""``smart_discover``: what servers say, stored and told."""

from __future__ import annotations

import pytest
from django.core.management import CommandError

from django_smart.models import FHIRServer, ServerState
from tests.answers import answer
from tests.factories import make_registration, make_server
from tests.management.running import run

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("which", ["harbour", "--all"])
def test_configuration_and_keys_are_stored_and_told(registration, which):
    ran = run("smart_discover", which)
    server = FHIRServer.objects.get()
    assert server.state.configuration is not None
    assert server.state.jwks is not None
    assert server.state.jwks_fetched_at is not None
    assert server.state.issuer in ran.out
    lines = ran.out.splitlines()
    assert lines[0] == f"harbour: Harbour Hospital, {server.base_url}"
    capabilities = ", ".join(sorted(server.state.configuration["capabilities"]))
    assert f"  capabilities: {capabilities}" in lines
    assert "  code_challenge_methods_supported: S256" in lines
    assert f"  token_endpoint: {server.state.configuration['token_endpoint']}" in lines
    assert f"  issuer: {server.state.issuer}" in lines


def test_members_that_are_ignored_are_named(registration):
    FHIRServer.objects.update(overrides={"management_endpoint": 7})
    ran = run("smart_discover", "harbour")
    code = "discovery_member_ignored"
    line = f"  {code}: management_endpoint is not a string."
    assert line in ran.out.splitlines()


def test_server_has_no_say_in_the_terminal(registration, ehr):
    named = "\x1b]0;owned\x07\nharbour: no problems"
    answer(ehr, "smart-configuration", code_challenge_methods_supported=["S256", named])
    ran = run("smart_discover", "harbour")
    assert "\x1b" not in ran.out
    shown = r"'\x1b]0;owned\x07\nharbour: no problems'"
    line = f"  code_challenge_methods_supported: {shown}, S256"
    assert line in ran.out.splitlines()


def test_it_asks_again_although_what_is_stored_is_fresh(registration, ehr):
    run("smart_discover", "harbour")
    before = len(ehr.requests)
    run("smart_discover", "harbour")
    assert len(ehr.requests) == before + 2


def test_one_failure_among_several_is_told_and_the_others_are_read(registration, ehr):
    make_server(slug="absent", name="Absent", base_url="https://ehr.example.org/absent")
    with pytest.raises(CommandError, match=r"1 of 2 servers failed"):
        run("smart_discover", "--all")
    assert FHIRServer.objects.get(slug="harbour").state.configuration is not None
    assert FHIRServer.objects.get(slug="absent").state.configuration is None


def test_failure_leaves_what_is_stored(registration, ehr):
    run("smart_discover", "harbour")
    stored = FHIRServer.objects.values().get()
    ehr.faults = ["discovery_not_json"]
    with pytest.raises(CommandError, match=r"1 of 1 servers failed"):
        run("smart_discover", "harbour")
    assert FHIRServer.objects.values().get() == stored


def test_inactive_servers_are_read_by_name_only(ehr):
    make_registration(server__is_active=False)
    assert run("smart_discover", "--all").out == ""
    assert "harbour" in run("smart_discover", "harbour").out


@pytest.mark.parametrize("arguments", [(), ("harbour", "--all")])
def test_servers_are_named_or_all(arguments):
    with pytest.raises(CommandError, match="or use --all"):
        run("smart_discover", *arguments)


def test_unknown_slug_is_named(registration):
    with pytest.raises(CommandError, match="nowhere, nothing"):
        run("smart_discover", "harbour", "nowhere", "nothing")


def _move(registration, ehr):
    """Return the old and the new token endpoint, which an operator has to approve."""
    run("smart_discover", "harbour")
    old = "https://old.example.org/token"
    state = registration.server.discovered
    state.refresh_from_db()
    state.pinned = {**state.pinned, "token_endpoint": old}
    state.save()
    with pytest.raises(CommandError):
        run("smart_discover", "harbour")
    return old, ehr.token_endpoint


def test_moved_values_are_shown_and_accepted_as_shown(registration, ehr, monkeypatch):
    old, new = _move(registration, ehr)
    monkeypatch.setattr("builtins.input", lambda text: "no")
    with pytest.raises(CommandError, match="Nothing was accepted"):
        run("smart_discover", "harbour", "--accept")
    ran = run("smart_discover", "harbour", "--accept", "--no-input")
    assert f"harbour: token_endpoint: {old} → {new}" in ran.out.splitlines()
    state = FHIRServer.objects.get().state
    assert (state.pinned["token_endpoint"], state.moved) == (new, {})


def test_other_values_than_those_shown_are_not_accepted(registration, ehr, monkeypatch):
    old, _ = _move(registration, ehr)
    later = {"token_endpoint": "https://evil.example.net/token"}

    def move_on(text):
        ServerState.objects.update(moved=later)
        return "yes"

    monkeypatch.setattr("builtins.input", move_on)
    with pytest.raises(CommandError, match="changed"):
        run("smart_discover", "harbour", "--accept")
    state = FHIRServer.objects.get().state
    assert (state.pinned["token_endpoint"], state.moved) == (old, later)

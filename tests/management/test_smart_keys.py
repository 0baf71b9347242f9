"""``smart_keys``: the steps of a key's life, by hand."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError

from django_smart.models import SigningKey
from django_smart.servers.signing_keys import OVERLAP, create_signing_key
from tests.factories import make_registration
from tests.management.running import run

pytestmark = pytest.mark.django_db


def age(length: timedelta = OVERLAP) -> None:
    for key in SigningKey.objects.all():
        SigningKey.objects.filter(pk=key.pk).update(
            created_at=key.created_at - length,
            activated_at=key.activated_at and key.activated_at - length,
            retired_at=key.retired_at and key.retired_at - length,
        )


def test_algorithm_is_chosen_for_the_first_key():
    with pytest.raises(CommandError, match="--algorithm"):
        run("smart_keys", "generate")
    ran = run("smart_keys", "generate", "--algorithm", "ES384")
    key = SigningKey.objects.get()
    assert ran.out.startswith(f"{key.kid}  ES384  active   signing since ")
    assert "PRIVATE" not in ran.out


def test_algorithms_that_are_in_use_need_not_be_named():
    run("smart_keys", "generate", "--algorithm", "ES384")
    make_registration(token_endpoint_auth_method="private_key_jwt", client_secret="")
    run("smart_keys", "generate")
    found = SigningKey.objects.values_list("algorithm", "status")
    assert sorted(found) == [
        ("ES384", "active"),
        ("ES384", "next"),
        ("RS384", "active"),
    ]


@pytest.mark.compliance("JWKS-10")
def test_rotation_waits_until_servers_know_the_next_key():
    run("smart_keys", "generate", "--algorithm", "ES384")
    with pytest.raises(CommandError, match="smart_keys generate"):
        run("smart_keys", "rotate")
    run("smart_keys", "generate")
    following = SigningKey.objects.following().get()
    with pytest.raises(CommandError, match="may sign from"):
        run("smart_keys", "rotate")
    age()
    lines = run("smart_keys", "rotate").out.splitlines()
    assert lines[0].startswith(f"{following.kid}  ES384  active ")
    # The one after it is published at once, so that a leak need not wait.
    assert "  ES384  next     published since " in lines[1]
    assert ", can sign from " in lines[1]


def test_key_that_got_out_is_replaced_and_taken_out_at_once():
    for _ in range(2):
        run("smart_keys", "generate", "--algorithm", "ES384")
    old = SigningKey.objects.active().get()
    run("smart_keys", "rotate", "--now")
    assert " removed " in run("smart_keys", "retire", old.kid, "--now").out
    published = SigningKey.objects.as_jwks()["keys"]
    assert old.kid not in [each["kid"] for each in published]


def test_rotation_of_one_algorithm_leaves_the_other_alone():
    for algorithm in ("ES384", "RS384"):
        for _ in range(2):
            run("smart_keys", "generate", "--algorithm", algorithm)
    age()
    before = SigningKey.objects.active().get(algorithm="RS384")
    run("smart_keys", "rotate", "--algorithm", "ES384")
    assert SigningKey.objects.active().get(algorithm="RS384") == before


def test_algorithm_that_cannot_be_rotated_does_not_keep_the_other_from_it():
    for algorithm in ("ES384", "RS384"):
        run("smart_keys", "generate", "--algorithm", algorithm)
    for name, other in (("RS384", "ES384"), ("ES384", "RS384")):
        run("smart_keys", "generate", "--algorithm", name)
        age()
        before = SigningKey.objects.active().get(algorithm=name)
        with pytest.raises(CommandError) as caught:
            run("smart_keys", "rotate")
        assert f"There is no next {other} key" in str(caught.value)
        assert SigningKey.objects.active().get(algorithm=name) != before
        # As if another one had never been published.
        SigningKey.objects.following().delete()


def test_every_algorithm_that_cannot_be_rotated_is_told_of():
    for algorithm in ("ES384", "RS384"):
        run("smart_keys", "generate", "--algorithm", algorithm)
    with pytest.raises(CommandError) as caught:
        run("smart_keys", "rotate")
    lines = str(caught.value).splitlines()
    assert sorted(line.split()[4] for line in lines) == ["ES384", "RS384"]


@pytest.mark.parametrize("first", ["ES384", "RS384"])
def test_algorithm_that_has_a_next_key_is_passed_over(first: str):
    for algorithm in ("ES384", "RS384"):
        run("smart_keys", "generate", "--algorithm", algorithm)
    run("smart_keys", "generate", "--algorithm", first)
    before = SigningKey.objects.following().get()
    (line,) = run("smart_keys", "generate").out.splitlines()
    assert first not in line
    following = SigningKey.objects.following()
    assert following.count() == 2
    assert before in following
    with pytest.raises(CommandError) as caught:
        run("smart_keys", "generate")
    assert len(str(caught.value).splitlines()) == 2


def test_site_without_a_worker_runs_the_schedule_by_command(settings: Any):
    settings.SMART_KEY_ROTATION = 86400
    run("smart_keys", "generate", "--algorithm", "ES384")
    due = ("smart_keys", "rotate", "--due")
    assert run(*due).out == "generated: 1, rotated: 0, removed: 0\n"
    age(timedelta(days=1))
    assert run(*due).out == "generated: 1, rotated: 1, removed: 0\n"
    age()
    assert run(*due).out == "generated: 0, rotated: 0, removed: 1\n"
    with pytest.raises(CommandError, match="do not combine"):
        run(*due, "--algorithm", "ES384")


def test_list_tells_the_place_of_every_key():
    ran = run("smart_keys", "list")
    assert ran.out == ""
    assert "There are no signing keys" in ran.err
    for _ in range(2):
        run("smart_keys", "generate", "--algorithm", "ES384")
    run("smart_keys", "rotate", "--now")
    words = [line.split()[2] for line in run("smart_keys", "list").out.splitlines()]
    assert words == ["retired", "active", "next"]
    retired = SigningKey.objects.get(status="retired")
    ran = run("smart_keys", "retire", retired.kid)
    assert ", published until " in ran.out


def test_retire_refuses_what_is_in_use_or_unknown():
    run("smart_keys", "generate", "--algorithm", "RS384")
    make_registration(token_endpoint_auth_method="private_key_jwt", client_secret="")
    key = SigningKey.objects.get()
    with pytest.raises(CommandError, match="rotate to another key"):
        run("smart_keys", "retire", key.kid)
    with pytest.raises(CommandError, match="No key has the id"):
        run("smart_keys", "retire", key.kid.swapcase())


@pytest.mark.compliance("JWKS-03", "JWKS-09")
def test_export_has_the_current_and_the_next_key():
    run("smart_keys", "generate", "--algorithm", "ES384")
    ran = run("smart_keys", "export")
    assert ran.json == SigningKey.objects.as_jwks()
    assert "no next ES384 key" in ran.err
    run("smart_keys", "generate")
    ran = run("smart_keys", "export")
    assert {each["kid"] for each in ran.json["keys"]} == {
        SigningKey.objects.active().get().kid,
        SigningKey.objects.following().get().kid,
    }
    assert ran.err == ""
    assert not {"d", "p", "q"} & {name for each in ran.json["keys"] for name in each}


def test_keys_of_one_registration_are_made_and_rotated_by_its_id():
    registration = make_registration(
        token_endpoint_auth_method="private_key_jwt", client_secret=""
    )
    shared = json.loads(run("smart_keys", "export").out)
    which = ("--registration", str(registration.pk))
    made = run("smart_keys", "generate", *which).out
    own = SigningKey.objects.of(registration).get()
    assert f"{own.kid}  RS384  next     registration {registration.pk}  " in made
    assert run("smart_keys", "export", *which).json["keys"][-1]["kid"] == own.kid
    assert json.loads(run("smart_keys", "export").out) == shared
    run("smart_keys", "rotate", "--now", *which)
    assert SigningKey.objects.of(registration).active().get() == own


def test_separate_keys_are_not_counted_as_shared():
    registration = make_registration(
        token_endpoint_auth_method="private_key_jwt",
        client_secret="",
        signing_algorithm="ES384",
    )
    create_signing_key("ES384", registration=registration)
    with pytest.raises(CommandError, match="No shared signing key"):
        run("smart_keys", "rotate")
    for _ in range(2):
        run("smart_keys", "generate", "--algorithm", "RS384")
    age()
    run("smart_keys", "rotate")
    run("smart_keys", "rotate", "--now")
    assert not SigningKey.objects.of(None).filter(algorithm="ES384").exists()
    # A key of its own for another algorithm does not help.
    registration.signing_algorithm = "RS384"
    registration.save()
    SigningKey.objects.of(None).delete()
    run("smart_keys", "generate")
    assert SigningKey.objects.of(None).get().algorithm == "RS384"


@pytest.mark.parametrize("action", ["generate", "rotate", "export"])
def test_registration_that_signs_with_no_key_has_none(action):
    for id_ in (make_registration().pk, 12345):
        with pytest.raises(CommandError, match="private_key_jwt"):
            run("smart_keys", action, "--registration", str(id_))

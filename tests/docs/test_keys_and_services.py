"""Backend services and signing keys, by the code and commands of their pages."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from django.core.management import CommandError

from django_smart.checks import check_settings
from django_smart.conf import conf
from django_smart.exceptions import ServerUnreachableError
from django_smart.models import ClientRegistration, SigningKey
from django_smart.servers.signing_keys import OVERLAP
from django_smart.testing import EHRSimulator
from tests.answers import answer
from tests.docs.blocks import apply, do, execute, read_blocks
from tests.factories import make_registration
from tests.management.running import run

pytestmark = pytest.mark.django_db

_SERVICES = "how-to/keep-access-fresh.rst"
_WITHOUT_USER = "Without a user: backend services"
_KEYS = "how-to/keys-and-logs.rst"
_SIGNING = "Rotate the signing keys"


def _wait() -> None:
    """Two hours."""
    for key in SigningKey.objects.all():
        SigningKey.objects.filter(pk=key.pk).update(created_at=key.created_at - OVERLAP)


def _states() -> list[str]:
    return sorted(SigningKey.objects.values_list("status", flat=True))


# Backend services


@cache
def _run_code() -> dict[str, Any]:
    """What the page's code defines; once, as a task has one name."""
    return execute(*read_blocks(_SERVICES, _WITHOUT_USER)[-2:])


@pytest.fixture
def page(ehr: EHRSimulator) -> dict[str, Any]:
    """The page's code, after its command."""
    register, *_ = read_blocks(_SERVICES, _WITHOUT_USER)
    ((*words,),) = register.commands
    words[words.index("--base-url") + 1] = ehr.base_url
    printed = do(words).json
    assert printed["jwks_url"] == "https://app.example.org/smart/jwks.json"
    ehr.register_client(
        "nightly-report",
        auth_method="private_key_jwt",
        jwks=SigningKey.objects.as_jwks(),
    )
    return _run_code()


@pytest.mark.compliance("BACK-01", "BACK-11")
def test_report_counts_with_nobody_signed_in(
    ehr: EHRSimulator, page: dict[str, Any]
) -> None:
    number = page["count_hba1c"]()
    assert number > 10
    assert page["explain"](page["count_hba1c"]) == f"{number} results"
    assert len(ehr.requests_to("token")) == 1


@pytest.mark.compliance("BACK-10")
def test_every_failure_has_its_explanation(
    ehr: EHRSimulator, page: dict[str, Any]
) -> None:
    explain, count = page["explain"], page["count_hba1c"]

    def fail() -> int:
        raise ServerUnreachableError("no route")

    assert explain(fail) == "Try again later: server_unreachable"
    ehr.clients.clear()
    assert explain(count).startswith("The EHR refused: invalid_client ")
    ClientRegistration.objects.update(signing_algorithm="ES384")
    registration = ClientRegistration.objects.select_related("server").get()
    server = registration.server
    assert server.state.configuration is not None
    server.state.configuration["grant_types_supported"] = ["authorization_code"]
    server.state.save()
    assert explain(count).startswith("The EHR does not offer it: ")
    ClientRegistration.objects.update(is_active=False)
    assert explain(count).startswith("Check the registration: ")


def test_service_may_have_a_secret_as_the_page_says(ehr: EHRSimulator) -> None:
    _, with_secret, *_ = read_blocks(_SERVICES, _WITHOUT_USER)
    ((*words,),) = with_secret.commands
    words[words.index("--base-url") + 1] = ehr.base_url
    method = "client_secret_basic"
    answer(ehr, "/smart-configuration", token_endpoint_auth_methods_supported=[method])
    do(words)
    registration = ClientRegistration.objects.get()
    assert registration.client_secret_env == "REPORT_SECRET"
    assert registration.token_endpoint_auth_method == method


# Keys


def test_setting_of_the_page_is_right(settings: Any) -> None:
    block, *_ = read_blocks(_KEYS, _SIGNING)
    apply(settings, block)
    assert check_settings() == []
    assert conf.SMART_KEY_ROTATION.days == 90


@pytest.mark.compliance("JWKS-01", "JWKS-09", "JWKS-10")
def test_keys_are_rotated_as_the_page_says() -> None:
    _, *console = read_blocks(_KEYS, _SIGNING)
    due, generate, rotate, send, _, _, lost, remove = (
        each.commands for each in console
    )
    run("smart_keys", "generate", "--algorithm", "ES384")
    do(due[0])
    assert _states() == ["active"]
    do(generate[0])
    with pytest.raises(CommandError, match="may sign from"):
        do(rotate[0])
    _wait()
    do(rotate[0])
    assert _states() == ["active", "next", "retired"]

    with pytest.raises(CommandError, match="is already next"):
        do(send[0])
    assert len(do(send[1]).json["keys"]) == 3

    old = SigningKey.objects.active().get()
    do(lost[0])
    listed = do(lost[1]).out
    (line,) = [each for each in listed.splitlines() if each.startswith(old.kid)]
    assert " retired " in line
    (words,) = remove
    words[words.index("KID")] = old.kid
    do(words)
    old.refresh_from_db()
    assert (old.status, old.private_key) == ("removed", "")
    assert _states() == ["active", "next", "removed", "retired"]


def test_registration_gets_keys_of_its_own_as_the_page_says() -> None:
    generate, rotate = (
        block.commands[0]
        for block in read_blocks(_KEYS, _SIGNING)
        if "--registration" in block.code
    )
    registration = make_registration(
        token_endpoint_auth_method="private_key_jwt", client_secret=""
    )
    assert generate[-2:] == rotate[-2:] == ["--registration", "1"]
    do([*generate[:-1], str(registration.pk)])
    _wait()
    do([*rotate[:-1], str(registration.pk)])
    assert _states() == ["active", "next"]

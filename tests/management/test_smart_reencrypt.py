"""``smart_reencrypt``: every secret to the first key, while the site runs."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.utils import timezone

from django_smart.exceptions import CredentialsError
from django_smart.grants.refresh import refresh_grant
from django_smart.models import ClientRegistration, Launch, SigningKey, TokenGrant
from django_smart.servers.signing_keys import create_signing_key
from tests.ehr import CLIENT_SECRET, connect, make_browser
from tests.management.running import run
from tests.threads import run_together

pytestmark = pytest.mark.django_db

OLD, NEW, OTHER = (Fernet.generate_key().decode() for _ in range(3))


@pytest.fixture
def grant(settings, registration, ehr) -> TokenGrant:
    """A connected record; each of its secrets has the old key, and the new is first."""
    settings.SMART_ENCRYPTION_KEYS = [OLD]
    registration.save()
    create_signing_key("ES384")
    opened = connect(make_browser(), ehr)
    Launch.objects.filter(pk=opened.pk).update(code_verifier="kept by somebody")
    settings.SMART_ENCRYPTION_KEYS = [NEW, OLD]
    assert opened.grant is not None
    return opened.grant


def read_secrets() -> list[str]:
    """Every secret of every model, as the code reads it."""
    grant, key = TokenGrant.objects.get(), SigningKey.objects.get()
    return [
        ClientRegistration.objects.get().client_secret,
        key.private_key,
        Launch.objects.get().code_verifier,
        grant.access_token,
        grant.refresh_token,
    ]


@contextmanager
def during_update(action: Callable[[], Any], *, times: int = 1) -> Iterator[None]:
    """Do *action* each time that a grant was read and is about to be written."""
    left = [times]

    def wrap(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("UPDATE") and TokenGrant._meta.db_table in sql and left[0]:
            remaining, left[0] = (
                left[0] - 1,
                0,
            )  # the action's own statements are not met
            action()
            left[0] = remaining
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrap):
        yield


def test_every_secret_is_moved_and_the_old_key_can_go(grant, settings):
    before = read_secrets()
    assert CLIENT_SECRET in before
    assert run("smart_reencrypt").out == (
        "re-encrypted: 4, already current: 0, changed meanwhile: 0, "
        "cannot be decrypted: 0\n"
    )
    settings.SMART_ENCRYPTION_KEYS = [NEW]
    assert read_secrets() == before


def test_second_run_finds_nothing_left_and_writes_nothing(
    grant, django_assert_max_num_queries
):
    run("smart_reencrypt")
    # One look at each of six tables, and at what comes after their last row.
    with django_assert_max_num_queries(12) as queries:
        assert run("smart_reencrypt").out.startswith(
            "re-encrypted: 0, already current: 4,"
        )
    assert not [each for each in queries if each["sql"].startswith("UPDATE")]


def test_check_counts_and_changes_nothing(grant, settings):
    assert run("smart_reencrypt", "--check").out == (
        "to re-encrypt: 4, already current: 0, changed meanwhile: 0, "
        "cannot be decrypted: 0\n"
    )
    settings.SMART_ENCRYPTION_KEYS = [NEW]
    with pytest.raises(CredentialsError):
        read_secrets()


def write_ciphertext(ciphertext: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE django_smart_tokengrant SET refresh_token = %s", [ciphertext]
        )


@pytest.mark.parametrize("keys", [[OLD], [NEW, OLD]], ids=["old", "new"])
def test_secret_of_another_column_is_not_bound_to_the_one_it_is_in(
    grant, settings, keys
):
    settings.SMART_ENCRYPTION_KEYS = keys
    stored = SigningKey.objects.values_list("private_key", flat=True).get()
    write_ciphertext(stored.ciphertext)  # type: ignore[attr-defined]  # a secret
    with pytest.raises(CommandError, match="1 rows cannot be decrypted"):
        run("smart_reencrypt")
    with pytest.raises(CredentialsError):
        _ = TokenGrant.objects.get().refresh_token


def test_rows_of_several_batches_are_all_moved(grant, settings):
    # More than two batches of grants, with the old key.
    settings.SMART_ENCRYPTION_KEYS = [OLD, NEW]
    token = grant.refresh_token
    grants = [copy(grant) for _ in range(1100)]
    for each in grants:
        each.pk = None
    TokenGrant.objects.bulk_create(grants)
    settings.SMART_ENCRYPTION_KEYS = [NEW, OLD]
    assert run("smart_reencrypt").out.startswith("re-encrypted: 1104,")
    settings.SMART_ENCRYPTION_KEYS = [NEW]
    moved = TokenGrant.objects.order_by("-pk")[:1100]
    assert {each.refresh_token for each in moved} == {token}


def test_row_that_no_key_decrypts_is_named_and_the_others_are_moved(grant, settings):
    settings.SMART_ENCRYPTION_KEYS = [OTHER]
    TokenGrant.objects.update(access_token="of a key that is lost")
    settings.SMART_ENCRYPTION_KEYS = [NEW, OLD]
    for moved, current in ((3, 0), (0, 3)):
        out, err = io.StringIO(), io.StringIO()
        with pytest.raises(CommandError, match="1 rows cannot be decrypted") as raised:
            call_command("smart_reencrypt", stdout=out, stderr=err)
        assert "SMART_ENCRYPTION_KEYS" in str(raised.value)
        assert err.getvalue() == f"TokenGrant {grant.pk} cannot be decrypted\n"
        assert out.getvalue() == (
            f"re-encrypted: {moved}, already current: {current}, changed meanwhile: "
            "0, cannot be decrypted: 1\n"
        )


def test_nothing_that_is_printed_shows_a_secret(grant):
    secrets = read_secrets()
    printed = run("smart_reencrypt")
    assert not [each for each in secrets if each in printed.out + printed.err]


def test_empty_columns_are_no_secrets(grant):
    TokenGrant.objects.all().end(TokenGrant.Status.REVOKED, now=timezone.now())
    ClientRegistration.objects.update(client_secret="")
    assert run("smart_reencrypt").out.startswith("re-encrypted: 2,")


@pytest.mark.usefixtures("ehr")
def test_refresh_between_reading_and_writing_is_not_undone(grant, ehr, settings):
    before = grant.refresh_token

    def refresh() -> None:
        assert refresh_grant(TokenGrant.objects.get())

    with during_update(refresh):
        run("smart_reencrypt")
    settings.SMART_ENCRYPTION_KEYS = [NEW]
    stored = TokenGrant.objects.get()
    assert stored.refresh_token != before
    # The EHR knows it: the next refresh is none with a token that was used before.
    assert refresh_grant(stored)
    assert ehr.reused_refresh_tokens == 0


def test_tokens_that_another_process_stores_with_the_old_key_are_moved_too(
    grant, settings
):
    def store_as_before() -> None:
        settings.SMART_ENCRYPTION_KEYS = [OLD]
        TokenGrant.objects.update(refresh_token="of a process with the old settings")
        settings.SMART_ENCRYPTION_KEYS = [NEW, OLD]

    with during_update(store_as_before):
        assert run("smart_reencrypt").out.startswith("re-encrypted: 4,")
    settings.SMART_ENCRYPTION_KEYS = [NEW]
    stored = TokenGrant.objects.get()
    assert stored.refresh_token == "of a process with the old settings"


def test_row_that_is_deleted_meanwhile_is_no_error(grant):
    with during_update(TokenGrant.objects.all().delete):
        assert run("smart_reencrypt").out.startswith("re-encrypted: 3,")


def test_row_that_never_stands_still_is_told_of(grant, settings):
    def store_as_before() -> None:
        settings.SMART_ENCRYPTION_KEYS = [OLD]
        TokenGrant.objects.update(refresh_token="once more")
        settings.SMART_ENCRYPTION_KEYS = [NEW, OLD]

    with (
        during_update(store_as_before, times=100),
        pytest.raises(CommandError, match="again"),
    ):
        run("smart_reencrypt")
    assert TokenGrant.objects.get().refresh_token == "once more"


@pytest.mark.django_db(transaction=True)
def test_refreshes_in_other_threads_go_on_meanwhile(grant, ehr, settings):
    rounds = [0, 0]
    guard = time.monotonic() + 60
    # Changed in place below: settings must not be replaced while threads read them.
    keys = list(settings.SMART_ENCRYPTION_KEYS)
    settings.SMART_ENCRYPTION_KEYS = keys

    def is_on() -> bool:
        return min(rounds) < 5 and time.monotonic() < guard

    def refresh() -> None:
        while is_on():
            rounds[0] += refresh_grant(TokenGrant.objects.get())

    def move() -> None:
        while is_on():
            run("smart_reencrypt")
            # As if each run were the first.
            keys.reverse()
            rounds[1] += 1
        connections.close_all()

    assert run_together(refresh, move) == [None, None]
    assert min(rounds) >= 5
    assert refresh_grant(TokenGrant.objects.get())
    assert ehr.reused_refresh_tokens == 0
    assert TokenGrant.objects.get().status == TokenGrant.Status.ACTIVE


def test_keys_derived_from_the_secret_key_are_moved_to_the_sites_first_own(
    settings, registration
):
    settings.SMART_ENCRYPTION_KEYS = [NEW]
    assert ClientRegistration.objects.get().client_secret == CLIENT_SECRET
    assert run("smart_reencrypt").out.startswith("re-encrypted: 1,")
    settings.SECRET_KEY = "another one, and long enough that no check complains: 98765"
    assert ClientRegistration.objects.get().client_secret == CLIENT_SECRET

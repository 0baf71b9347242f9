"""Encrypted fields and digests: unreadable in the database, exact everywhere."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core import serializers
from django.core.exceptions import FieldError, ImproperlyConfigured
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from django_smart.exceptions import CredentialsError
from django_smart.fields import digest, get_fernet
from django_smart.grants.refresh import get_access_token
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Identity,
    SigningKey,
    TokenGrant,
)
from django_smart.servers.signing_keys import create_signing_key
from django_smart.testing import EHRSimulator
from tests.ehr import BASE_URL, CLIENT_ID, CLIENT_SECRET, connect, make_browser
from tests.factories import expire, make_registration

pytestmark = pytest.mark.django_db


def _dump(model: Any) -> str:
    """The whole table of *model*, as the database has it."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {model._meta.db_table}")
        return repr(cursor.fetchall())


def _raw_secret() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT client_secret FROM django_smart_clientregistration")
        return str(cursor.fetchone()[0])


def _write_raw_secret(text: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE django_smart_clientregistration SET client_secret = %s", [text]
        )


@pytest.mark.compliance("SEC-10", "RESP-07")
@pytest.mark.usefixtures("registration")
def test_no_secret_is_readable_in_the_database(ehr: EHRSimulator) -> None:
    grant = connect(make_browser(), ehr).grant
    assert grant is not None
    assert grant.access_token in ehr.store.access_tokens
    assert grant.refresh_token in ehr.store.refresh_tokens
    tables = [
        model
        for model in connection.introspection.installed_models(
            connection.introspection.table_names()
        )
        if _dump(model)
    ]
    dump = "".join(map(_dump, tables))
    assert str(digest(grant.refresh_token)) in dump
    for secret in (CLIENT_SECRET, grant.access_token, grant.refresh_token):
        assert secret not in dump


def test_encryption_is_not_the_same_twice() -> None:
    registration = make_registration()
    first = _raw_secret()
    assert first.startswith("fernet:")
    registration.client_secret = CLIENT_SECRET
    registration.save()
    assert _raw_secret() != first
    registration.refresh_from_db()
    assert registration.client_secret == CLIENT_SECRET


def test_row_that_is_saved_again_is_not_encrypted_again() -> None:
    make_registration()
    before = _raw_secret()
    ClientRegistration.objects.get().save()
    assert _raw_secret() == before


def test_empty_text_is_stored_as_it_is() -> None:
    make_registration(token_endpoint_auth_method="none", client_secret="")
    assert _raw_secret() == ""
    assert ClientRegistration.objects.get().client_secret == ""
    assert ClientRegistration.objects.filter(client_secret="").exists()


def test_update_and_bulk_update_encrypt() -> None:
    registration = make_registration()
    for write in (
        lambda: ClientRegistration.objects.update(client_secret="by update"),
        lambda: ClientRegistration.objects.bulk_update(
            [registration], ["client_secret"]
        ),
    ):
        registration.client_secret = "by bulk_update"
        write()
        assert _raw_secret().startswith("fernet:")
        stored = ClientRegistration.objects.get().client_secret
        assert stored.startswith("by ")


def test_key_that_was_first_before_still_decrypts(settings: Any) -> None:
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    settings.SMART_ENCRYPTION_KEYS = [old]
    make_registration()
    settings.SMART_ENCRYPTION_KEYS = [new, old]
    registration = ClientRegistration.objects.get()
    assert registration.client_secret == CLIENT_SECRET
    registration.client_secret = "the next secret"
    registration.save()
    settings.SMART_ENCRYPTION_KEYS = [new]
    assert ClientRegistration.objects.get().client_secret == "the next secret"


def test_secret_key_and_its_fallbacks_are_the_keys_if_none_are_set(
    settings: Any,
) -> None:
    make_registration()
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another one, and long enough that no check complains: 98765"
    registration = ClientRegistration.objects.get()
    assert registration.client_secret == CLIENT_SECRET
    settings.SECRET_KEY_FALLBACKS = []
    registration = ClientRegistration.objects.get()
    with pytest.raises(CredentialsError) as raised:
        _ = registration.client_secret
    assert "SECRET_KEY_FALLBACKS" in str(raised.value)
    assert CLIENT_SECRET not in str(raised.value)
    # The key is not Django's own for anything else.
    assert settings.SECRET_KEY.encode() not in repr(get_fernet().__dict__).encode()


def test_wrong_key_is_a_mistake_of_the_configuration(settings: Any) -> None:
    settings.SMART_ENCRYPTION_KEYS = ["not a key"]
    with pytest.raises(ImproperlyConfigured, match="SMART_ENCRYPTION_KEYS"):
        get_fernet()


def test_row_is_read_without_its_secret_being_decrypted(settings: Any) -> None:
    settings.SMART_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    make_registration()
    settings.SMART_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    # The admin can still show the row, and somebody can enter a new secret.
    registration = ClientRegistration.objects.get()
    registration.name = "unused"  # type: ignore[attr-defined]  # any attribute
    registration.save()
    registration.client_secret = CLIENT_SECRET
    registration.save()
    assert ClientRegistration.objects.get().client_secret == CLIENT_SECRET


@pytest.mark.parametrize("is_saved", [True, False])
def test_pickle_and_copy_carry_ciphertext_alone(is_saved: bool) -> None:
    registration = make_registration()
    if is_saved:
        registration = ClientRegistration.objects.get()
        # Also after it has been read.
        assert registration.client_secret == CLIENT_SECRET
    pickled = pickle.dumps(registration)
    assert CLIENT_SECRET.encode() not in pickled
    assert pickle.loads(pickled).client_secret == CLIENT_SECRET
    assert copy.deepcopy(registration).client_secret == CLIENT_SECRET


def test_nothing_of_a_row_shows_its_secret() -> None:
    registration = make_registration()
    for each in (registration, ClientRegistration.objects.get()):
        shown = f"{each!r} {each} {each.__dict__!r} {vars(each)}"
        assert CLIENT_SECRET not in shown
        assert "<encrypted>" in shown


def test_edited_fixture_is_found_by_its_new_values() -> None:
    make_registration()
    dumped = serializers.serialize(
        "json", [*FHIRServer.objects.all(), *ClientRegistration.objects.all()]
    )
    assert CLIENT_SECRET not in dumped
    ClientRegistration.objects.all().delete()
    FHIRServer.objects.all().delete()
    edited = dumped.replace("ehr.example.org", "prod.example.org")
    edited = edited.replace(CLIENT_ID, "another-client")
    edited = edited.replace("Harbour Hospital", "Hill Clinic")
    for loaded in serializers.deserialize("json", edited):
        loaded.save()
    server = FHIRServer.objects.get()
    assert list(FHIRServer.objects.with_base_url(server.base_url)) == [server]
    assert not FHIRServer.objects.with_base_url(BASE_URL).exists()
    registration = ClientRegistration.objects.get()
    assert registration.client_id_digest == digest("another-client")
    assert ClientRegistration.objects.find_ehr(server.base_url) == registration
    assert ClientRegistration.objects.find_ehr(BASE_URL) is None
    assert registration.client_secret == CLIENT_SECRET


@pytest.mark.parametrize(
    "lookup", ["client_secret__contains", "client_secret__in", "client_secret__gt"]
)
@pytest.mark.usefixtures("registration")
def test_encrypted_text_cannot_be_searched_for(lookup: str) -> None:
    with pytest.raises(FieldError):
        list(ClientRegistration.objects.filter(**{lookup: ["x"]}))
    assert ClientRegistration.objects.filter(client_secret__isnull=False).exists()
    assert not ClientRegistration.objects.filter(client_secret=CLIENT_SECRET).exists()


def test_deferred_secret_is_loaded_when_it_is_read() -> None:
    make_registration()
    registration = ClientRegistration.objects.defer("client_secret").get()
    assert "client_secret" in registration.get_deferred_fields()
    assert registration.client_secret == CLIENT_SECRET


@pytest.mark.parametrize("secret", ["ü" * 100_000, "a\0b\0"], ids=["long", "odd"])
def test_opaque_string_is_kept_as_it_is(secret: str) -> None:
    # Of any length and characters (RESP-06).
    registration = make_registration(client_secret=secret)
    registration.refresh_from_db()
    assert registration.client_secret == secret


# Bound to their column


def _move_private_key(grant: TokenGrant) -> str:
    """What somebody who may write to the database can do; returns the key."""
    key = create_signing_key("ES384")
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE django_smart_tokengrant SET refresh_token ="
            " (SELECT private_key FROM django_smart_signingkey)"
        )
    assert key.private_key.startswith("-----BEGIN")
    return key.private_key


@pytest.mark.usefixtures("registration")
def test_private_key_in_the_place_of_a_refresh_token_is_not_sent(
    ehr: EHRSimulator,
) -> None:
    grant = connect(make_browser(), ehr).grant
    assert grant is not None
    grant = expire(grant, ehr)
    private_key = _move_private_key(grant)
    ehr.clear_requests()
    with pytest.raises(CredentialsError) as raised:
        get_access_token(TokenGrant.objects.get())
    assert ehr.requests == []
    assert "another column" in str(raised.value)
    assert private_key not in str(raised.value)


@pytest.mark.usefixtures("registration")
def test_secret_that_was_moved_is_not_read_by_any_way(ehr: EHRSimulator) -> None:
    grant = connect(make_browser(), ehr).grant
    assert grant is not None
    (fixture,) = serializers.serialize("python", [grant])
    _move_private_key(grant)
    (key,) = serializers.serialize("python", SigningKey.objects.all())
    fixture["fields"]["refresh_token"] = key["fields"]["private_key"]
    (loaded,) = serializers.deserialize("python", [fixture])
    moved = TokenGrant.objects.get()
    others: list[Any] = [
        pickle.loads(pickle.dumps(moved)),
        copy.deepcopy(moved),
        loaded.object,
        TokenGrant.objects.defer("refresh_token").get(),
    ]
    for each in (moved, *others):
        with pytest.raises(CredentialsError):
            _ = each.refresh_token


def test_value_of_one_column_is_encrypted_anew_for_another() -> None:
    registration = make_registration()
    registration.client_secret = CLIENT_SECRET
    registration.save()
    secret = ClientRegistration.objects.values("client_secret").get()["client_secret"]
    key = create_signing_key("ES384")
    SigningKey.objects.update(private_key=secret)
    key.refresh_from_db()
    assert key.private_key == CLIENT_SECRET


def test_value_that_is_bound_to_no_column_is_refused() -> None:
    make_registration()
    unbound = "fernet:" + get_fernet().encrypt(CLIENT_SECRET.encode()).decode()
    _write_raw_secret(unbound)
    with pytest.raises(CredentialsError, match="another column"):
        _ = ClientRegistration.objects.get().client_secret


# Digests


def test_digest_tells_case_spaces_and_borders_apart() -> None:
    values = [
        *(("abc",), ("ABC",), ("abc ",), (" abc",), ("",), ("\xe4bc",), ("a\u0308bc",)),
        *(("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")),
    ]
    digests = {digest(*value) for value in values}
    assert len(digests) == len(values)
    assert all(len(each) == 64 for each in digests)


@pytest.mark.compliance("IDT-09")
def test_identities_that_differ_in_case_or_spaces_live_beside_each_other(
    django_user_model: Any,
) -> None:
    server = make_registration().server
    for number, subject in enumerate(("abc", "ABC", "abc ", "Abc", "äbc", "abç")):
        Identity.objects.create(
            server=server,
            issuer="https://ehr.example.org",
            subject=subject,
            user=django_user_model.objects.create(username=f"u{number}"),
        )

    def find(issuer: str, subject: str) -> Any:
        return Identity.objects.with_subject(issuer, subject, server=server)

    found = find("https://ehr.example.org", "abc ").get()
    assert (found.subject, found.user.username) == ("abc ", "u2")
    assert not find("https://ehr.example.org", "aBC")
    assert not find("https://EHR.example.org", "abc")
    assert not TokenGrant.objects.exists()


def _get_historical_model(name: str) -> Any:
    """The model as a migration gets it."""
    return (
        MigrationLoader(connection).project_state().apps.get_model("django_smart", name)
    )


@pytest.mark.parametrize(
    ("name", "source"),
    [("FHIRServer", "normalized_base_url"), ("ClientRegistration", "_ehr_slot")],
)
def test_digest_that_a_migration_cannot_compute_says_what_to_do(
    name: str, source: str
) -> None:
    make_registration()
    row = _get_historical_model(name).objects.get()
    with pytest.raises(FieldError, match=f"{source}.*smart_register --from"):
        row.save()


def test_migration_may_save_rows_with_digests_of_columns(
    django_user_model: Any,
) -> None:
    server = make_registration().server
    _get_historical_model("Identity").objects.create(
        server_id=server.pk,
        issuer="https://ehr.example.org",
        subject="abc",
        user_id=django_user_model.objects.create(username="ada").pk,
    )
    assert Identity.objects.with_subject(
        "https://ehr.example.org", "abc", server=server
    ).exists()

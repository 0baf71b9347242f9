"""``fhir_client_for``: the one grant that is meant, or none."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.db import connection as db_connection
from django.db import connections
from django.utils import timezone

from django_smart.clients import (
    build_async_client,
    build_fhir_client,
    connections_of,
    fhir_client_for,
)
from django_smart.exceptions import (
    AmbiguousGrantError,
    InactiveRegistrationError,
    NoGrantError,
    ReauthorizationRequiredError,
)
from django_smart.fhir import AsyncFHIRClient
from django_smart.grants.ending import disconnect_grant, supersede_grants
from django_smart.models import ClientRegistration, FHIRServer, TokenGrant
from tests import factories
from tests.ehr import PATIENT, connect, make_browser
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

OTHER_PATIENT = "1c6a5a3e-4d2b-4c8e-9a70-0f5b7d1e9b11"


def make_grant(user: Any, server: FHIRServer, **values: Any) -> TokenGrant:
    """An offline grant that is good for another hour."""
    return factories.make_grant(
        ClientRegistration.objects.filter(server=server).earliest("pk"),
        **{
            "user": user,
            "scope": "patient/Patient.rs",
            "patient_id": PATIENT,
            "refresh_due_at": None,
            **values,
        },
    )


def token_of(client: Any) -> str:
    """The token that *client* would send."""
    token: str = client._tokens.get()
    return token


def test_the_only_grant_is_used(user, server):
    grant = make_grant(user, server)
    client = fhir_client_for(user, server)
    assert token_of(client) == grant.access_token
    assert client.base_url == server.base_url
    assert client.patient_id == PATIENT


def test_no_grant_is_an_error(user, server):
    with pytest.raises(NoGrantError):
        fhir_client_for(user, server)


def test_grants_of_others_are_never_offered(user, server, django_user_model):
    make_grant(django_user_model.objects.create_user("sam"), server)
    make_grant(None, server)
    with pytest.raises(NoGrantError):
        fhir_client_for(user, server)


@pytest.mark.parametrize("kind", ["anonymous", "unsaved"])
def test_nobody_has_no_grants(server, django_user_model, kind):
    # A look-up by no user would find the grants of browsers that signed nobody in.
    make_grant(None, server)
    nobody: Any = AnonymousUser() if kind == "anonymous" else django_user_model()
    with pytest.raises(NoGrantError):
        fhir_client_for(nobody, server)
    with pytest.raises(NoGrantError):
        fhir_client_for(nobody, server, patient_id=PATIENT)


def test_grants_at_other_servers_are_never_offered(user, server):
    other = make_registration(
        server__slug="lake", server__base_url="https://lake.example.org/fhir"
    )
    make_grant(user, other.server)
    with pytest.raises(NoGrantError):
        fhir_client_for(user, server)
    assert fhir_client_for(user, other.server).base_url == other.server.base_url


def test_several_grants_are_no_guess(user, server):
    make_grant(user, server)
    make_grant(user, server, patient_id=OTHER_PATIENT)
    with pytest.raises(AmbiguousGrantError) as caught:
        fhir_client_for(user, server)
    assert PATIENT not in str(caught.value)


def test_patient_id_selects_one_exactly(user, server):
    make_grant(user, server)
    other = make_grant(user, server, patient_id=OTHER_PATIENT)
    client = fhir_client_for(user, server, patient_id=OTHER_PATIENT)
    assert token_of(client) == other.access_token
    for unknown in ("unknown", OTHER_PATIENT.upper(), f"{OTHER_PATIENT} ", ""):
        with pytest.raises(NoGrantError):
            fhir_client_for(user, server, patient_id=unknown)


def test_newest_of_two_grants_of_one_connection_is_used(user, server):
    # Also of another client at the server: two clients keep a grant each.
    other = make_registration(
        server, client_id="other", is_standalone_default=False, is_ehr_default=False
    )
    make_grant(user, server, identity=factories.make_identity(user, server=server))
    second = make_grant(user, server)
    assert token_of(fhir_client_for(user, server)) == second.access_token
    third = factories.make_grant(
        other, user=user, patient_id=PATIENT, scope="patient/Patient.rs"
    )
    for patient_id in (None, PATIENT):
        client = fhir_client_for(user, server, patient_id=patient_id)
        assert token_of(client) == third.access_token
    TokenGrant.objects.filter(pk=third.pk).update(status="expired")
    assert token_of(fhir_client_for(user, server)) == second.access_token


@pytest.mark.parametrize("differs", ["patients", "accounts"])
def test_ambiguity_names_what_differs(user, server, differs):
    for each in ("one", "two"):
        identity = factories.make_identity(user, server=server)
        patient = each if differs == "patients" else ""
        grant = make_grant(user, server, patient_id=patient, identity=identity)
    supersede_grants(grant, now=timezone.now())
    with pytest.raises(AmbiguousGrantError, match=differs):
        fhir_client_for(user, server)


def test_connections_are_one_for_each_server_and_patient(user, server):
    other = make_registration(
        server__slug="lake", server__base_url="https://lake.example.org/fhir"
    )
    make_grant(user, server)
    ada = make_grant(user, server)
    # Ids that differ in case are of two patients.
    for patient in (PATIENT.upper(), OTHER_PATIENT):
        make_grant(user, server, patient_id=patient)
    make_grant(user, server, is_offline=False, patient_id="visit")
    make_grant(user, server, status="revoked", patient_id="ended")
    lake = make_grant(user, other.server)
    found = connections_of(user)
    assert [(each.server.slug, each.patient_id) for each in found] == [
        ("harbour", PATIENT),
        ("harbour", PATIENT.upper()),
        ("harbour", OTHER_PATIENT),
        ("lake", PATIENT),
    ]
    assert [found[0].grant, found[3].grant] == [ada, lake]
    assert token_of(found[0].fhir) == ada.access_token
    assert found[0].since == ada.created_at
    assert found[0].scopes == ada.scopes
    assert PATIENT not in repr(found[0])


def test_others_connections_are_not_listed(user, server, django_user_model):
    make_grant(user, server)
    make_grant(None, server)
    nobodies: tuple[Any, ...] = (AnonymousUser(), django_user_model())
    for nobody in (*nobodies, django_user_model.objects.create_user("sam")):
        assert connections_of(nobody) == []
    user.is_active = False
    user.save()
    assert connections_of(user) == []


def test_patient_name_is_read_once_and_gone_with_the_connection(ehr, user, server):
    launch = connect(make_signed_in(user), ehr)
    (connection,) = connections_of(user)
    ehr.clear_requests()
    assert connection.patient_name == "Marisol Jean Quillfeather"
    assert connections_of(user)[0].patient_name == connection.patient_name
    assert len(ehr.requests_to("fhir")) == 1
    with db_connection.cursor() as cursor:
        cursor.execute("SELECT patient_name FROM django_smart_tokengrant")
        assert "Quillfeather" not in cursor.fetchone()[0]
    assert launch.grant is not None
    disconnect_grant(launch.grant)
    assert TokenGrant.objects.get().patient_name == ""


@pytest.mark.parametrize("why", ["scope", "away", "no patient"])
def test_patient_name_that_cannot_be_read_is_empty(ehr, user, server, why):
    connect(make_signed_in(user), ehr)
    if why == "scope":
        TokenGrant.objects.update(scope="patient/Observation.rs")
    elif why == "no patient":
        TokenGrant.objects.update(patient_id="")
    else:
        ehr.faults.add("fhir_500")
    ehr.clear_requests()
    (connection,) = connections_of(user)
    assert connection.patient_name == ""
    assert bool(ehr.requests_to("fhir")) is (why == "away")


def make_signed_in(user: Any) -> Any:
    """A browser in which *user* is signed in."""
    browser = make_browser()
    browser.force_login(user)
    return browser


@pytest.mark.parametrize(
    ("kind", "fhir_user", "is_theirs"),
    [
        ("standalone", "Patient/1", True),
        ("standalone", "RelatedPerson/1", True),
        ("standalone", "https://elsewhere.example.org/r4/Patient/1", True),
        ("standalone", "Practitioner/1", False),
        ("standalone", "", False),
        ("standalone", "Person/1", False),
        ("ehr", "Patient/1", False),
    ],
)
def test_only_what_a_patient_connected_is_a_patient_s(
    user, server, kind, fhir_user, is_theirs
):
    identity = factories.make_identity(user, server=server, fhir_user=fhir_user)
    grant = make_grant(user, server, kind=kind, identity=identity)
    assert grant.is_of_patient is is_theirs
    # A registration without launches from the EHR is one for patients.
    grant.registration.ehr_scope = ""
    is_unknown = fhir_user in {"", "Person/1"}
    assert grant.is_of_patient is (is_theirs or (is_unknown and kind != "ehr"))


def test_grants_for_one_visit_are_not_offered(user, server):
    grant = make_grant(user, server, is_offline=False)
    with pytest.raises(NoGrantError):
        fhir_client_for(user, server)
    assert token_of(fhir_client_for(grant=grant)) == grant.access_token


@pytest.mark.parametrize("status", ["needs_reauthorization", "revoked", "expired"])
def test_ended_grants_are_not_used(user, server, status):
    grant = make_grant(user, server)
    TokenGrant.objects.update(status=status)
    # Also by a row that was read while the grant was good.
    assert grant.status == TokenGrant.Status.ACTIVE
    with pytest.raises(NoGrantError):
        fhir_client_for(grant=grant)
    with pytest.raises(NoGrantError):
        fhir_client_for(user, server)


def test_grants_of_a_deactivated_user_are_not_used(user, server):
    grant = make_grant(user, server)
    user.is_active = False
    user.save()
    with pytest.raises(NoGrantError):
        fhir_client_for(user, server)
    with pytest.raises(NoGrantError):
        fhir_client_for(grant=grant)


@pytest.mark.parametrize("given", ["nothing", "user", "server"])
def test_a_user_and_a_server_belong_together(user, server, given):
    values = {"nothing": {}, "user": {"user": user}, "server": {"server": server}}
    with pytest.raises(TypeError):
        fhir_client_for(**values[given])


def test_client_shows_no_token(user, server):
    grant = make_grant(user, server)
    client = fhir_client_for(grant=grant)
    assert grant.access_token not in repr(client)
    assert PATIENT not in repr(client)


def test_boundary_is_the_server_s(user, server):
    grant = make_grant(user, server)
    inside, beside = f"{server.base_url}/Patient/1", "https://ehr.example.org/x"
    client = build_fhir_client(grant)
    assert (client.is_within_boundary(inside), client.is_within_boundary(beside)) == (
        True,
        False,
    )
    server.quirks = {"bearer_boundary": "origin"}
    server.save()
    client = fhir_client_for(user, server)
    assert (client.is_within_boundary(inside), client.is_within_boundary(beside)) == (
        True,
        True,
    )


def _end(grant: TokenGrant, how: str) -> None:
    if how == "disconnected":
        disconnect_grant(grant)
    elif how == "deleted":
        grant.delete()
    else:
        get_user_model().objects.update(is_active=False)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", ["disconnected", "deactivated", "deleted"])
def test_client_of_a_long_task_does_not_outlive_its_grant(
    user, server, how, host_clock, django_assert_num_queries
):
    grant = make_grant(user, server, last_used_at=timezone.now())
    client = fhir_client_for(user, server)
    assert token_of(client) == grant.access_token
    _end(TokenGrant.objects.get(pk=grant.pk), how)
    with django_assert_num_queries(0):
        token_of(client)
    host_clock.shift(61)
    with pytest.raises(ReauthorizationRequiredError):
        token_of(client)


@pytest.mark.django_db(transaction=True)
def test_client_of_a_long_task_uses_what_another_process_has_stored(
    user, server, host_clock
):
    grant = make_grant(user, server)
    client = fhir_client_for(user, server)
    token_of(client)
    grant.set_tokens(access_token="another", refresh_token="r")
    grant.save()
    host_clock.shift(61)
    assert token_of(client) == "another"


def test_token_of_a_deactivated_user_is_not_refreshed(ehr, user, server):
    now = timezone.now()
    make_grant(user, server, expires_at=now, received_at=now - timedelta(hours=1))
    client = fhir_client_for(user, server)
    user.is_active = False
    user.save()
    with pytest.raises(ReauthorizationRequiredError):
        token_of(client)
    assert ehr.requests == []


@pytest.mark.parametrize("model", [FHIRServer, ClientRegistration])
def test_token_of_what_was_deactivated_is_not_refreshed(ehr, user, server, model):
    now = timezone.now()
    grant = make_grant(
        user, server, expires_at=now, received_at=now - timedelta(hours=1)
    )
    client = fhir_client_for(user, server)
    model.objects.update(is_active=False)
    with pytest.raises(InactiveRegistrationError):
        token_of(client)
    assert ehr.requests == []
    kept = TokenGrant.objects.get()
    assert (kept.status, kept.refresh_token) == ("active", grant.refresh_token)
    assert kept.refresh_failures == 0


def test_clients_are_found_in_two_queries(user, server, django_assert_max_num_queries):
    make_grant(user, server)
    with django_assert_max_num_queries(1):
        fhir_client_for(user, server)


def run_at_once(afhir: AsyncFHIRClient, count: int, function: Any) -> list[Any]:
    async def main() -> list[Any]:
        return await asyncio.gather(*(afhir.run(function) for _ in range(count)))

    return asyncio.run(main())


def test_async_calls_to_one_server_share_its_threads(user, server):
    def call() -> str:
        time.sleep(0.01)
        return threading.current_thread().name

    clients = [
        build_async_client(build_fhir_client(make_grant(user, server)))
        for _ in range(2)
    ]
    names = {name for each in clients for name in run_at_once(each, 50, call)}
    assert 1 < len(names) <= 64
    assert all(name.startswith("django_smart") for name in names)


def test_async_calls_to_a_slow_server_do_not_delay_those_to_another(user, server):
    lake = make_registration(
        server__slug="lake", server__base_url="https://lake.example.org/fhir"
    ).server
    slow, other = (
        build_async_client(build_fhir_client(make_grant(user, each)))
        for each in (server, lake)
    )
    goes_on = threading.Event()

    async def main() -> None:
        waiting = [asyncio.ensure_future(slow.run(goes_on.wait)) for _ in range(80)]
        try:
            assert await asyncio.wait_for(other.run(lambda: True), 5)
        finally:
            goes_on.set()
            await asyncio.gather(*waiting)

    asyncio.run(main())


def test_async_calls_close_their_database_connections(user, server):
    closed: list[str] = []

    def call() -> None:
        thread = threading.current_thread().name
        # Of this thread alone; of a database in memory, Django's closes nothing.
        connection = connections["default"]
        connection.close = lambda: closed.append(thread)  # type: ignore[method-assign]

    afhir = build_async_client(build_fhir_client(make_grant(user, server)))
    run_at_once(afhir, 3, call)
    assert len(closed) == 3
    assert threading.current_thread().name not in closed


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_process_has_threads_of_its_own(user, server):
    client = build_fhir_client(make_grant(user, server))
    run_at_once(build_async_client(client), 1, os.getpid)
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def call_again() -> None:
        writer.send(run_at_once(build_async_client(client), 1, os.getpid))

    child = context.Process(target=call_again)
    child.start()
    assert reader.poll(30)
    assert reader.recv() == [child.pid]
    child.join(30)

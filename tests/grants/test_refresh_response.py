"""What a refresh says beside its tokens: context that is kept, a person who stays."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from django.utils import timezone
from werkzeug.wrappers import Request, Response

from django_smart.exceptions import ContextChangedError, MalformedTokenResponseError
from django_smart.grants.ending import revoke_pending
from django_smart.grants.refresh import get_access_token
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Identity,
    Launch,
    ServerState,
    TokenGrant,
)
from django_smart.protocol.context import LaunchContext
from django_smart.signals import grant_lost
from django_smart.testing import EHRSimulator
from tests.answers import Respond, answer
from tests.ehr import (
    PATIENT,
    connect,
    get_callback,
    launch,
    listening,
    make_browser,
    start_ehr_launch,
)
from tests.factories import expire, make_grants, make_registration, reload_grant
from tests.grants.working import refresh_grants

pytestmark = pytest.mark.django_db

TOKEN_PATH = "/auth/token"
SCOPE = "launch openid fhirUser patient/Patient.rs online_access"


@pytest.fixture
def opened(ehr: EHRSimulator) -> Launch:
    """An EHR launch with every kind of context, and a refresh token."""
    make_registration(ehr_scope=SCOPE)
    return launch(
        make_browser(),
        ehr,
        encounter=next(iter(ehr.data["Encounter"])),
        intent="reconcile-medications",
        tenant="north",
        need_patient_banner=False,
        fhir_context=[{"reference": "ImagingStudy/1"}],
    )


def refresh(opened: Launch, ehr: EHRSimulator) -> TokenGrant:
    """The grant of *opened* after a refresh."""
    get_access_token(expire(reload_grant(opened.grant_id), ehr))
    return reload_grant(opened.grant_id)


def get_context(opened: Launch) -> dict[str, Any]:
    context: dict[str, Any] = Launch.objects.get(pk=opened.pk).context
    return context


# Context


@pytest.mark.compliance("REF-06")
def test_context_that_a_refresh_leaves_out_is_kept(
    ehr: EHRSimulator, opened: Launch
) -> None:
    before = get_context(opened)
    answer(ehr, TOKEN_PATH, remove=tuple(opened.context))
    # What is required in every answer, and nothing else.
    answer(ehr, TOKEN_PATH, token_type="Bearer", scope=SCOPE)
    grant = refresh(opened, ehr)
    assert get_context(opened) == before
    assert grant.patient_id == PATIENT
    assert grant.encounter_id == before["encounter"]


@pytest.mark.compliance("REF-06", "RESP-10")
def test_context_that_a_refresh_brings_takes_the_place_of_the_old(
    ehr: EHRSimulator, opened: Launch
) -> None:
    before = get_context(opened)
    newer = {
        "intent": "order",
        "need_patient_banner": "true",
        "fhirContext": [{"reference": "List/1"}, {"display": "none of the three"}],
        "smart_style_url": "https://ehr.example.org/night.json",
        "__vendor": {"x": 1},
        "tenant": None,
    }
    answer(ehr, TOKEN_PATH, expires_in=60, **newer)  # type: ignore[arg-type]
    refresh(opened, ehr)
    assert get_context(opened) == {
        **before,
        "intent": "order",
        "need_patient_banner": "true",
        "fhirContext": newer["fhirContext"],
        "smart_style_url": "https://ehr.example.org/night.json",
        "__vendor": {"x": 1},
    }
    # As with the first response, what is read of it is checked.
    context = LaunchContext.from_parameters(get_context(opened))
    assert context.need_patient_banner is True
    assert [each.reference for each in context.fhir_context] == ["List/1"]


@pytest.mark.compliance("REF-06")
def test_context_that_a_refresh_brings_is_not_for_other_launches(
    ehr: EHRSimulator, opened: Launch
) -> None:
    other = launch(make_browser(), ehr)
    before = get_context(other)
    answer(ehr, TOKEN_PATH, intent="order")
    refresh(opened, ehr)
    assert get_context(opened)["intent"] == "order"
    assert get_context(other) == before


@pytest.mark.compliance("REF-06")
@pytest.mark.parametrize(
    "nothing",
    [
        {"fhirContext": "x", "intent": 7, "need_patient_banner": "perhaps"},
        {"patient": "", "encounter": None, "fhirContext": [], "tenant": ""},
        {"smart_style_url": "http://ehr.example.org/night.json", "fhirContext": [1]},
    ],
)
def test_context_that_says_nothing_changes_nothing(
    ehr: EHRSimulator,
    opened: Launch,
    nothing: dict[str, Any],
) -> None:
    before = get_context(opened)
    answer(ehr, TOKEN_PATH, **nothing)
    assert refresh(opened, ehr).status == TokenGrant.Status.ACTIVE
    assert get_context(opened) == before


@pytest.mark.compliance("REF-06")
def test_patient_that_comes_later_holds_from_then_on(ehr: EHRSimulator) -> None:
    make_registration(ehr_scope="launch openid user/Patient.rs online_access")
    opened = launch(make_browser(), ehr, patient=None)
    assert reload_grant(opened.grant_id).patient_id == ""
    assert opened.context.get("patient") is None
    answer(ehr, TOKEN_PATH, patient="p-1", encounter="e-1")
    grant = refresh(opened, ehr)
    ehr.interceptors.clear()
    assert (grant.patient_id, grant.encounter_id) == ("p-1", "e-1")
    assert get_context(opened)["patient"] == "p-1"
    answer(ehr, TOKEN_PATH, patient="p-2")
    with pytest.raises(ContextChangedError):
        refresh(opened, ehr)
    assert reload_grant(opened.grant_id).patient_id == "p-1"


def test_launches_that_have_ended_stay_as_they_were(
    ehr: EHRSimulator, opened: Launch
) -> None:
    before = get_context(opened)
    Launch.objects.update(status=Launch.Status.ENDED)
    answer(ehr, TOKEN_PATH, intent="order")
    refresh(opened, ehr)
    assert get_context(opened) == before


@pytest.mark.compliance("REF-06")
@pytest.mark.parametrize(
    "changes",
    [
        {"patient": "another"},
        {"encounter": "another"},
        {"patient": {"reference": "Patient/1"}},
        {"encounter": "../1"},
    ],
)
def test_another_patient_or_encounter_ends_launch_and_grant(
    ehr: EHRSimulator,
    opened: Launch,
    changes: dict[str, Any],
) -> None:
    before, encounter = get_context(opened), reload_grant(opened.grant_id).encounter_id
    answer(ehr, TOKEN_PATH, intent="order", **changes)
    check_it_ends(opened, ehr)
    stored = reload_grant(opened.grant_id)
    assert (stored.patient_id, stored.encounter_id) == (PATIENT, encounter)
    assert get_context(opened) == before


@pytest.mark.compliance("REF-06")
def test_reference_to_the_same_patient_and_encounter_ends_nothing(
    ehr: EHRSimulator, opened: Launch
) -> None:
    before = reload_grant(opened.grant_id)
    answer(
        ehr,
        TOKEN_PATH,
        patient=f"Patient/{before.patient_id}",
        encounter=f"Encounter/{before.encounter_id}",
    )
    grant = refresh(opened, ehr)
    assert grant.status == "active"
    assert grant.patient_id == before.patient_id
    assert grant.encounter_id == before.encounter_id


@pytest.mark.compliance("REF-06", "REF-14")
def test_another_patient_in_the_access_token_ends_launch_and_grant(
    ehr: EHRSimulator, opened: Launch
) -> None:
    FHIRServer.objects.update(quirks={"context_in_access_token": True})
    ehr.quirks = ["context_in_access_token"]
    grant = refresh(opened, ehr)
    assert grant.patient_id == PATIENT
    granted = ehr.store.grant_of(grant.refresh_token)
    assert granted is not None
    granted.context["patient"] = "another"
    check_it_ends(opened, ehr)


def check_it_ends(opened: Launch, ehr: EHRSimulator) -> None:
    """A refresh ends launch and grant, with tokens left to be revoked."""
    used = reload_grant(opened.grant_id).refresh_token
    with listening(grant_lost) as lost, pytest.raises(ContextChangedError):
        refresh(opened, ehr)
    row = Launch.objects.get(pk=opened.pk)
    assert (row.status, row.error_code) == ("ended", "context_changed")
    stored = reload_grant(opened.grant_id)
    assert (stored.status, stored.is_revocation_pending) == ("revoked", True)
    # The rotated one, which is what the EHR knows.
    assert stored.refresh_token not in ("", used)
    assert [each["error_code"] for each in lost] == ["context_changed"]
    assert revoke_pending() == 1
    assert all(each.revoked for each in ehr.store.grants())


# The person


def make_id_token(
    ehr: EHRSimulator, *, remove: tuple[str, ...] = (), key: Any = None, **claims: Any
) -> str:
    """An ID token as the EHR makes them, with *claims*."""
    identity = Identity.objects.get()
    now = int(ehr.clock())
    values = {
        "iss": identity.issuer,
        "sub": identity.subject,
        "aud": "growth-chart",
        "exp": now + 300,
        "iat": now,
        **claims,
    }
    for name in remove:
        del values[name]
    key = key or ehr.signing_keys[-1]
    return jwt.encode(values, key.private_key, key.algorithm, headers={"kid": key.kid})


@pytest.mark.compliance("IDT-01", "IDT-04")
def test_refreshed_id_token_of_the_same_person_is_fine(
    ehr: EHRSimulator, opened: Launch, caplog: Any
) -> None:
    # Without a nonce, as OpenID Connect has it.
    answer(ehr, TOKEN_PATH, id_token=make_id_token(ehr))
    with caplog.at_level(logging.WARNING):
        assert refresh(opened, ehr).status == "active"
    assert caplog.text == ""
    assert Launch.objects.get(pk=opened.pk).status == "open"


@pytest.mark.compliance("IDT-01", "IDT-09")
def test_refreshed_id_token_of_another_person_ends_launch_and_grant(
    ehr: EHRSimulator, opened: Launch
) -> None:
    answer(ehr, TOKEN_PATH, id_token=make_id_token(ehr, sub="another"))
    check_it_ends(opened, ehr)
    # Nobody new is known, and nobody is linked to anybody.
    assert Identity.objects.count() == 1


@pytest.mark.compliance("IDT-01", "IDT-03", "IDT-04", "IDT-05")
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"remove": ("aud",)}, "id_token_claim"),  # as the SMART launcher does
        ({"nonce": "of another launch"}, "id_token_claim"),
    ],
)
def test_refreshed_id_token_that_proves_nothing_never_costs_the_grant(
    ehr: EHRSimulator,
    opened: Launch,
    caplog: Any,
    changes: dict[str, Any],
    code: str,
) -> None:
    # Each says that it is of somebody else, too.
    changes = {"sub": "another", **changes}
    answer(ehr, TOKEN_PATH, id_token=make_id_token(ehr, **changes))
    with caplog.at_level(logging.WARNING):
        grant = refresh(opened, ehr)
    assert grant.status == "active"
    assert f"Grant {grant.pk}: refreshed ID token ignored ({code})" in caplog.text
    assert "another" not in caplog.text
    assert Launch.objects.get(pk=opened.pk).status == "open"


def test_id_token_that_cannot_be_checked_now_is_ignored(
    ehr: EHRSimulator, opened: Launch, caplog: Any
) -> None:
    ServerState.objects.update(jwks=None, jwks_fetched_at=None)
    answer(ehr, TOKEN_PATH, id_token=make_id_token(ehr, sub="another"))
    answer(ehr, "jwks", status=500)
    assert refresh(opened, ehr).status == "active"
    assert "refreshed ID token ignored (discovery_status)" in caplog.text


def test_id_token_means_nothing_to_a_grant_without_an_identity(
    ehr: EHRSimulator, opened: Launch
) -> None:
    token = make_id_token(ehr, sub="another")
    Identity.objects.all().delete()
    answer(ehr, TOKEN_PATH, id_token=token)
    assert refresh(opened, ehr).status == "active"


# Algorithms


@pytest.mark.compliance("IDT-06")
@pytest.mark.parametrize(
    ("pinned", "advertised", "signed", "accepted"),
    [
        ("", None, "ES384", True),
        ("", ["RS256", "ES384"], "ES384", True),
        ("", ["RS256"], "ES384", False),
        ("", ["HS256", "none", "RS384"], "RS384", True),
        ("RS256 RS384", ["ES256"], "ES256", False),
    ],
)
def test_algorithms_are_those_the_server_names_within_ours(
    ehr: EHRSimulator,
    pinned: str,
    advertised: list[str] | None,
    signed: str,
    accepted: bool,
) -> None:
    name = "id_token_signing_alg_values_supported"
    make_registration(server__overrides={name: pinned.split()} if pinned else {})
    ehr.id_token_algorithm = signed
    if advertised is not None:
        answer(
            ehr,
            "smart-configuration",
            id_token_signing_alg_values_supported=advertised,
        )
    if accepted:
        assert launch(make_browser(), ehr).identity is not None
        return
    with pytest.raises(AssertionError, match="id_token_signature"):
        launch(make_browser(), ehr)
    assert not TokenGrant.objects.active().exists()


# A refresh token in an answer that is no good


@pytest.fixture
def damage(ehr: EHRSimulator) -> Callable[[Callable[[dict[str, Any]], Any]], None]:
    """Change the next answer of the token endpoint, and that one alone."""

    def damage(change: Callable[[dict[str, Any]], Any]) -> None:
        def respond_once(respond: Respond, request: Request) -> Response:
            response = respond(request)
            if request.path.endswith(TOKEN_PATH):
                document = json.loads(response.get_data())
                changed = change(document)
                response.set_data(
                    changed if isinstance(changed, str) else json.dumps(document)
                )
                ehr.interceptors.remove(respond_once)
            return response

        ehr.interceptors.append(respond_once)

    return damage


@pytest.mark.compliance("REF-07", "REF-08", "REF-12")
@pytest.mark.parametrize(
    "change",
    [
        lambda members: members.update(access_token=None),
        lambda members: members.update(scope=7),
    ],
)
def test_rotated_refresh_token_of_a_malformed_answer_is_kept(
    ehr: EHRSimulator, damage: Any, change: Any, caplog: Any
) -> None:
    make_registration()
    opened = connect(make_browser(), ehr, patient=PATIENT)
    before = reload_grant(opened.grant_id)
    damage(change)
    with (
        caplog.at_level(logging.INFO),
        listening(grant_lost) as lost,
        pytest.raises(MalformedTokenResponseError),
    ):
        refresh(opened, ehr)
    stored = reload_grant(opened.grant_id)
    assert stored.refresh_token != before.refresh_token
    assert stored.access_token == before.access_token
    assert (stored.status, stored.last_error, stored.refresh_failures) == (
        *("active", "token_response_malformed"),
        1,
    )
    assert stored.lease_owner == ""
    # A page has failed; that postpones no worker.
    assert stored.refresh_due_at is not None
    assert stored.refresh_due_at <= timezone.now()
    assert lost == []
    assert (
        f"Grant {stored.pk}: refresh token of an unusable response kept" in caplog.text
    )
    assert stored.refresh_token not in caplog.text
    # The old one, sent again, would have cost the grant.
    assert refresh(opened, ehr).last_error == ""
    assert ehr.reused_refresh_tokens == 0


@pytest.mark.parametrize("note", ["\ud83d", {"\0": {"a": ["\0"]}}])
def test_text_that_no_database_stores_in_another_member_costs_nothing(
    ehr: EHRSimulator, opened: Launch, note: object
) -> None:
    answer(ehr, TOKEN_PATH, vendor_note=note, scope=f"{SCOPE} \0")
    before = reload_grant(opened.grant_id)
    grant = refresh(opened, ehr)
    assert grant.refresh_token != before.refresh_token
    assert grant.access_token != before.access_token
    assert "\ufffd" in str(get_context(opened)["vendor_note"])
    refresh(opened, ehr)
    assert ehr.reused_refresh_tokens == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda members: "not JSON",
        lambda members: members.update(refresh_token=None, access_token=None),
        lambda members: members.update(refresh_token="\n", access_token=None),
    ],
)
def test_answer_without_a_refresh_token_leaves_the_old_one(
    ehr: EHRSimulator, damage: Any, change: Any, opened: Launch
) -> None:
    ehr.rotate_refresh_tokens = False
    before = reload_grant(opened.grant_id)
    damage(change)
    with pytest.raises(MalformedTokenResponseError):
        refresh(opened, ehr)
    assert reload_grant(opened.grant_id).refresh_token == before.refresh_token
    refresh(opened, ehr)


def test_rotated_refresh_token_is_kept_whatever_goes_wrong_after_the_answer(
    ehr: EHRSimulator, registration: ClientRegistration, settings: Any
) -> None:
    (grant_id,) = make_grants(ehr, registration, 1)
    before = reload_grant(grant_id)
    # Workers run no checks that would refuse it: this is to be a number.
    settings.SMART_REFRESH_IDLE_AFTER = "30"
    assert refresh_grants([grant_id]).failed == 1
    stored = reload_grant(grant_id)
    assert (stored.status, stored.last_error) == ("active", "internal_error")
    assert stored.refresh_token in ehr.store.refresh_tokens
    assert stored.refresh_token != before.refresh_token
    assert stored.access_token == before.access_token
    del settings.SMART_REFRESH_IDLE_AFTER
    assert get_access_token(stored) in ehr.store.access_tokens
    assert ehr.reused_refresh_tokens == 0


def test_rotated_refresh_token_does_not_overwrite_a_newer_one(
    ehr: EHRSimulator, damage: Any, opened: Launch
) -> None:
    def change(members: dict[str, Any]) -> None:
        del members["access_token"]
        newer = reload_grant(opened.grant_id)
        newer.set_tokens(access_token="newer", refresh_token="newer still")
        newer.save()

    damage(change)
    with pytest.raises(MalformedTokenResponseError):
        refresh(opened, ehr)
    assert reload_grant(opened.grant_id).refresh_token == "newer still"


# Size


def test_context_that_is_too_large_is_not_stored(
    ehr: EHRSimulator,
) -> None:
    make_registration(ehr_scope=SCOPE)
    answer(ehr, TOKEN_PATH, vendor="x" * 70_000)
    browser = make_browser()
    response = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    assert response.status_code == 502
    row = Launch.objects.get()
    assert row.error_code == "token_response_malformed"
    assert not row.context
    assert not TokenGrant.objects.active().exists()


def test_context_that_a_refresh_makes_too_large_is_not_stored(
    opened: Launch,
    ehr: EHRSimulator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = get_context(opened)
    answer(ehr, TOKEN_PATH, fhirContext=[{"reference": "List/1"}] * 4000)
    with pytest.raises(MalformedTokenResponseError):
        refresh(opened, ehr)
    assert get_context(opened) == before
    # Piece by piece it does not work either, and the tokens stay good.
    answer(ehr, TOKEN_PATH, fhirContext=[], first="x" * 40_000)
    refresh(opened, ehr)
    assert get_context(opened)["first"]
    answer(ehr, TOKEN_PATH, remove=("first",), second="x" * 40_000)
    caplog.clear()
    grant = refresh(opened, ehr)
    assert grant.access_token in ehr.store.access_tokens
    assert "second" not in get_context(opened)
    assert f"Launch {opened.pk}: context not changed" in caplog.text

"""A hostile registered server sends browsers on to an honest one (RFC 9700, 4.4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from django_smart import transport
from django_smart.clients import build_fhir_client
from django_smart.exceptions import FHIRUnauthorizedError
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Identity,
    Launch,
    TokenGrant,
)
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.errors import AuthorizationPageError
from tests.answers import answer
from tests.ehr import (
    REDIRECT_URI,
    SITE,
    get_callback,
    get_launch,
    make_browser,
    make_registration,
    start_login,
)
from tests.factories import register_at
from tests.known import PATIENT

pytestmark = pytest.mark.django_db

_PROMISE = "authorization_response_iss_parameter_supported"
_EVIL_URL = "https://evil.example/fhir"
_EVIL_CALLBACK = f"{SITE}/smart/callback/evil/"


@pytest.fixture
def evil() -> Iterator[EHRSimulator]:
    """A registered server that its owner no longer controls."""
    ehr = EHRSimulator(base_url=_EVIL_URL)
    register_at(ehr, _EVIL_CALLBACK)
    with transport.mounted("https://evil.example", ehr.adapter()):
        make_registration(
            server__slug="evil",
            server__name="Evil",
            server__base_url=_EVIL_URL,
            redirect_uri=_EVIL_CALLBACK,
        )
        yield ehr


def _mix(evil_url: str, honest_url: str) -> str:
    """The request at the honest server, with the state of the one at the evil one."""
    (state,) = parse_qs(urlsplit(evil_url).query)["state"]
    parts = urlsplit(honest_url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return parts._replace(query=urlencode({**query, "state": state})).geturl()


def _sign_in(browser: Any) -> Any:
    user = get_user_model().objects.create_user("victim")
    browser.force_login(user)
    return user


@pytest.mark.compliance("CALL-09")
@pytest.mark.parametrize("connects", [False, True])
@pytest.mark.parametrize("sends_iss", [False, True])
@pytest.mark.parametrize("names", [(), ("issuer", "jwks_uri", "token_endpoint")])
def test_code_of_another_server_is_sent_nowhere(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    evil: EHRSimulator,
    connects: bool,
    sends_iss: bool,
    names: tuple[str, ...],
) -> None:
    # Most EHRs send no iss, which would tell the two servers apart as well.
    values: Any = {name: getattr(ehr, name) for name in names}
    answer(evil, "/smart-configuration", remove=(_PROMISE,), **values)
    victim, attacker = make_browser(), make_browser()
    if connects:
        _sign_in(victim)
    # The attacker's own request at the honest server: their challenge, their nonce.
    theirs = start_login(attacker)
    mixed = _mix(start_login(victim, server="evil"), theirs)
    callback = urlsplit(ehr.authorize(mixed))
    query = {name: values[0] for name, values in parse_qs(callback.query).items()}
    if not sends_iss:
        del query["iss"]
    response = get_callback(victim, callback._replace(query=urlencode(query)).geturl())
    assert response.status_code == 400
    assert response.context["code"] == "callback_mismatch"
    assert not evil.requests_to("token")
    assert not ehr.requests_to("token")
    assert not TokenGrant.objects.active().exists()
    assert not Identity.objects.exists()
    launch = Launch.objects.get(registration__server__slug="evil")
    assert (launch.status, launch.error_code) == ("failed", "callback_mismatch")


def test_server_that_names_all_endpoints_of_another_gets_none_of_its_tokens(
    ehr: EHRSimulator, registration: ClientRegistration, evil: EHRSimulator
) -> None:
    """Tokens of the honest server would be sent to the hostile base URL."""
    victim = get_launch(
        get_callback(b := make_browser(), ehr.authorize(start_login(b)))
    )
    names = ("issuer", "jwks_uri", "authorization_endpoint", "token_endpoint")
    values: Any = {name: getattr(ehr, name) for name in names}
    answer(evil, "/smart-configuration", **values)
    # The client IDs are the same, which the hostile server chose.
    started = start_login(browser := make_browser(), server="evil")
    assert started.startswith(ehr.authorization_endpoint)
    with pytest.raises(AuthorizationPageError, match="redirect_uri"):
        ehr.authorize(started)
    # Even if it knows both redirect URIs, aud has the hostile base URL.
    register_at(ehr, redirect_uris=[REDIRECT_URI, _EVIL_CALLBACK])
    refused = ehr.authorize(start_login(browser, server="evil"))
    assert parse_qs(urlsplit(refused).query)["error"] == ["invalid_request"]
    started = start_login(browser, server="evil")
    # It redirects to its own callback with a code of the honest server instead.
    own = urlsplit(ehr.authorize(start_login(attacker := make_browser())))
    (code,) = parse_qs(own.query)["code"]
    (state,) = parse_qs(urlsplit(started).query)["state"]
    query = urlencode({"code": code, "state": state, "iss": ehr.issuer})
    response = get_callback(browser, f"{_EVIL_CALLBACK}?{query}")
    assert response.status_code >= 400
    assert list(TokenGrant.objects.active()) == [victim.grant]
    assert not evil.requests_to("token")
    assert get_launch(get_callback(attacker, own.geturl())).user == victim.user


def test_each_server_completes_at_its_own_callback(
    ehr: EHRSimulator, registration: ClientRegistration, evil: EHRSimulator
) -> None:
    browser = make_browser()
    for slug, simulator in (("harbour", ehr), ("evil", evil)):
        callback = simulator.authorize(start_login(browser, server=slug))
        assert get_callback(browser, callback).status_code == 302
        browser = make_browser()


@pytest.mark.parametrize("is_known", [False, True])
def test_in_a_group_only_a_known_issuer_tells_servers_apart(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    evil: EHRSimulator,
    is_known: bool,
) -> None:
    """What docs/how-to/connect-many-hospitals.rst says is lost, and what is left."""
    _share_callback(evil if is_known else None)
    answer(evil, "/smart-configuration", issuer=ehr.issuer, jwks_uri=ehr.jwks_uri)
    victim, attacker = make_browser(), make_browser()
    theirs = start_login(attacker)
    callback = ehr.authorize(_mix(start_login(victim, server="evil"), theirs))
    refused = get_callback(victim, callback)
    assert refused.status_code == 400
    if is_known:
        assert refused.context["code"] == "issuer_mismatch"
        assert not evil.requests_to("token")
        return
    # The hostile server has the code now, for the attacker's own launch.
    (sent,) = evil.requests_to("token")
    query = parse_qs(urlsplit(theirs).query)
    stolen = {
        "code": dict(sent.form)["code"],
        "state": query["state"][0],
        "iss": ehr.issuer,
    }
    response = get_callback(attacker, f"{REDIRECT_URI}?{urlencode(stolen)}")
    assert get_launch(response).user is not None


@pytest.mark.parametrize("is_known", [False, True])
def test_in_a_group_a_hostile_server_can_receive_another_ones_token(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    evil: EHRSimulator,
    is_known: bool,
) -> None:
    _share_callback(evil if is_known else None)
    names = ("issuer", "jwks_uri", "token_endpoint")
    values: Any = {name: getattr(ehr, name) for name in names}
    answer(evil, "/smart-configuration", **values)
    started = urlsplit(start_login(victim := make_browser(), server="evil"))
    asked = {name: each[0] for name, each in parse_qs(started.query).items()}
    passed_on = urlencode({**asked, "aud": ehr.base_url})
    callback = ehr.authorize(f"{ehr.authorization_endpoint}?{passed_on}")
    response = get_callback(victim, callback)
    if is_known:
        assert response.context["code"] == "issuer_mismatch"
        assert not ehr.requests_to("token")
        return
    launch = get_launch(response)
    assert launch.grant is not None
    token = launch.grant.access_token
    with pytest.raises(FHIRUnauthorizedError):
        build_fhir_client(launch.grant, launch=launch).read("Patient", PATIENT)
    received = evil.requests_to("fhir")[0]
    assert received.headers["Authorization"] == f"Bearer {token}"


def _share_callback(known: EHRSimulator | None) -> None:
    """Let all servers share one callback; enter the issuer of *known*."""
    ClientRegistration.objects.update(
        callback_group="vendor", callback_id="", redirect_uri=REDIRECT_URI
    )
    if known is not None:
        servers = FHIRServer.objects.filter(base_url=known.base_url)
        assert servers.update(overrides={"issuer": known.issuer}) == 1


# Who may share a callback


def test_callback_belongs_to_one_registration(registration: ClientRegistration) -> None:
    with pytest.raises(ValidationError) as caught:
        _make_second()
    assert "callback" in str(caught.value)
    second = _build_second()
    with pytest.raises(IntegrityError), transaction.atomic():
        second.save()


def test_registrations_of_one_group_share_a_callback(
    registration: ClientRegistration,
) -> None:
    registration.callback_group = "vendor"
    registration.save()
    _make_second(callback_group="vendor")


def test_group_takes_no_callback_of_a_registration_outside(
    registration: ClientRegistration,
) -> None:
    with pytest.raises(ValidationError) as caught:
        _make_second(callback_group="vendor")
    assert set(caught.value.message_dict) == {"callback_group"}


def test_registration_outside_takes_no_callback_of_a_group(
    registration: ClientRegistration,
) -> None:
    registration.callback_group = "vendor"
    registration.save()
    with pytest.raises(ValidationError) as caught:
        _make_second()
    assert set(caught.value.message_dict) == {"callback_group"}


def test_callback_id_that_contradicts_the_redirect_uri_is_refused(
    registration: ClientRegistration,
) -> None:
    registration.redirect_uri, registration.callback_id = _EVIL_CALLBACK, "other"
    with pytest.raises(ValidationError) as caught:
        registration.full_clean()
    assert set(caught.value.message_dict) == {"callback_id"}


def _make_second(**values: Any) -> ClientRegistration:
    return make_registration(
        server__slug="second",
        server__base_url="https://second.example/fhir",
        redirect_uri=REDIRECT_URI,
        **{"callback_group": "", **values},
    )


def _build_second() -> ClientRegistration:
    first = ClientRegistration.objects.get(server__slug="harbour")
    server = first.server
    server.pk, server.slug, server.base_url = None, "third", "https://third.example/r4"
    server.save()
    return ClientRegistration(
        server=server,
        client_id="third",
        client_secret="secret",
        ehr_scope=first.ehr_scope,
        redirect_uri=REDIRECT_URI,
    )

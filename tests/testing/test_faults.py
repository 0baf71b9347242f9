"""Every fault strikes, and strikes only while it is on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jwt
import pytest
import requests

from django_smart.testing.simulator.faults import FAULTS, FaultSet
from django_smart.testing.simulator.faults.registry import edits
from django_smart.testing.simulator.id_tokens import SigningKey
from tests.testing.app import (
    CLIENT_ID,
    CLIENT_SECRET,
    PATIENT,
    App,
    query_of,
    register,
)

SCOPE = "launch/patient patient/*.crs openid fhirUser offline_access"
SIGNING_KEY = SigningKey.generate("RS256")
NEW = {
    "resourceType": "Observation",
    "status": "final",
    "code": {"text": "made up"},
    "subject": {"reference": f"Patient/{PATIENT}"},
}
READING = {"request": {"method": "GET", "url": f"Patient/{PATIENT}"}}
BATCH = {"resourceType": "Bundle", "type": "batch", "entry": [READING]}
# The id of what was just created.
_NEW_ID = re.compile(r"(?<=Observation/)[0-9a-f-]{36}")
_SECRET = re.compile(r"[\w.-]{20,}")
_MANAGEMENT = {
    "introspect": "introspection_endpoint",
    "revoke": "revocation_endpoint",
}
SECRETS = {"access_token", "refresh_token", "id_token", "client_id", "client_secret"}


def prepare(app: App, exchange: str) -> Callable[[], Any]:
    """Make ready for one exchange; the result, called, shows what an app sees."""
    documents = {
        "discovery": f"{app.ehr.base_url}/.well-known/smart-configuration",
        "openid": f"{app.ehr.issuer}/.well-known/openid-configuration",
        "jwks": app.ehr.jwks_uri,
    }
    if exchange in documents:
        return lambda: outline(app.get(documents[exchange], allow_redirects=False))
    if exchange == "register":
        return lambda: outline(app.register_itself())
    if exchange == "authorize":
        return lambda: redirect_of(app)
    if exchange in {"token", "id_token"}:
        code = app.get_code(scope=SCOPE, nonce="n")
        if exchange == "id_token":
            return lambda: read_id_token(app, app.exchange(code).json()["id_token"])
        return lambda: outline(app.exchange(code))
    if exchange == "client_credentials":
        app.client = register(app.ehr, auth_method="private_key_jwt")
        form = {"grant_type": exchange, "scope": "system/*.rs"}
        return lambda: outline(app.post_token(form))
    tokens = app.launch(SCOPE)
    if exchange in {"introspect", "revoke"}:
        return lambda: outline(
            app.session.post(
                getattr(app.ehr, _MANAGEMENT[exchange]),
                data={"token": tokens["access_token"]},
                auth=(CLIENT_ID, CLIENT_SECRET),
            )
        )
    if exchange == "refresh":
        return lambda: outline(app.refresh(tokens["refresh_token"]))
    paths = ("Observation?code=4548-4&_count=10", f"Patient/{PATIENT}")
    return lambda: [
        *(outline(app.get(path, tokens, allow_redirects=False)) for path in paths),
        outline(post(app, "Observation", NEW, tokens)),
        outline(post(app, "", BATCH, tokens)),
    ]


def post(
    app: App, path: str, resource: dict[str, Any], tokens: dict[str, Any]
) -> requests.Response:
    """Create a resource, or do what a Bundle says."""
    headers = {"Content-Type": "application/fhir+json", "Prefer": "return=minimal"}
    return app.send(
        "POST", path, tokens, json=resource, headers=headers, allow_redirects=False
    )


def redirect_of(app: App) -> list[tuple[str, str]]:
    """The answer at the redirect URI, less the code itself."""
    url = app.ehr.authorize(app.authorization_url())
    return [
        (name, "code" if value in app.ehr.store.codes else value)
        for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True)
    ]


def outline(response: requests.Response) -> Any:
    """What is the same in two good answers."""
    try:
        answer = json.loads(response.content)
    except (ValueError, RecursionError):
        answer = response.text
    if isinstance(answer, dict):
        if "link" in answer:
            answer.pop("id", None)
            answer.pop("meta")
            answer["link"] = [one["url"].partition("?")[0] for one in answer["link"]]
        answer.pop("client_id_issued_at", None)
        for name in SECRETS & set(answer):
            if isinstance(answer[name], str) and _SECRET.fullmatch(answer[name]):
                answer[name] = "secret"
    names = ("Location", "Content-Location", "Content-Type")
    headers = [_NEW_ID.sub("new", response.headers.get(name, "")) for name in names]
    return response.status_code, headers, answer


def read_id_token(app: App, token: str) -> Any:
    """Header, claims, and whether the published key verifies the signature."""
    (key,) = (jwt.PyJWK.from_dict(one.as_jwk()) for one in app.ehr.signing_keys)
    options: Any = {
        f"verify_{name}": False for name in ("exp", "iat", "nbf", "aud", "sub")
    }
    try:
        jwt.decode(token, key, algorithms=["RS256"], options=options)
        verifies = True
    except jwt.InvalidTokenError:
        verifies = False
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
        return jwt.get_unverified_header(token), claims, verifies
    except jwt.InvalidTokenError:
        return token


@pytest.fixture(autouse=True)
def waited(app: App, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the slow faults, without waiting; what has no end ends at five."""
    pauses: list[float] = []

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) % 5 != 0

    monkeypatch.setattr(app.ehr, "wait", wait)
    # Making a key takes longer than all the rest.
    app.ehr.signing_keys = [SIGNING_KEY]
    return pauses


@pytest.fixture(autouse=True)
def _short_redirects(app: App) -> None:
    """A redirect to another host is looked at, not followed."""
    app.session.max_redirects = 0
    app.session.resolve_redirects = lambda *a, **k: iter(())  # type: ignore[method-assign]


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_fault_strikes_while_it_is_on(app: App, name: str, waited: list[float]) -> None:
    fault = FAULTS[name]
    assert fault.name == name
    assert fault.description
    assert fault.verdict in {"refuse", "tolerate"}
    good = prepare(app, fault.exchange)()
    look = prepare(app, fault.exchange)
    app.ehr.faults = [name]
    bad = look()
    app.ehr.faults.clear()
    if name.endswith("_after_3_s"):
        assert bad == good
        assert set(waited) == {3}
    else:
        # By their text, as 1 equals True.
        assert repr(bad) != repr(good)
        assert bool(waited) is name.endswith(("_late", "_endless"))
    assert prepare(app, fault.exchange)() == good


def test_names_begin_with_their_exchange() -> None:
    assert len(FAULTS) >= 400
    exchanges = {fault.exchange for fault in FAULTS.values()}
    for name in FAULTS:
        assert name.startswith(tuple(exchanges))


def test_unknown_fault_is_refused(app: App) -> None:
    with pytest.raises(ValueError, match="no such fault: unknown"):
        app.ehr.faults.add("unknown")
    with pytest.raises(ValueError, match="unknown"):
        app.ehr.faults = ["unknown"]
    assert not app.ehr.faults


def test_fault_set_is_a_set() -> None:
    faults = FaultSet(["token_array"])
    faults |= {"fhir_503", "token_array"}
    assert list(faults) == ["fhir_503", "token_array"]
    faults.discard("token_array")
    faults.discard("token_array")
    assert list(faults) == ["fhir_503"]
    assert repr(faults) == "FaultSet(['fhir_503'])"


def test_fault_is_defined_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        edits("token_array", "refuse", "again")(lambda _, response: response)


def test_several_faults_strike_together(app: App) -> None:
    app.ehr.faults = ["token_scope_absent", "token_expires_in_string"]
    answer = app.exchange(app.get_code()).json()
    assert "scope" not in answer
    assert answer["expires_in"] == "3600"


@pytest.mark.parametrize("name", ["fhir_503_once", "fhir_401_twice"])
def test_fault_that_strikes_a_number_of_times_strikes_again(
    app: App, name: str
) -> None:
    tokens = app.launch()
    app.ehr.faults.add(name)
    limit = 1 if name.endswith("once") else 2
    for _ in range(2):
        statuses = [app.get(f"Patient/{PATIENT}", tokens).status_code for _ in range(4)]
        assert statuses[limit:] == [200] * (4 - limit)
        assert all(status in {401, 503} for status in statuses[:limit])
        app.ehr.faults.remove(name)
        app.ehr.faults.add(name)


@pytest.mark.parametrize(
    "name",
    ["refresh_500", "refresh_429", "refresh_html_200", "refresh_503_once"],
)
@pytest.mark.compliance("REF-12")
def test_passing_trouble_leaves_the_refresh_token_good(app: App, name: str) -> None:
    tokens = app.launch(SCOPE)
    app.ehr.faults.add(name)
    app.refresh(tokens["refresh_token"])
    if not name.endswith("once"):
        app.ehr.faults.clear()
    assert app.refresh(tokens["refresh_token"]).status_code == 200
    assert app.ehr.reused_refresh_tokens == 0


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.compliance("REF-07")
def test_refresh_without_a_new_token_keeps_the_old_one(app: App, rotate: bool) -> None:
    app.ehr.rotate_refresh_tokens = rotate
    tokens = app.launch(SCOPE)
    app.ehr.faults.add("refresh_no_refresh_token")
    for _ in range(2):
        answer = app.refresh(tokens["refresh_token"])
        assert answer.status_code == 200
        assert "refresh_token" not in answer.json()


def test_errors_of_the_server_itself_pass_unchanged(app: App) -> None:
    app.ehr.faults = ["token_missing_access_token"]
    assert app.exchange("unknown").json()["error"] == "invalid_grant"


def test_faults_lead_to_the_foreign_origin(app: App) -> None:
    app.ehr.foreign_origin = "http://127.0.0.1:9"
    app.ehr.faults = ["token_redirect_307", "authorize_wrong_iss"]
    assert query_of(app.ehr.authorize(app.authorization_url()))["iss"] == (
        "http://127.0.0.1:9"
    )
    response = app.exchange("any")
    assert response.status_code == 307
    assert response.headers["Location"] == "http://127.0.0.1:9/v/r4/sim/abc/auth/token"

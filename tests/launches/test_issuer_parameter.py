"""``iss`` of the authorization response: no answer of another server is used."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from django_smart.models import Launch
from django_smart.testing import EHRSimulator
from tests.answers import answer
from tests.ehr import get_callback, make_browser, start_ehr_launch
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

SMART = "/smart-configuration"
PROMISE = "authorization_response_iss_parameter_supported"
OTHER = "https://elsewhere.example.net"


def come_back(ehr: EHRSimulator, *, iss: str | None, error: str = "") -> Any:
    """A launch up to the callback, with *iss* in place of the EHR's own."""
    browser = make_browser()
    url = ehr.authorize(start_ehr_launch(browser, ehr), approve=not error)
    parts = urlsplit(url)
    pairs = [pair for pair in parse_qsl(parts.query) if pair[0] != "iss"]
    if iss is not None:
        pairs.append(("iss", iss))
    return get_callback(browser, parts._replace(query=urlencode(pairs)).geturl())


def assert_refused(ehr: EHRSimulator, response: Any) -> None:
    assert response.status_code == 400
    assert b"<code>issuer_mismatch</code>" in response.content
    assert Launch.objects.get().error_code == "issuer_mismatch"
    assert ehr.requests_to("token") == []


@pytest.mark.compliance("CALL-09", "SEC-05")
@pytest.mark.parametrize("promised", [True, False])
@pytest.mark.parametrize("iss", [OTHER, "", "issuer/", "ISSUER", "issuer "])
@pytest.mark.usefixtures("registration")
def test_another_issuer_is_refused_whether_one_was_promised_or_not(
    ehr: EHRSimulator, promised: bool, iss: str
) -> None:
    document: dict[str, Any] = {PROMISE: promised}
    answer(ehr, SMART, **document)
    written = iss.replace("issuer", ehr.issuer).replace("ISSUER", ehr.issuer.upper())
    assert_refused(ehr, come_back(ehr, iss=written))


@pytest.mark.parametrize("change", [{PROMISE: False}, {"remove": (PROMISE,)}])
@pytest.mark.usefixtures("registration")
def test_issuer_that_nobody_promised_may_stay_away(
    ehr: EHRSimulator, change: dict[str, Any]
) -> None:
    answer(ehr, SMART, **change)
    assert come_back(ehr, iss=None).status_code == 302
    assert come_back(ehr, iss=ehr.issuer).status_code == 302


@pytest.mark.compliance("CALL-09")
@pytest.mark.usefixtures("registration")
def test_issuer_from_the_openid_configuration_counts(ehr: EHRSimulator) -> None:
    answer(ehr, SMART, remove=("issuer", PROMISE))
    assert_refused(ehr, come_back(ehr, iss=OTHER))


@pytest.mark.compliance("CALL-09")
def test_issuer_of_the_row_counts_where_discovery_tells_none(ehr: EHRSimulator) -> None:
    make_registration(server__id_token_issuer=ehr.issuer)
    answer(ehr, SMART, remove=("issuer", PROMISE))
    assert_refused(ehr, come_back(ehr, iss=OTHER))
    assert come_back(ehr, iss=ehr.issuer).status_code == 302


def test_issuer_that_cannot_be_compared_is_refused(ehr: EHRSimulator) -> None:
    make_registration(ehr_scope="launch patient/Patient.rs")
    answer(ehr, SMART, remove=("issuer", PROMISE), capabilities=["launch-ehr"])
    answer(ehr, "/openid-configuration", status=404)
    response = come_back(ehr, iss=OTHER)
    assert (response.status_code, response.context["code"]) == (400, "issuer_not_known")
    assert not ehr.requests_to("token")


@pytest.mark.compliance("CALL-09")
def test_issuer_that_the_operator_entered_counts_as_well(ehr: EHRSimulator) -> None:
    make_registration(server__id_token_issuer=OTHER)
    assert_refused(ehr, come_back(ehr, iss=f"{OTHER}/else"))
    response = come_back(ehr, iss=OTHER)
    # The simulator's ID token has its own issuer.
    assert response.context["code"] != "issuer_mismatch"
    assert len(ehr.requests_to("token")) == 1

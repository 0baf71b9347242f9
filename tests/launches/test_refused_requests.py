"""Launch requests that anybody can send: what is refused, and what is left of them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest

from django_smart.models import Launch
from django_smart.testing import EHRSimulator
from tests.ehr import (
    BASE_URL,
    CLIENT_ID,
    PATIENT,
    get_callback,
    get_launch,
    make_browser,
    start_ehr_launch,
    start_login,
)

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("registration")]


def test_log_tells_how_long_a_parameter_is(caplog: pytest.LogCaptureFixture) -> None:
    query = {"iss": BASE_URL, "launch": "x" * 10_000}
    assert make_browser().get("/smart/launch/", query).status_code == 400
    assert "10000 characters" in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-purpose": "prefetch"},
        {"sec-purpose": "prefetch;prerender"},
        {"purpose": "prefetch"},
    ],
)
def test_prefetched_link_starts_and_completes_nothing(
    ehr: EHRSimulator, headers: dict[str, str], mailoutbox: list[Any], settings: Any
) -> None:
    settings.ADMINS = [("Ada", "ada@example.org")]
    browser, sign_in = make_browser(), "/smart/login/?server=harbour"
    launch_id = ehr.create_launch(CLIENT_ID, patient=PATIENT)
    chart = f"/smart/launch/?iss={BASE_URL}&launch={launch_id}"
    for url in (sign_in, chart):
        response = browser.get(url, headers=headers)
        assert (response.status_code, response.content) == (403, b"")
        assert "no-store" in response["Cache-Control"]
    assert not Launch.objects.exists()
    assert not browser.cookies

    callback = urlsplit(ehr.authorize(browser.get(sign_in)["Location"]))
    url = f"{callback.path}?{callback.query}"
    assert browser.get(url, headers=headers).status_code == 403
    assert Launch.objects.get().status == "pending"
    # The click that follows is answered as if nothing had been prefetched.
    assert get_launch(browser.get(url)).status == "open"
    assert browser.get(chart).status_code == 302
    assert browser.get("/smart/jwks.json", headers=headers).status_code == 200
    # Nor does Django report an error of the server for each link.
    assert mailoutbox == []


def test_browser_drops_its_oldest_pending_launches(ehr: EHRSimulator) -> None:
    browser, other = make_browser(), make_browser()
    elsewhere = ehr.authorize(start_ehr_launch(other, ehr))
    urls = [ehr.authorize(start_ehr_launch(browser, ehr)) for _ in range(12)]
    pending = Launch.objects.filter(status="pending")
    assert pending.count() == 11
    for url in urls[:2]:
        response = get_callback(browser, url)
        assert response.status_code == 409
        assert b"<code>state_failed</code>" in response.content
    for url in (urls[2], urls[-1]):
        assert get_launch(get_callback(browser, url)).status == "open"
    assert get_launch(get_callback(other, elsewhere)).status == "open"


@pytest.mark.parametrize(("length", "kept"), [(2000, 2000), (2001, 0)])
def test_page_to_go_to_has_a_limit_of_length(length: int, kept: int) -> None:
    """A longer one leads to the landing page, as one of another site does."""
    path = "/chart/".ljust(length, "x")
    start_login(make_browser(), next=path)
    assert len(Launch.objects.get().next_url) == kept

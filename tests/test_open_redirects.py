"""No open redirector: where a launch leads, whatever ``next`` says."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest

from django_smart.models import ClientRegistration
from tests.ehr import PATIENT, get_callback, get_launch, make_browser, start_login
from tests.site.browsers import SITE_MARKS, open_chart

pytestmark = SITE_MARKS

LOGIN = "/smart/login/"
HOSTILE = (
    "//evil.example",
    "///evil.example",
    "////evil.example/",
    "/\\evil.example",
    "\\\\evil.example",
    "\\/evil.example",
    "/\\/evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    "/\r\n/evil.example",
    "\t//evil.example",
    " //evil.example",
    "\x00//evil.example",
    "/\x00/evil.example",
    "\u2028//evil.example",
    "//\u3002evil.example",
    "／／evil.example",
    "https://evil.example/",
    "HTTPS:evil.example",
    "http:evil.example",
    "https:///evil.example",
    "https:/\\evil.example",
    "https://app.example.org@evil.example/",
    "//app.example.org@evil.example/",
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    "java\nscript:alert(1)",
    "data:text/html,x",
    "%2F%2Fevil.example",
    "/%2Fevil.example",
    "/%5Cevil.example",
    "/%09/evil.example",
    "/.//evil.example",
    "/..//evil.example",
    "/a/..//evil.example",
    f"/~{'k' * 24}//evil.example/",
    f"/~{'k' * 24}/\\evil.example/",
    f"/~{'k' * 24}",
    "evil.example",
    "@evil.example",
    ".evil.example",
    # Names of URLs, which are none of the visitor's business.
    "links",
    "admin:index",
    "nowhere",
    "?a=1",
    "#a",
    "/" + "a" * 9000,
)


def follow(response: Any) -> Any:
    """Where a browser goes, which corrects what people mistype."""
    location = re.sub(r"[\t\r\n]", "", response["Location"].strip()).replace("\\", "/")
    return urlsplit(urljoin("https://app.example.org/smart/callback/", location))


@pytest.mark.parametrize("prefix", ["~", ""])
@pytest.mark.compliance("CALL-08", "SEC-03")
def test_next_never_leaves_the_site(ehr, settings, prefix):
    settings.SMART_LAUNCH_PREFIX = prefix
    for value in HOSTILE:
        browser = make_browser()
        started = browser.get(LOGIN, {"server": "harbour", "next": value})
        assert started["Location"].startswith("https://ehr.example.org/")
        url = ehr.authorize(started["Location"], user=f"Patient/{PATIENT}")
        response = get_callback(browser, url)
        target = follow(response)
        assert response.status_code == 302, value
        assert (target.scheme, target.netloc) == ("https", "app.example.org"), value
        # A second slash at the start would be the start of a host.
        assert not response["Location"].startswith("//"), value


@pytest.mark.compliance("SEC-03")
def test_next_of_the_button_never_leaves_the_site(ehr, django_user_model):
    browser = make_browser()
    browser.force_login(django_user_model.objects.create_user("maria"))
    for value in HOSTILE:
        page = browser.get(LOGIN, {"server": "harbour", "next": value}).content.decode()
        kept = re.findall(r'name="next" value="([^"]*)"', page)
        # The first is the sign-out button's.
        assert len(kept) == 2
        assert kept[0].startswith("/accounts/login/?next=/smart/login/%3Fserver%3D")
        url = ehr.authorize(start_login(browser, next=value), user=f"Patient/{PATIENT}")
        assert follow(get_callback(browser, url)).netloc == "app.example.org", value


@pytest.mark.compliance("SEC-03")
def test_next_of_a_sign_out_never_leaves_the_site():
    browser = make_browser()
    for value in HOSTILE:
        response = browser.post("/smart/logout/", {"next": value})
        assert follow(response).netloc == "app.example.org", value
    assert browser.post("/smart/logout/", {"next": "/a/"})["Location"] == "/a/"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/links/?a=1&b=%2F%C3%A9#part", "/links/?a=1&b=%2F%C3%A9#part"),
        ("/links/é", "/links/%C3%A9"),
        (f"/~{'k' * 24}/links/", "/links/"),
        ("", "/"),
    ],
)
def test_next_within_the_site_is_reached_under_the_launch(ehr, value, expected):
    browser = make_browser()
    started = browser.get("/smart/login/", {"server": "harbour", "next": value})
    url = ehr.authorize(started["Location"], user=f"Patient/{PATIENT}")
    response = get_callback(browser, url)
    key = get_launch(response).key
    assert response["Location"] == f"/~{key}{expected}"


@pytest.mark.parametrize(
    ("landing", "setting", "expected"),
    [
        ("", None, "/"),
        ("", "/links/?a=1", "/links/?a=1"),
        ("", "links", "/links/"),
        ("/page/", "/links/", "/page/"),
    ],
)
def test_ehr_launch_goes_to_the_landing_page(ehr, settings, landing, setting, expected):
    ClientRegistration.objects.update(landing_page=landing)
    if setting is not None:
        settings.SMART_LAUNCH_REDIRECT_URL = setting
    chart = open_chart(ehr)
    assert chart.landing == f"/~{chart.launch.key}{expected}"

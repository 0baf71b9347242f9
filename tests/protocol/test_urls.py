"""URLs: compared, accepted, refused."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.exceptions import InsecureURLError
from django_smart.protocol.urls import (
    get_origin,
    is_https_url,
    is_same_origin,
    is_within_base,
    normalize_base_url,
    validate_https_url,
)

BROKEN = [
    "",
    "ehr.example.org/fhir",
    "/fhir",
    "//ehr.example.org/fhir",
    "https:",
    "https://",
    "https:///fhir",
    "https:ehr.example.org",
    "ftp://ehr.example.org/fhir",
    "javascript:alert(1)",
    "file:///etc/passwd",
    "https://user@ehr.example.org/fhir",
    "https://user:pw@ehr.example.org/fhir",
    "https://ehr.example.org@evil.example/fhir",
    "https://@ehr.example.org/",
    "https://ehr.example.org:port/fhir",
    "https://ehr.example.org:99999/fhir",
    "https://[::1/fhir",
    "https://exa mple.org/",
    " https://ehr.example.org/",
    "https://ehr.example.org/\n",
    "https://ehr.example.org/a\tb",
    "https://ehr.example.org/\x00",
    "https://ehr.example.org\\@evil.example/",
    "https://ehr.example.org/fhir\\..\\x",
    "https://ehr%2eexample.org/",
    "https://ehr,example.org/",
    "https://éhr.example.org/",
    "https://ehr.example.org/é",
]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://ehr.example.org/fhir", "https://ehr.example.org/fhir"),
        ("https://ehr.example.org/fhir/", "https://ehr.example.org/fhir"),
        ("https://ehr.example.org/fhir//", "https://ehr.example.org/fhir/"),
        ("HTTPS://EHR.Example.org/FHIR/R4", "https://ehr.example.org/FHIR/R4"),
        ("https://ehr.example.org", "https://ehr.example.org"),
        ("https://ehr.example.org/", "https://ehr.example.org"),
        ("https://ehr.example.org:443/fhir", "https://ehr.example.org/fhir"),
        ("https://ehr.example.org:/fhir", "https://ehr.example.org/fhir"),
        ("https://ehr.example.org:8443/fhir", "https://ehr.example.org:8443/fhir"),
        ("http://localhost:80/fhir", "http://localhost/fhir"),
        ("http://localhost:8001/fhir", "http://localhost:8001/fhir"),
        ("http://[::1]:8001/fhir", "http://[::1]:8001/fhir"),
        ("https://ehr.example.org/a%20b", "https://ehr.example.org/a%20b"),
    ],
)
def test_base_urls_are_compared_after_normalisation(url, expected):
    assert normalize_base_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        *BROKEN,
        "https://ehr.example.org/fhir?a=b",
        "https://ehr.example.org/fhir?",
        "https://ehr.example.org/fhir#a",
        "https://ehr.example.org/fhir/../other",
        "https://ehr.example.org/fhir/%2E%2e/other",
    ],
)
def test_base_urls_that_could_be_read_in_two_ways_are_refused(url):
    with pytest.raises(InsecureURLError):
        normalize_base_url(url)


@pytest.mark.compliance("SEC-04", "TOK-05", "DISC-14")
@pytest.mark.parametrize(
    "url",
    [
        "https://ehr.example.org",
        "https://ehr.example.org/token?tenant=1",
        "HTTPS://EHR.EXAMPLE.ORG/token",
        "https://10.0.0.7:8443/token",
    ],
)
def test_https_urls_come_back_unchanged(url):
    assert validate_https_url(url) == url


@pytest.mark.compliance("SEC-04", "TOK-05", "DISC-14")
@pytest.mark.parametrize(
    "url", [*BROKEN, "http://ehr.example.org/token", "https://ehr.example.org/#x"]
)
def test_urls_that_secrets_must_not_travel_to_are_refused(url):
    with pytest.raises(InsecureURLError, match="token_endpoint"):
        validate_https_url(url, what="token_endpoint")


def test_plain_http_is_for_the_named_hosts_alone():
    hosts = frozenset({"localhost", "::1"})
    for url in ("http://localhost:8001/token", "http://[::1]/t", "http://LOCALHOST/"):
        assert validate_https_url(url, insecure_hosts=hosts) == url
    for url in ("http://localhost.evil.example/", "http://127.0.0.1/"):
        with pytest.raises(InsecureURLError, match="SMART_INSECURE_HTTP_HOSTS"):
            validate_https_url(url, insecure_hosts=hosts)


def test_plain_http_on_this_machine_is_refused_with_what_to_write():
    for host in ("localhost", "127.0.0.1", "::1"):
        netloc = f"[{host}]" if ":" in host else host
        with pytest.raises(InsecureURLError, match=f'add "{host}" to that setting'):
            validate_https_url(f"http://{netloc}:8001/")
    with pytest.raises(InsecureURLError) as caught:
        validate_https_url("http://ehr.example.org/")
    assert "development" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://EHR.example.org:443/fhir?x=1#y", "https://ehr.example.org"),
        ("http://localhost:8001", "http://localhost:8001"),
        ("https://[2001:db8::1]:8443/", "https://[2001:db8::1]:8443"),
        ("https://ehr.example.org:0/", "https://ehr.example.org:0"),
    ],
)
def test_the_origin_is_written_as_browsers_do(url, origin):
    assert get_origin(url) == origin


def test_a_broken_url_has_no_origin():
    with pytest.raises(InsecureURLError):
        get_origin("ehr.example.org")


def test_a_link_may_be_shown_if_it_is_https():
    assert is_https_url("https://ehr.example.org/help#denied")
    assert not is_https_url("http://ehr.example.org/help")
    assert not is_https_url("javascript:alert(1)")


def test_origins_are_the_same_if_scheme_host_and_port_are():
    assert is_same_origin("https://a.example/x", "https://A.example:443/y?z")
    assert not is_same_origin("https://a.example", "http://a.example")
    assert not is_same_origin("https://a.example", "https://a.example:8443")
    assert not is_same_origin("https://a.example", "https://b.a.example")
    assert not is_same_origin("https://a.example", "nonsense")
    assert not is_same_origin("nonsense", "nonsense")


BASE = "https://ehr.example.org/v/r4/fhir"


@pytest.mark.compliance("FHIR-02", "RESP-20")
@pytest.mark.parametrize(
    "url",
    [
        BASE,
        f"{BASE}/",
        f"{BASE}/Patient/1",
        f"{BASE}/Observation?code=http://a/../b&x=%2e%2e",
        f"{BASE}?_getpages=1",
        f"{BASE}/Patient/1#x",
        f"{BASE}/Patient/a..b",
        f"{BASE}/Patient/...",
        "HTTPS://EHR.EXAMPLE.ORG:443/v/r4/fhir/Patient/1",
    ],
)
def test_urls_below_the_base_are_within_it(url):
    assert is_within_base(url, BASE)
    assert is_within_base(url, f"{BASE}/")


@pytest.mark.compliance("FHIR-02", "RESP-20")
@pytest.mark.parametrize(
    "url",
    [
        *BROKEN,
        "https://ehr.example.org/v/r4/fhirs",
        "https://ehr.example.org/v/r4/FHIR/Patient/1",
        "https://ehr.example.org/v/r4",
        "https://ehr.example.org/",
        "https://ehr.example.org//v/r4/fhir/x",
        "http://ehr.example.org/v/r4/fhir/x",
        "https://ehr.example.org:444/v/r4/fhir/x",
        "https://ehr.example.org.evil.example/v/r4/fhir/x",
        "https://evil.example/v/r4/fhir/x",
        "https://user@ehr.example.org/v/r4/fhir/x",
        f"{BASE}/../other",
        f"{BASE}/..",
        f"{BASE}/./x",
        f"{BASE}/%2e%2e/other",
        f"{BASE}/%2E./other",
        f"{BASE}/.%2e/other",
        f"{BASE}/%252e%252e/other",
        f"{BASE}/..%2fother",
        f"{BASE}/..%5cother",
        f"{BASE}/x%2f..%2f..%2fother",
        f"{BASE}/..;/other",
        f"{BASE}/..;x=1/other",
        f"{BASE}/Patient/..%3b/other",
    ],
)
def test_urls_outside_the_base_are_not_within_it_however_disguised(url):
    assert not is_within_base(url, BASE)


def test_a_base_at_the_host_root_holds_its_whole_host():
    assert is_within_base("https://h.example/Patient/1", "https://h.example")
    assert not is_within_base("https://i.example/Patient/1", "https://h.example")
    assert not is_within_base("https://h.example/x", "nonsense")


_URLS = st.one_of(
    st.text(max_size=40),
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["https://", "http://", "HTTPS://", "https:/", "ftp://", "//"]),
        st.sampled_from(
            ["a.example", "u@a.example", "a.example:1", "[::1]", "", "a.example:x"]
        ),
        st.text("/.%2eE;\\?#a", max_size=12),
        st.text(max_size=4),
    ),
)


@given(_URLS)
def test_any_text_is_accepted_unchanged_or_refused(url):
    try:
        assert validate_https_url(url) == url
    except InsecureURLError:
        return
    parts = urlsplit(url)
    assert parts.scheme == "https"
    assert parts.hostname
    assert parts.username is None


@given(_URLS)
def test_normalising_twice_changes_no_more_than_another_slash(url):
    try:
        once = normalize_base_url(url)
    except InsecureURLError:
        return
    assert normalize_base_url(f"{once}/") == once


@given(_URLS, _URLS)
def test_what_is_within_a_base_is_of_its_origin(url, base):
    if is_within_base(url, base):
        assert is_same_origin(url, base)

"""Launches in a frame of the EHR's: cookies, headers, and the way out."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import django
import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client
from django.urls import path
from django.utils import timezone
from django.views.decorators.clickjacking import xframe_options_deny

from django_smart.grants.refresh import get_access_token
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Identity,
    Launch,
    TokenGrant,
)
from tests.answers import answer
from tests.ehr import (
    PATIENT,
    get_callback,
    get_launch,
    get_launch_cookies,
    launch,
    make_browser,
)
from tests.factories import expire, make_registration, make_server, make_user
from tests.known import BY_POST
from tests.site.browsers import Chart
from tests.site.urls import urlpatterns as site

EHR = "https://ehr.example.org"
PORTAL = "https://portal.example.com:8443"
ANCESTORS = f"frame-ancestors {EHR} {PORTAL}"
MARK = "__Host-smart_browser_frame"
IN_FRAME = {"Sec-Fetch-Dest": "iframe", "Sec-Fetch-Site": "cross-site"}

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


def _cookies(request: HttpRequest) -> HttpResponse:
    """Sets one and takes one away, as any view may."""
    response = HttpResponse("ok")
    response.set_cookie("colour", "blue", max_age=60, httponly=True)
    response.delete_cookie("sound")
    return response


async def _acookies(request: HttpRequest) -> HttpResponse:
    return _cookies(request)


def _own_policy(request: HttpRequest) -> HttpResponse:
    response = HttpResponse("ok")
    response["Content-Security-Policy"] = request.GET["policy"]
    return response


@xframe_options_deny
def _never(request: HttpRequest) -> HttpResponse:
    response = HttpResponse("transfer money")
    response["Content-Security-Policy"] = "frame-ancestors 'none'"
    return response


def _banner(request: Any) -> HttpResponse:
    return JsonResponse({"needed": request.smart.need_patient_banner})


def _context(request: Any) -> HttpResponse:
    return JsonResponse(dict(request.smart.context))


urlpatterns = [
    *site,
    path("banner/", _banner),
    path("never/", _never),
    path("context/", _context),
    path("cookies/", _cookies),
    path("acookies/", _acookies),
    path("policy/", _own_policy),
]


@pytest.fixture
def server(ehr: Any) -> FHIRServer:
    """An EHR that may show this site in a frame."""
    return make_registration(server__frame_origins=[EHR, PORTAL]).server


def begin(
    browser: Client,
    ehr: Any,
    *,
    dest: str = "iframe",
    site: str = "cross-site",
    **context: Any,
) -> Any:
    """The frame's first request."""
    values = {
        "iss": ehr.base_url,
        "launch": ehr.create_launch("growth-chart", patient=PATIENT, **context),
    }
    headers = {"Sec-Fetch-Dest": dest, "Sec-Fetch-Site": site}
    return browser.get("/smart/launch/", values, headers=headers)


def follow(browser: Client, response: Any, **headers: str) -> Any:
    """The frame goes where it is sent."""
    assert response.status_code == 302, response.content
    return browser.get(response["Location"], headers={**IN_FRAME, **headers})


def open_framed(ehr: Any, browser: Client | None = None, **headers: str) -> Chart:
    """A whole launch in a frame."""
    browser = browser or make_browser()
    started = begin(browser, ehr, site=headers.get("Sec-Fetch-Site", "cross-site"))
    if started["Location"].startswith("/"):
        started = follow(browser, started, **headers)
    url = ehr.authorize(started["Location"])
    landed = browser.get(
        urlsplit(url).path, parse_qs(urlsplit(url).query), headers=IN_FRAME | headers
    )
    assert landed.status_code == 302, landed.content
    opened = Launch.objects.with_related().latest("completed_at")
    return Chart(browser, opened, landed["Location"])


def attributes(response: Any) -> dict[str, tuple[str, bool, bool]]:
    """``SameSite``, ``Secure`` and ``Partitioned`` of each cookie, as they are sent."""
    found = {}
    for name, cookie in response.cookies.items():
        sent = [part.strip().lower() for part in cookie.OutputString().split(";")]
        (same_site,) = [p for p in sent if p.startswith("samesite=")] or [""]
        found[name] = (
            same_site.removeprefix("samesite="),
            "secure" in sent,
            "partitioned" in sent,
        )
    return found


FRAMED = ("none", True, True)


@pytest.mark.compliance("EHRL-08")
def test_all_cookies_of_a_framed_launch_come_back_in_the_frame(ehr, server):
    browser = make_browser()
    probe = begin(browser, ehr)
    assert attributes(probe)[MARK] == FRAMED
    assert set(attributes(probe).values()) == {FRAMED}
    started = follow(browser, probe)
    url = ehr.authorize(started["Location"])
    landed = browser.get(urlsplit(url).path, parse_qs(urlsplit(url).query))
    assert attributes(landed)["sessionid"] == FRAMED
    assert set(attributes(landed).values()) == {FRAMED}
    opened = Launch.objects.get()
    assert opened.is_framed is True
    form = browser.get(f"{landed['Location'].rstrip('/')}/form/")
    assert attributes(form) == {"csrftoken": FRAMED}


@pytest.mark.parametrize("method", ["get", "aget"])
@pytest.mark.parametrize("view", ["/cookies/", "/acookies/"])
@pytest.mark.parametrize("prefixed", [True, False])
def test_cookies_of_the_site_s_views_do_so_as_well(ehr, server, method, view, prefixed):
    chart = open_framed(ehr)
    if not prefixed:
        chart.landing = "/"
    response = getattr(chart, method)(view)
    assert attributes(response) == {"colour": FRAMED, "sound": FRAMED}
    colour, sound = response.cookies["colour"], response.cookies["sound"]
    # What else was said of them stays.
    assert (colour.value, colour["max-age"], colour["httponly"]) == ("blue", 60, True)
    assert (sound.value, sound["max-age"]) == ("", 0)
    assert "expires=Thu, 01 Jan 1970" in sound.OutputString()


@pytest.mark.compliance("EHRL-08")
@pytest.mark.parametrize("method", ["get", "aget"])
@pytest.mark.parametrize("prefix", ["~", ""])
def test_the_server_s_origins_alone_may_frame_the_pages(
    ehr, server, settings, method, prefix
):
    settings.SMART_LAUNCH_PREFIX = prefix
    response = getattr(open_framed(ehr), method)("/whoami/")
    assert response["Content-Security-Policy"] == ANCESTORS
    assert "X-Frame-Options" not in response


@pytest.mark.parametrize("prefix", ["~", ""])
def test_page_around_the_frame_cannot_show_what_is_not_the_launch_s(
    ehr, server, settings, prefix
):
    """The user types a password in the frame, as the package may ask."""
    settings.SMART_LAUNCH_PREFIX = prefix
    settings.LOGIN_URL = "/admin/login/"
    chart = open_framed(ehr)
    staff = make_user("ada", is_staff=True, is_superuser=True)
    chart.browser.force_login(
        staff, backend="django.contrib.auth.backends.ModelBackend"
    )
    for url in (
        *("/never/", "/admin/", f"/admin/auth/user/{staff.pk}/password/"),
        *("/accounts/password_change/", "/smart/connections/", "/nowhere/"),
        "/admin/login/?next=/admin/",
    ):
        response = chart.browser.get(url, headers=IN_FRAME)
        assert response["X-Frame-Options"] == "DENY"
        assert "https" not in response.get("Content-Security-Policy", "")
    # Its cookies work in the frame, as everywhere there.
    cookies = chart.browser.get("/cookies/", headers=IN_FRAME)
    assert cookies["X-Frame-Options"] == "DENY"
    assert attributes(cookies)["colour"] == FRAMED


def test_sign_in_that_a_launch_asks_for_can_be_done_in_the_frame(ehr, server, settings):
    settings.LOGIN_URL = "/admin/login/"
    chart = open_framed(ehr)
    staff = User.objects.get()
    staff.is_staff = True
    staff.set_password("secret")
    staff.save()
    chart.browser.post("/smart/logout/", headers=IN_FRAME)
    started = begin(chart.browser, ehr)
    asked = get_callback(chart.browser, ehr.authorize(started["Location"]))
    question = chart.browser.get(asked["Location"], headers=IN_FRAME)
    sign_in = question.context["sign_in_url"]
    assert sign_in.startswith("/admin/login/?next=/smart/decide/")
    form = chart.browser.get(sign_in, headers=IN_FRAME)
    assert form["Content-Security-Policy"] == ANCESTORS
    # Also after a wrong password, and when the session of an open chart ran out.
    values = {"username": staff.username, "password": "wrong"}
    form = chart.browser.post(sign_in, values, headers=IN_FRAME)
    assert form["Content-Security-Policy"] == ANCESTORS
    values["password"] = "secret"
    signed_in = chart.browser.post(sign_in, values, headers=IN_FRAME)
    opened = get_launch(follow(chart.browser, signed_in))
    del chart.browser.cookies["sessionid"]
    page = f"/~{opened.key}/links/"
    form = chart.browser.get("/admin/login/", {"next": page}, headers=IN_FRAME)
    assert form["Content-Security-Policy"] == ANCESTORS


def test_windows_of_their_own_keep_the_site_s_cookies_and_headers(ehr, server):
    browser = make_browser()
    opened = launch(browser, ehr)
    assert opened.is_framed is False
    response = browser.get(f"/~{opened.key}/cookies/")
    assert attributes(response) == {
        "colour": ("", False, False),
        "sound": ("", False, False),
    }
    assert response["X-Frame-Options"] == "DENY"
    assert "Content-Security-Policy" not in response
    for name in get_launch_cookies(browser):
        assert browser.cookies[name]["samesite"] == "Lax"
        assert "partitioned" not in browser.cookies[name].OutputString().lower()


def test_window_and_frame_of_one_jar_have_each_their_own(ehr, server):
    """Browsers keep them apart; where one does not, each launch knows what it is."""
    chart = open_framed(ehr)
    window = launch(chart.browser, ehr)
    plain = chart.browser.get(f"/~{window.key}/cookies/")
    assert plain["X-Frame-Options"] == "DENY"
    assert attributes(plain)["colour"] == ("", False, False)
    framed = chart.get("/cookies/")
    assert framed["Content-Security-Policy"] == ANCESTORS
    assert attributes(framed)["colour"] == FRAMED


@pytest.mark.parametrize("dest", ["iframe", "frame", "embed", "object"])
def test_every_kind_of_frame_counts(ehr, server, dest):
    assert attributes(begin(make_browser(), ehr, dest=dest))[MARK] == FRAMED


@pytest.mark.parametrize("dest", ["document", "empty", "", "IFRAME"])
def test_whatever_else_asks_is_no_frame(ehr, server, dest):
    response = begin(make_browser(), ehr, dest=dest)
    assert response["Location"].startswith(EHR)
    assert response["X-Frame-Options"] == "DENY"


# Before anything is spent


def test_blocked_cookies_are_found_out_before_anything_is_spent(ehr, server):
    browser = make_browser()
    probe = begin(browser, ehr)
    browser.cookies.clear()  # which the browser did not keep
    page = follow(browser, probe)
    assert page.status_code == 200
    assert page["Content-Security-Policy"] == ANCESTORS
    assert "X-Frame-Options" not in page
    assert not Launch.objects.exists()
    assert not ehr.requests
    # In a window of its own the same launch goes on.
    (link,) = re.findall(r'href="(/smart/launch/[^"]+)"', page.content.decode())
    assert "cookies=" not in link
    assert 'target="_blank"' in page.content.decode()
    window = make_browser()
    started = window.get(link.replace("&amp;", "&"))
    callback = get_callback(window, ehr.authorize(started["Location"]))
    assert callback.status_code == 302
    assert Launch.objects.get().is_framed is False


@pytest.mark.compliance("RESP-13")
@pytest.mark.parametrize(
    "values",
    [{"frame_origins": []}, {"quirks": {"authorize_in_frame": False}}, {}],
    ids=["not embedded", "not authorized in the frame", "cookies blocked"],
)
def test_banner_around_the_frame_is_not_around_the_window(ehr, server, values):
    ClientRegistration.objects.update(ehr_scope="launch patient/*.rs offline_access")
    FHIRServer.objects.update(**values)
    page = begin(make_browser(), ehr, need_patient_banner=False)
    if not values:
        page = follow(make_browser(), page)
    (link,) = re.findall(r'href="(/smart/launch/[^"]+)"', page.content.decode())
    window = make_browser()
    started = window.get(link.replace("&amp;", "&"))
    opened = get_launch(get_callback(window, ehr.authorize(started["Location"])))
    chart = Chart(window, opened, f"/~{opened.key}/")
    assert chart.get("/banner/").json() == {"needed": None}
    # The context is what the EHR sent.
    assert not any("django_smart" in name for name in chart.get("/context/").json())
    # The EHR says it again.
    answer(ehr, "/auth/token", need_patient_banner=False)
    get_access_token(expire(TokenGrant.objects.get(), ehr))
    assert Launch.objects.get().context["need_patient_banner"] is False
    assert chart.get("/banner/").json() == {"needed": None}


@pytest.mark.compliance("RESP-13")
@pytest.mark.parametrize("dest", ["iframe", "document"])
def test_ehr_that_shows_the_patient_is_believed_where_it_opened_the_app(
    ehr, server, dest
):
    browser = make_browser()
    started = begin(browser, ehr, dest=dest, need_patient_banner=False)
    if dest == "iframe":
        started = follow(browser, started)
    opened = get_launch(get_callback(browser, ehr.authorize(started["Location"])))
    page = browser.get(f"/~{opened.key}/banner/")
    assert page.json() == {"needed": False}


def test_frame_whose_cookies_come_back_is_asked_once(ehr, server):
    chart = open_framed(ehr)
    again = begin(chart.browser, ehr)
    assert again["Location"].startswith(EHR)
    assert MARK not in again.cookies


def test_cookie_of_another_jar_proves_nothing(ehr, server):
    browser = make_browser()
    launch(browser, ehr)
    probe = begin(browser, ehr)
    assert urlsplit(probe["Location"]).path == "/smart/launch/"
    assert attributes(probe)[MARK] == FRAMED
    del browser.cookies[MARK]
    assert b"Open in a new window" in follow(browser, probe).content


def test_server_that_may_not_be_framed_itself_opens_a_window(ehr, server):
    FHIRServer.objects.update(quirks={"authorize_in_frame": False})
    page = begin(make_browser(), ehr)
    assert b"Open in a new window" in page.content
    assert page["Content-Security-Policy"] == ANCESTORS
    assert not page.cookies
    assert not Launch.objects.exists()
    assert not ehr.requests


def test_server_that_may_not_embed_changes_no_header(ehr, server):
    FHIRServer.objects.update(frame_origins=[])
    page = begin(make_browser(), ehr)
    assert b"Open in a new window" in page.content
    assert page["X-Frame-Options"] == "DENY"
    assert "Content-Security-Policy" not in page
    assert not page.cookies
    assert not Launch.objects.exists()


def test_embedding_that_is_switched_off_ends_at_once(ehr, server):
    chart = open_framed(ehr)
    FHIRServer.objects.update(frame_origins=[])
    response = chart.get("/cookies/")
    assert response["X-Frame-Options"] == "DENY"
    assert attributes(response)["colour"] == ("", False, False)


def test_frame_of_this_very_site_shares_the_ordinary_cookies(ehr, server):
    """An EHR and an app of one hospital's domain: the jar is that of the tabs."""
    same_site = {"Sec-Fetch-Site": "same-site"}
    browser = make_browser()
    tab = launch(browser, ehr)
    chart = open_framed(ehr, browser, **same_site)
    assert chart.launch.is_framed is True
    response = chart.get("/cookies/")
    assert response["Content-Security-Policy"] == ANCESTORS
    assert attributes(response)["colour"] == ("", False, False)
    # A page without a launch, in the frame and in a tab.
    page = browser.get("/smart/login/", headers={**IN_FRAME, **same_site})
    assert page["Content-Security-Policy"] == ANCESTORS
    page = browser.get("/smart/login/", headers={"Sec-Fetch-Dest": "document"})
    assert page["X-Frame-Options"] == "DENY"
    assert browser.get(f"/~{tab.key}/whoami/").json()["patient"] == PATIENT


def test_frame_of_this_very_site_with_blocked_cookies_opens_a_window(ehr, server):
    browser = make_browser()
    probe = begin(browser, ehr, site="same-site")
    assert attributes(probe)[MARK] == ("lax", True, False)
    browser.cookies.clear()
    page = follow(browser, probe, **{"Sec-Fetch-Site": "same-site"})
    assert b"Open in a new window" in page.content


# Pages of the protocol


def test_error_pages_of_a_framed_launch_can_be_read(ehr, server):
    browser = make_browser()
    ehr.faults = {"discovery_500"}
    page = follow(browser, begin(browser, ehr))
    assert page.status_code >= 400
    assert page["Content-Security-Policy"] == ANCESTORS
    assert "X-Frame-Options" not in page


def test_refusal_at_the_ehr_can_be_read_in_the_frame(ehr, server):
    browser = make_browser()
    started = follow(browser, begin(browser, ehr))
    response = get_callback(browser, ehr.authorize(started["Location"], approve=False))
    assert response.status_code == 403
    assert response["Content-Security-Policy"] == ANCESTORS
    # Also where the cookie was lost meanwhile.
    started = begin(browser, ehr)
    response = get_callback(make_browser(), ehr.authorize(started["Location"]))
    assert b"<code>state_foreign</code>" in response.content
    assert response["Content-Security-Policy"] == ANCESTORS


@pytest.mark.parametrize("url", ["/smart/login/", "/chart/", "/smart/callback/"])
def test_pages_that_lead_to_a_launch_can_be_read_in_the_frame(ehr, server, url):
    chart = open_framed(ehr)
    # The next launch makes the page ask for which one it is.
    open_framed(ehr, chart.browser)
    response = chart.browser.get(url, headers=IN_FRAME)
    assert response["Content-Security-Policy"] == ANCESTORS
    assert "X-Frame-Options" not in response
    # The same cookies in a window of its own, which old browsers let happen.
    response = chart.browser.get(url, headers={"Sec-Fetch-Dest": "document"})
    assert response["X-Frame-Options"] == "DENY"


def test_ended_and_unknown_launches_are_told_of_in_the_frame(ehr, server):
    chart = open_framed(ehr)
    Launch.objects.end(reason="signed_out", now=timezone.now())
    assert chart.get("/links/").status_code == 410
    assert chart.get("/links/")["Content-Security-Policy"] == ANCESTORS
    chart.landing = f"/~{'A' * 24}/"
    assert chart.get("/links/").status_code == 404
    assert chart.get("/links/")["Content-Security-Policy"] == ANCESTORS


def test_page_after_sign_out_can_be_read_in_the_frame(ehr, server):
    chart = open_framed(ehr)
    digest = chart.launch.browser_digest
    response = chart.browser.post("/smart/logout/", headers=IN_FRAME)
    assert set(attributes(response).values()) == {FRAMED}
    assert response.cookies["sessionid"]["max-age"] == 0
    home = follow(chart.browser, response)
    assert home["Content-Security-Policy"] == ANCESTORS
    assert chart.get("/links/").status_code == 410
    # It is a new browser to every launch from now on.
    opened = open_framed(ehr, chart.browser).launch
    assert opened.browser_digest != digest


def test_form_that_is_sent_to_the_ehr_can_be_in_the_frame(ehr, server):
    FHIRServer.objects.update(authorization_parameters=BY_POST)
    browser = make_browser()
    page = follow(browser, begin(browser, ehr))
    policy = page["Content-Security-Policy"]
    assert policy.endswith(f"; {ANCESTORS}")
    assert policy.count("frame-ancestors") == 1
    assert policy.startswith("default-src 'none'; script-src")
    assert "X-Frame-Options" not in page


def test_login_in_a_frame_goes_on_if_it_is_the_same_server_s(ehr, server):
    chart = open_framed(ehr)
    url = "/smart/login/?server=harbour&next=/links/"
    confirm = chart.browser.get(url, headers=IN_FRAME)
    assert confirm["Content-Security-Policy"] == ANCESTORS
    values = {"server": "harbour", "next": "/links/"}
    form = {**values, "user": chart.launch.user_id}
    started = chart.browser.post("/smart/login/", form, headers=IN_FRAME)
    assert started["Location"].startswith(EHR)
    assert Launch.objects.order_by("-pk")[0].is_framed is True
    # Another server's page would not be shown in this one's frame.
    make_server(slug="other", name="Other", base_url="https://o.example")
    chart.browser.cookies[MARK] = "999"
    for method, sent in (("get", values), ("post", form)):
        page = getattr(chart.browser, method)("/smart/login/", sent, headers=IN_FRAME)
        link = "/smart/login/?server=harbour&amp;next=%2Flinks%2F"
        assert f'href="{link}" target="_blank"' in page.content.decode()


def test_click_in_a_frame_never_lets_an_account_sign_in(ehr, server):
    """The page around it could lay its own over ours."""
    browser, user = make_browser(), make_user("maria")
    browser.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    started = follow(browser, begin(browser, ehr))
    held = get_callback(browser, ehr.authorize(started["Location"]))["Location"]
    response = browser.post(held, {"choice": "yes"}, headers=IN_FRAME)
    # It is not asked there.
    get_launch(response)
    identity = Identity.objects.get()
    assert (identity.user, identity.may_sign_in) == (user, False)
    asking = f"/smart/connections/?account={identity.pk}"
    button = b'name="may_sign_in"'
    assert button not in browser.get(asking, headers=IN_FRAME).content
    choice = {"identity": identity.pk, "may_sign_in": "on"}
    browser.post("/smart/connections/", choice, headers=IN_FRAME)
    assert not Identity.objects.get().may_sign_in
    # In a window of its own, it can be chosen.
    assert button in browser.get(asking).content


def test_form_of_a_login_in_a_frame_without_cookies_opens_a_window(ehr, server):
    page = make_browser().post("/smart/login/", {"server": "harbour"}, headers=IN_FRAME)
    assert b"Open in a new window" in page.content
    assert not Launch.objects.exists()


# The cookie that says so


@pytest.mark.parametrize("value", ["", "x", "-1", "1~1", "1a", "9" * 19])
def test_malformed_mark_of_a_frame_is_none(ehr, server, value):
    chart = open_framed(ehr)
    chart.browser.cookies[MARK] = value
    assert chart.get("/links/").status_code == 200
    page = chart.browser.get("/smart/login/", headers={"Sec-Fetch-Dest": "document"})
    assert page["X-Frame-Options"] == "DENY"
    assert "partitioned" not in page.cookies.output().lower()


def test_mark_of_a_frame_opens_no_launch(ehr, server):
    chart = open_framed(ehr)
    other = make_browser()
    other.cookies[MARK] = chart.browser.cookies[MARK].value
    assert other.get(f"/~{chart.launch.key}/links/").status_code == 403


def test_mark_of_an_unknown_server_changes_nothing(ehr, server):
    browser = make_browser()
    browser.cookies[MARK] = str(10**17)
    response = browser.get("/cookies/")
    assert response["X-Frame-Options"] == "DENY"
    assert attributes(response)["colour"] == ("", False, False)


def test_two_first_frames_at_one_moment_both_complete(ehr, server):
    first, second, browser = make_browser(), make_browser(), make_browser()
    started = []
    for tab in (first, second):
        started.append(begin(tab, ehr))
        browser.cookies.update(tab.cookies)
    keys = []
    for response in started:
        authorization = follow(browser, response)
        callback = get_callback(browser, ehr.authorize(authorization["Location"]))
        keys.append(callback["Location"].split("/")[1])
    for key in keys:
        assert browser.get(f"/{key}/whoami/").json()["launched"] is True


def test_first_answer_of_another_frame_may_come_while_a_launch_is_under_way(
    ehr, server
):
    browser, slow = make_browser(), make_browser()
    authorization = follow(browser, begin(browser, ehr))
    late = begin(slow, ehr)
    browser.cookies.update(slow.cookies)
    keys = []
    for location in (
        authorization["Location"],
        follow(browser, late)["Location"],
    ):
        callback = get_callback(browser, ehr.authorize(location))
        assert callback.status_code == 302, callback.content
        keys.append(callback["Location"].split("/")[1])
    for key in keys:
        assert browser.get(f"/{key}/whoami/").json()["launched"] is True


# Policies of the site's own


@pytest.mark.parametrize(
    ("policy", "merged"),
    [
        ("default-src 'self'", f"default-src 'self'; {ANCESTORS}"),
        (
            "default-src 'self'; frame-ancestors 'none'; img-src *;",
            f"default-src 'self'; img-src *; {ANCESTORS}",
        ),
        ("Frame-Ancestors 'self' https://evil.example", ANCESTORS),
        (
            "frame-ancestors 'self', script-src 'none'; frame-ancestors 'none'",
            f"{ANCESTORS}, script-src 'none'; {ANCESTORS}",
        ),
        ("frame-ancestors-of-mine a", f"frame-ancestors-of-mine a; {ANCESTORS}"),
    ],
)
def test_frame_ancestors_alone_are_replaced(ehr, server, policy, merged):
    chart = open_framed(ehr)
    response = chart.get("/policy/", {"policy": policy})
    assert response["Content-Security-Policy"] == merged
    plain = make_browser().get("/policy/", {"policy": policy})
    assert plain["Content-Security-Policy"] == policy


@pytest.mark.skipif(django.VERSION < (6, 0), reason="needs Django 6.0")
@pytest.mark.parametrize("method", ["get", "aget"])
def test_works_with_django_s_own_policy(ehr, server, settings, method):
    settings.SECURE_CSP = {"default-src": ["'self'"], "frame-ancestors": ["'none'"]}
    settings.SECURE_CSP_REPORT_ONLY = {"frame-ancestors": ["'none'"]}
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.middleware.csp.ContentSecurityPolicyMiddleware",
    ]
    _check_policies(open_framed(ehr), method)


@pytest.mark.parametrize("method", ["get", "aget"])
def test_works_with_django_csp(ehr, server, settings, method):
    pytest.importorskip("csp")
    directives: dict[str, Any] = {"frame-ancestors": ["'none'"]}
    settings.CONTENT_SECURITY_POLICY = {
        "DIRECTIVES": {"default-src": ["'self'"], **directives}
    }
    settings.CONTENT_SECURITY_POLICY_REPORT_ONLY = {
        # It would add "default-src 'self'" of its own accord.
        "DIRECTIVES": {"default-src": None, **directives}
    }
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "csp.middleware.CSPMiddleware"]
    _check_policies(open_framed(ehr), method)


def _check_policies(chart: Chart, method: str) -> None:
    response = getattr(chart, method)("/links/")
    policy = "Content-Security-Policy"
    directives = set(response[policy].split("; "))
    assert directives == {"default-src 'self'", ANCESTORS}
    assert response[f"{policy}-Report-Only"] == ANCESTORS
    plain = make_browser().get("/links/")
    directives = set(plain[policy].split("; "))
    assert directives == {"default-src 'self'", "frame-ancestors 'none'"}
    assert plain[f"{policy}-Report-Only"] == "frame-ancestors 'none'"
    assert plain["X-Frame-Options"] == "DENY"


# What it costs


def test_files_of_a_framed_page_cost_nothing(ehr, server, django_assert_num_queries):
    chart = open_framed(ehr)
    with django_assert_num_queries(0):
        chart.browser.get("/untouched/", headers={"Sec-Fetch-Dest": "style"})


def test_framed_page_costs_no_query_of_its_own(ehr, server, django_assert_num_queries):
    chart = open_framed(ehr)
    with django_assert_num_queries(3):  # session, user and launch
        chart.browser.get(chart.url("/chart/scopes/"), headers=IN_FRAME)


def test_page_that_asks_who_goes_on_works_in_the_frame(ehr, server):
    browser = open_framed(ehr).browser
    second = [name for name in ehr.users if name.startswith("Practitioner/")][1]
    launch_id = ehr.create_launch("growth-chart", patient=PATIENT, user=second)
    values = {"iss": ehr.base_url, "launch": launch_id}
    started = browser.get("/smart/launch/", values, headers=IN_FRAME)
    url = urlsplit(ehr.authorize(started["Location"]))
    callback = browser.get(url.path, parse_qs(url.query), headers=IN_FRAME)
    page = follow(browser, callback)
    assert page.status_code == 200
    assert "X-Frame-Options" not in page
    assert ANCESTORS in page["Content-Security-Policy"]
    assert attributes(page)["csrftoken"] == ("none", True, True)
    answer = browser.post(callback["Location"], {"choice": "no"}, headers=IN_FRAME)
    opened = browser.get(f"{answer['Location']}links/", headers=IN_FRAME)
    assert opened.status_code == 200
    assert Launch.objects.latest("completed_at").is_framed


def test_form_older_than_the_last_sign_in_says_so_in_the_frame(ehr, server):
    chart = open_framed(ehr)
    chart.browser.handler.enforce_csrf_checks = True
    page = chart.browser.post("/smart/logout/", headers=IN_FRAME)
    assert (page.status_code, page.context["code"]) == (403, "form_outdated")
    assert "X-Frame-Options" not in page
    assert ANCESTORS in page["Content-Security-Policy"]
    assert attributes(page)["csrftoken"] == FRAMED

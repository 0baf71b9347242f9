"""The EHR's pages, by a browser without scripts."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from werkzeug.test import Client, TestResponse

from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.pages import COOKIE
from tests.testing.app import (
    CLIENT_ID,
    LAUNCH_URL,
    OTHER_PATIENT,
    PATIENT,
    REDIRECT_URI,
    App,
    Clock,
    query_of,
    register,
)

SCOPE = "launch/patient patient/Patient.rs offline_access"


class Browser:
    """Fills in the forms it is shown."""

    def __init__(self, ehr: EHRSimulator) -> None:
        self.ehr = ehr
        self.client = Client(ehr.wsgi_app)
        self.page: TestResponse

    def get(self, url: str, *, follow: bool = True, **headers: str) -> str:
        parts = urlsplit(url)
        self.page = self.client.get(
            parts.path,
            query_string=parts.query,
            base_url=self.ehr.origin,
            headers={name.replace("_", "-"): one for name, one in headers.items()},
            follow_redirects=follow,
        )
        return self.page.text

    def post(self, path: str = "", *, follow: bool = True, **form: str) -> str:
        found = re.search(r'name="csrf_token" value="([^"]+)"', self.page.text)
        if found is not None:
            form.setdefault("csrf_token", found[1])
        self.page = self.client.post(
            path or self.page.request.path,
            data=form,
            base_url=self.ehr.origin,
            follow_redirects=follow,
        )
        return self.page.text

    def sign_in(self, user: str) -> str:
        found = re.search(r'name="next" value="([^"]*)"', self.page.text)
        assert found is not None
        return self.post("/sign-in", user=user, next=found[1])

    @property
    def location(self) -> str:
        return self.page.headers["Location"]


@pytest.fixture
def browser(ehr: EHRSimulator, app: App) -> Browser:
    return Browser(ehr)


@pytest.fixture
def clinician(ehr: EHRSimulator) -> str:
    return next(iter(ehr.users))


def test_clinician_signs_in_and_opens_a_chart(browser: Browser, clinician: str) -> None:
    page = browser.get("/")
    assert "Dr. Helena Brandvold" in page
    assert "Marisol Quillfeather" in page
    assert "Marisol Jean Quillfeather" in browser.sign_in(clinician)
    page = browser.get(f"/chart/{PATIENT}")
    for text in ("HH-100482", "Type 2 diabetes", "penicillin", "Growth chart", "59"):
        assert text in page
    page = browser.get(f"/chart/{OTHER_PATIENT}")
    assert "None recorded" in page


def test_patient_of_whom_nothing_is_known_has_a_chart(
    ehr: EHRSimulator, browser: Browser, clinician: str
) -> None:
    ehr.data["Patient"]["p1"] = {"resourceType": "Patient", "id": "p1"}
    browser.get("/")
    assert "No name" in browser.sign_in(clinician)
    assert "Growth chart" in browser.get("/chart/p1")
    browser.post("/chart/p1/open", app=CLIENT_ID, follow=False)


def test_pages_are_kept_by_nobody_and_run_no_script(browser: Browser) -> None:
    browser.get("/")
    headers = browser.page.headers
    assert headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "<script" not in browser.page.text
    cookie = headers["Set-Cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    for attribute in ("HttpOnly", "SameSite=Lax", "Secure", "Path=/"):
        assert attribute in cookie
    assert browser.get("/static/harbour.css").startswith(":root")
    assert "<svg" in browser.get("/static/harbour.svg")
    browser.get("/static/other.css")
    assert browser.page.status_code == 404


def test_signing_in_changes_the_session(browser: Browser, clinician: str) -> None:
    browser.get("/")
    before = browser.client.get_cookie(COOKIE, domain="ehr.example.org")
    browser.sign_in(clinician)
    after = browser.client.get_cookie(COOKIE, domain="ehr.example.org")
    assert before is not None
    assert after is not None
    assert before.value != after.value


def test_patient_sees_one_chart(browser: Browser) -> None:
    browser.get("/")
    assert "HH-100482" in browser.sign_in(f"Patient/{PATIENT}")
    browser.get(f"/chart/{OTHER_PATIENT}")
    assert browser.page.status_code == 404
    browser.get("/chart/unknown")
    assert browser.page.status_code == 404


def test_chart_asks_to_sign_in_first(browser: Browser, clinician: str) -> None:
    assert "Sign in" in browser.get(f"/chart/{PATIENT}")
    assert "HH-100482" in browser.sign_in(clinician)


@pytest.mark.parametrize("target", ["https://evil.example.net", "//evil", "/\\evil"])
def test_sign_in_leads_nowhere_else(
    browser: Browser, clinician: str, target: str
) -> None:
    browser.get("/")
    browser.post("/sign-in", follow=False, user=clinician, next=target)
    assert browser.location == "/"


def test_forms_of_another_session_are_refused(browser: Browser, clinician: str) -> None:
    browser.get("/")
    browser.post("/sign-in", user=clinician, csrf_token="made-up")
    assert browser.page.status_code == 403
    browser.get("/")
    browser.post("/sign-in", user="Practitioner/0")
    assert browser.page.status_code == 400
    browser.get("/")
    browser.sign_in(clinician)
    browser.post("/sign-out", csrf_token="made-up")
    assert browser.page.status_code == 403
    browser.get(f"/chart/{PATIENT}")
    browser.post(f"/chart/{PATIENT}/open", app=CLIENT_ID, csrf_token="made-up")
    assert browser.page.status_code == 403


@pytest.mark.compliance("EHRL-01", "EHRL-08")
def test_app_opens_in_a_new_tab(browser: Browser, app: App, clinician: str) -> None:
    browser.get("/")
    browser.sign_in(clinician)
    page = browser.get(f"/chart/{PATIENT}")
    assert 'target="_blank" rel="noopener"' in page
    browser.post(f"/chart/{PATIENT}/open", follow=False, app=CLIENT_ID)
    assert browser.location.startswith(LAUNCH_URL)
    launch = query_of(browser.location)
    assert launch["iss"] == app.ehr.base_url
    url = app.authorization_url(
        scope="launch patient/Patient.rs", launch=launch["launch"]
    )
    page = browser.get(url)
    assert "Allow <em>Growth chart</em>" in page
    assert "Marisol Jean Quillfeather" in page
    assert "Read and search name, birth date" in page
    assert "Not you?" not in page
    browser.post(follow=False, decision="approve")
    assert browser.location.startswith(f"{REDIRECT_URI}?code=")
    tokens = app.exchange(query_of(browser.location)["code"]).json()
    assert tokens["patient"] == PATIENT
    assert tokens["need_patient_banner"] is True
    assert tokens["encounter"] in app.ehr.data["Encounter"]


def test_app_opens_in_a_frame(browser: Browser, app: App, clinician: str) -> None:
    browser.get(f"/chart/{PATIENT}/frame?app={CLIENT_ID}")
    assert browser.page.status_code == 404
    browser.get("/")
    browser.sign_in(clinician)
    page = browser.get(f"/chart/{PATIENT}/frame?app={CLIENT_ID}")
    # A site that does not allow it is an empty frame, or the browser's own words.
    assert f"--set 'frame_origins=[\"{app.ehr.origin}\"]'<" in page
    found = re.search(r'<iframe src="([^"]+)"', page)
    assert found is not None
    launch = query_of(found[1].replace("&amp;", "&"))["launch"]
    url = app.authorization_url(scope="launch", launch=launch)
    framed = browser.get(url, Sec_Fetch_Dest="iframe")
    assert "masthead" not in framed
    browser.post(follow=False, decision="approve")
    tokens = app.exchange(query_of(browser.location)["code"]).json()
    assert tokens["need_patient_banner"] is False
    browser.get(f"/chart/{PATIENT}/frame?app=unknown")
    assert browser.page.status_code == 404
    browser.get(f"/chart/{PATIENT}")
    browser.post(f"/chart/{PATIENT}/open", app="unknown")
    assert browser.page.status_code == 404


def test_app_without_a_launch_url_has_no_button(
    browser: Browser, app: App, clinician: str
) -> None:
    register(app.ehr, launch_url=None)
    browser.get("/")
    browser.sign_in(clinician)
    assert "No app with a launch URL" in browser.get(f"/chart/{PATIENT}")


def test_standalone_launch_signs_in_picks_and_approves(
    browser: Browser, app: App, clinician: str
) -> None:
    assert "Sign in" in browser.get(app.authorization_url(scope=SCOPE))
    assert "Whose record?" in browser.sign_in(clinician)
    browser.post(patient="nobody")
    assert browser.page.status_code == 404
    browser.get(app.authorization_url(scope=SCOPE))
    page = browser.post(patient=OTHER_PATIENT)
    assert "Søren Ægir Løvenskiold-Å" in page
    browser.post(follow=False, decision="approve")
    tokens = app.exchange(query_of(browser.location)["code"]).json()
    assert tokens["patient"] == OTHER_PATIENT


def test_patient_approves_for_themselves(browser: Browser, app: App) -> None:
    browser.get(app.authorization_url(scope=SCOPE))
    page = browser.sign_in(f"Patient/{PATIENT}")
    assert "Allow <em>Growth chart</em>" in page
    browser.post(follow=False, decision="approve")
    tokens = app.exchange(query_of(browser.location)["code"]).json()
    assert tokens["patient"] == PATIENT


def test_consent_without_a_patient(browser: Browser, app: App, clinician: str) -> None:
    browser.get(app.authorization_url(scope="openid user/Patient.rs"))
    page = browser.sign_in(clinician)
    assert "of every patient that you can see" in page
    assert 'class="subject"' not in page


def test_denial_goes_back_to_the_app(browser: Browser, app: App) -> None:
    browser.get(app.authorization_url(scope=SCOPE))
    browser.sign_in(f"Patient/{PATIENT}")
    path = browser.page.request.path
    browser.post(follow=False, decision="deny")
    assert query_of(browser.location)["error"] == "access_denied"
    browser.get(path)
    assert browser.page.status_code == 404
    browser.post(path, decision="approve")
    assert browser.page.status_code == 404


def test_somebody_else_may_take_over_before_the_decision(
    browser: Browser, app: App, clinician: str
) -> None:
    browser.get(app.authorization_url(scope=SCOPE))
    browser.sign_in(f"Patient/{PATIENT}")
    assert "Sign in" in browser.post(decision="switch")
    assert "Whose record?" in browser.sign_in(clinician)


def test_launch_is_for_the_person_who_opened_it(
    browser: Browser, app: App, clinician: str
) -> None:
    url = app.ehr_launch_url("launch", user=clinician)
    browser.get("/")
    browser.sign_in(f"Patient/{PATIENT}")
    page = browser.get(url)
    assert "was opened by Dr. Helena Brandvold" in page
    assert "Marisol" not in page.partition("<main")[2]
    assert "Allow <em>Growth chart</em>" in browser.sign_in(clinician)


def test_consent_belongs_to_one_browser_and_ends(
    browser: Browser, app: App, clinician: str, clock: Clock
) -> None:
    browser.get(app.authorization_url(scope=SCOPE))
    browser.sign_in(f"Patient/{PATIENT}")
    path = browser.page.request.path
    other = Browser(app.ehr)
    other.get("/")
    other.sign_in(clinician)
    assert "This request is over" in other.get(path)
    assert "This request is over" in other.post(path, decision="approve")
    browser.post(decision="approve", csrf_token="made-up")
    assert browser.page.status_code == 403
    clock.advance(600)
    assert "This request is over" in browser.get(path)


@pytest.mark.compliance("REF-11")
def test_signing_out_ends_online_access_and_leaves_offline_access(
    browser: Browser, app: App
) -> None:
    tokens = []
    for scope in ("online_access", "offline_access"):
        browser.get(app.authorization_url(scope=f"launch/patient {scope}"))
        if "Sign in" in browser.page.text:
            browser.sign_in(f"Patient/{PATIENT}")
        browser.post(follow=False, decision="approve")
        tokens.append(app.exchange(query_of(browser.location)["code"]).json())
    browser.get(f"/chart/{PATIENT}")
    assert "Choose who you are" in browser.post("/sign-out")
    online, offline = (app.refresh(one["refresh_token"]) for one in tokens)
    assert (online.status_code, offline.status_code) == (400, 200)


def test_wrong_requests_end_on_a_page(browser: Browser, app: App) -> None:
    page = browser.get(app.authorization_url(client_id="unknown"))
    assert browser.page.status_code == 400
    assert "no app is registered with this client_id" in page
    page = browser.get(app.authorization_url(redirect_uri="https://evil.example.net"))
    assert browser.page.status_code == 400
    browser.get(app.authorization_url(aud="https://x.example"), follow=False)
    assert query_of(browser.location)["error"] == "invalid_request"


def test_names_of_apps_are_escaped(browser: Browser, app: App, clinician: str) -> None:
    register(app.ehr, name="<b>Chart</b>")
    browser.get("/")
    browser.sign_in(clinician)
    assert "&lt;b&gt;Chart" in browser.get(f"/chart/{PATIENT}")


def test_used_launch_is_refused_at_the_last_moment(
    browser: Browser, app: App, clinician: str
) -> None:
    url = app.ehr_launch_url("launch", user=clinician)
    browser.get("/")
    browser.sign_in(clinician)
    browser.get(url)
    app.ehr.authorize(url)
    browser.post(follow=False, decision="approve")
    assert query_of(browser.location)["error"] == "invalid_request"

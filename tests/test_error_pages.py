"""The words of error pages, and the button under them."""

from __future__ import annotations

import pickle
import re

import pytest
from django.test import RequestFactory
from django.utils import translation

from django_smart import exceptions
from django_smart.diagnoses import DIAGNOSES, PAGES, Page, Turn, build_docs_url
from django_smart.error_pages import Retry, render_error
from django_smart.error_pages.retry import build_login_url, can_pass
from django_smart.error_pages.words import find_page, get_advice, get_title
from django_smart.models import Launch
from django_smart.signals import launch_completed
from tests.ehr import (
    CLIENT_ID,
    PATIENT,
    get_callback,
    make_browser,
    make_registration,
    start_ehr_launch,
)

# Codes of pages that no class has; see SMARTContext.reason and smart_required.
CODES_OF_PAGES = {"ambiguous", "encounter_missing"}
# The code of the page that asks whose record is meant: there is nothing to report.
ASKING = "grant_ambiguous"
# The person's request, not theirs to use, not there, in conflict, over, or the EHR's.
STATUSES = {400, 403, 404, 409, 410, 502, 503}
KINDS = ("", *Launch.Kind.values)


def make(
    error_class: type[exceptions.SMARTError], code: str = ""
) -> exceptions.SMARTError:
    """An error without what its class carries."""
    error = error_class.__new__(error_class)
    exceptions.SMARTError.__init__(error, "for developers", code=code)
    return error


CLASSES: list[type[exceptions.SMARTError]] = [
    getattr(exceptions, name) for name in exceptions.__all__
]
# One for each code.
ERRORS = [
    make(each, code)
    for each in CLASSES
    for code in ("", *sorted(each.__dict__.get("codes", ())))
]
of_every_code = pytest.mark.parametrize(
    "error", ERRORS, ids=[error.code for error in ERRORS]
)


def render(error: exceptions.SMARTError, **values) -> str:
    request = RequestFactory().get("/page/")
    return render_error(request, error, **values).content.decode()


of_every_page = pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))


def test_every_code_of_an_error_is_declared_and_no_other():
    codes = {each.code for each in ERRORS} - {exceptions.SMARTError.code}
    declared = {code for code, each in DIAGNOSES.items() if each.status}
    assert declared == codes | CODES_OF_PAGES


def test_drawing_of_the_tree_has_every_branch():
    drawn = re.findall(r"^ +[│├└─ ]*(\w+Error)\b", exceptions.__doc__ or "", re.M)
    root = exceptions.SMARTError
    branches = {each.__bases__[0] for each in CLASSES if each is not root}
    branches |= {each for each in CLASSES if each.__base__ is root}
    assert sorted(drawn) == sorted(each.__name__ for each in branches)


def test_code_of_another_class_cannot_be_raised():
    error = exceptions.StateError("for developers", code="state_foreign")
    assert (error.code, error.http_status) == ("state_foreign", 403)
    assert exceptions.StateError.code == "state_unknown"
    with pytest.raises(ValueError, match="user_refused"):
        exceptions.StateError("for developers", code="user_refused")


@of_every_page
@pytest.mark.parametrize("server_name", ["", "Harbour Hospital: 100 %"])
def test_words_are_whole_sentences_with_and_without_an_organisation(page, server_name):
    title = get_title(page, server_name)
    assert re.fullmatch(r"[A-Z].*[^.]", title)
    for kind in KINDS:
        for can_retry in (True, False):
            advice = get_advice(page, kind, can_retry=can_retry)
            # One sentence.
            assert re.fullmatch(r"[A-Z][^.]*\.", advice)
            assert "%" not in advice
    if not server_name:
        assert "%" not in title
        assert "the the" not in title.lower()


@of_every_page
def test_words_are_translated(page):
    with translation.override("de"):
        assert get_title(page, "Harbour") != page.title.replace(
            "%(server)s", "Harbour"
        ).replace("%(Server)s", "Harbour")
        for kind in KINDS:
            assert get_advice(page, kind) not in {
                page.advice.text,
                page.advice.in_ehr,
            }


def test_code_that_a_page_gives_has_its_own_words():
    error = exceptions.NoLaunchError("for developers")
    page = DIAGNOSES["encounter_missing"].page
    assert find_page(error, "encounter_missing") is page
    assert find_page(error, "something of a site") is PAGES["default"]


def test_organisation_is_named():
    error = exceptions.ServerUnreachableError("for developers")
    assert "<h1>The hospital is unavailable" in render(error)
    page = render(error, server_name="Harbour <b>")
    assert "<h1>Harbour &lt;b&gt; is unavailable" in page


def test_advice_fits_where_the_launch_began():
    error = exceptions.StateError("for developers", code="state_expired")
    assert "patient&#x27;s chart" in render(error, kind="ehr")
    for kind in ("standalone", ""):
        page = render(error, kind=kind)
        assert "connect your records" in page
        assert "chart" not in page


def test_page_shows_what_to_do_and_not_who_can_fix_it():
    response = render_error(RequestFactory().get("/page/"), exceptions.TokenError("x"))
    assert response.content.decode().count("<p>") == 1
    assert "fix" not in response.content.decode()


@of_every_code
def test_page_has_the_status_and_the_code_of_its_error(error):
    request = RequestFactory().get("/page/")
    response = render_error(request, error)
    assert response.status_code == error.http_status
    assert 400 <= response.status_code < 600
    assert response.status_code != 500
    content = response.content.decode()
    assert (f"<code>{error.code}</code>" in content) is (error.code != ASKING)
    # What is written for developers may name what is none of the person's business.
    assert "for developers" not in content
    assert response["Cache-Control"] == "private, no-store"
    assert response["Referrer-Policy"] == "no-referrer"


@pytest.mark.django_db
@pytest.mark.compliance("CALL-10")
@of_every_code
@pytest.mark.parametrize(
    ("flow", "path"),
    [
        ("get_ehr_registration", "/smart/launch/?iss=s3cret-iss&launch=s3cret"),
        ("get_standalone_registration", "/smart/login/?server=s3cret"),
        ("complete_launch", "/smart/callback/?code=s3cret-code&state=s3cret-state"),
    ],
)
def test_view_makes_every_error_a_page_that_is_neither_kept_nor_told_on(
    monkeypatch, error, flow, path
):
    def fail(*args: object, **values: object) -> None:
        raise error

    monkeypatch.setattr(f"django_smart.views.launches.{flow}", fail)
    browser = make_browser()
    response = browser.get(path)
    assert response.status_code == error.http_status
    assert response.status_code in STATUSES
    assert response["Cache-Control"] == "private, no-store"
    assert response["Referrer-Policy"] == "no-referrer"
    assert "sessionid" not in response.cookies
    content = response.content.decode()
    assert (f"<code>{error.code}</code>" in content) is (error.code != ASKING)
    assert "for developers" not in content
    if flow == "complete_launch":
        # The script that takes the query out of the address bar, and no query here.
        assert "clean-address.js" in content
        assert "s3cret" not in content


def test_code_links_to_the_reference():
    page = render(exceptions.StateUsedError("for developers"), code="ambiguous")
    assert f'href="{build_docs_url("ambiguous")}"' in page
    assert "<code>ambiguous</code>" in page


def test_support_page_of_the_site_is_linked_if_there_is_one(settings):
    error = exceptions.StateUsedError("for developers")
    assert "help.example.org" not in render(error)
    settings.SMART_SUPPORT_URL = "https://help.example.org/"
    assert 'href="https://help.example.org/"' in render(error)


def test_code_comes_last():
    error = exceptions.AuthorizationDeniedError(
        "for developers",
        error_description="The door is closed.",
        error_uri="https://ehr.example.org/help",
    )
    page = render(error, retry=Retry(url="/again/", label="Try again"))
    places = [
        page.index(part)
        for part in (
            "<h1>",
            "approve",
            "The door is closed.",
            "https://ehr.example.org/help",
            'href="/again/"',
            "<code>access_denied</code>",
        )
    ]
    assert places == sorted(places)


@pytest.mark.django_db
def test_time_and_number_of_the_launch_are_beside_the_code(ehr, registration):
    browser = make_browser()
    url = ehr.authorize(start_ehr_launch(browser, ehr), approve=False)
    stranger = _read_code(get_callback(make_browser(), url).text)
    line = _read_code(get_callback(browser, url).text)
    assert f"launch {Launch.objects.get().pk}" in line
    assert "UTC" in line
    assert "launch" not in stranger
    assert "UTC" in stranger


def _read_code(page: str) -> str:
    line: str
    (line,) = re.findall(r'<p class="smart-code">(.*)</p>', page)
    return line


@pytest.mark.compliance("SEC-02")
def test_what_the_ehr_says_is_quoted_and_escaped():
    error = exceptions.AuthorizationDeniedError(
        "for developers", error_description="<script>alert(1)</script>"
    )
    page = render(error, server_name="Harbour Hospital")
    assert "Harbour Hospital says:" in page
    assert "<q>&lt;script&gt;alert(1)&lt;/script&gt;</q>" in page


def test_missing_access_is_told_in_words_and_to_the_support_as_scopes():
    error = exceptions.InsufficientScopeError(
        "for developers", missing="patient/Condition.rs"
    )
    page = render(error)
    assert "<li>See: health problems</li>" in page
    assert page.index("<code>patient/Condition.rs</code>") > page.index(
        "<code>scope_insufficient</code>"
    )


def test_there_is_no_button_where_none_can_help():
    error = exceptions.IdentityError("for developers")
    assert "smart-button" not in render(error)


def test_login_url_carries_only_what_is_known():
    assert build_login_url() == "/smart/login/"
    assert build_login_url(server="a", next_url="/b/?c=d") == (
        "/smart/login/?server=a&next=%2Fb%2F%3Fc%3Dd"
    )


@pytest.mark.parametrize(
    ("error_class", "passes"),
    [
        (exceptions.ServerTimeoutError, True),
        (exceptions.TokenServerError, True),
        (exceptions.DiscoveryError, False),
        (exceptions.InactiveRegistrationError, False),
    ],
)
def test_trying_again_is_offered_only_where_it_may_help(error_class, passes):
    assert can_pass(make(error_class)) is passes


# Buttons of the views


def button_of(response) -> tuple[str, str] | None:
    found = re.search(
        r'<a class="smart-button" href="([^"]+)">([^<]+)</a>', response.content.decode()
    )
    return (found[1].replace("&amp;", "&"), found[2]) if found else None


def start_login(browser, **values: str) -> str:
    response = browser.get("/smart/login/", {"server": "harbour", **values})
    assert response.status_code == 302, response.content
    return str(response["Location"])


@pytest.mark.django_db
def test_denied_ehr_launch_sends_back_to_the_chart(ehr, registration):
    browser = make_browser()
    url = ehr.authorize(start_ehr_launch(browser, ehr), approve=False)
    response = get_callback(browser, url)
    assert response.status_code == 403
    content = response.content.decode()
    assert "from the patient&#x27;s chart" in content
    assert "No one was signed in, and nothing was stored." in content
    assert "clean-address.js" in content
    assert button_of(response) is None


@pytest.mark.django_db
def test_error_after_a_launch_was_stored_does_not_say_that_nothing_was(
    ehr, registration
):
    def fail(**_kwargs: object) -> None:
        raise exceptions.InsufficientScopeError("for developers", missing="a")

    browser = make_browser()
    launch_completed.connect(fail)
    try:
        response = get_callback(browser, ehr.authorize(start_login(browser)))
    finally:
        launch_completed.disconnect(fail)
    assert response.status_code == 403
    stored = Launch.objects.get()
    assert (stored.status, "_auth_user_id" in browser.session) == ("open", True)
    assert "nothing was stored" not in response.text
    assert f"launch {stored.pk}" in _read_code(response.text)
    assert button_of(response) == ("/smart/login/?server=harbour", "Connect again")


@pytest.mark.django_db
def test_denied_login_can_be_started_again_with_the_same_organisation(
    ehr, registration
):
    browser = make_browser()
    url = ehr.authorize(start_login(browser, next="/a/?b=c"), approve=False)
    response = get_callback(browser, url)
    assert button_of(response) == (
        "/smart/login/?server=harbour&next=%2Fa%2F%3Fb%3Dc",
        "Connect again",
    )


@pytest.mark.django_db
def test_back_button_leads_on_to_the_page_of_the_finished_launch(ehr, registration):
    browser = make_browser()
    url = ehr.authorize(start_ehr_launch(browser, ehr))
    first = get_callback(browser, url)
    response = get_callback(browser, url)
    assert response.status_code == 409
    assert button_of(response) == (first["Location"], "Continue to the page")
    assert "nothing was stored" not in response.content.decode()
    assert browser.get(first["Location"]).status_code != 410


@pytest.mark.django_db
def test_reload_without_the_query_does_not_say_that_nothing_was_stored(
    ehr, registration
):
    browser = make_browser()
    url = ehr.authorize(start_login(browser))
    get_callback(browser, url)
    # A script has removed the query from the address.
    response = browser.get(url.partition("?")[0])
    assert response.status_code == 400
    assert "nothing was stored" not in response.text


@pytest.mark.django_db
def test_person_who_is_signed_in_is_not_told_that_no_one_is(ehr, registration):
    browser = make_browser()
    get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    url = ehr.authorize(start_ehr_launch(browser, ehr), approve=False)
    response = get_callback(browser, url)
    assert response.context["nothing_done"] is True
    assert "No one was signed in" not in response.text


@pytest.mark.django_db
def test_other_browser_learns_nothing_of_a_launch(ehr, registration):
    url = ehr.authorize(start_ehr_launch(make_browser(), ehr))
    response = get_callback(make_browser(), url)
    assert response.status_code == 403
    content = response.content.decode()
    assert "state_foreign" in content
    assert "Harbour" not in content


@pytest.mark.django_db
@pytest.mark.compliance("CALL-10")
def test_page_of_a_failed_callback_does_not_repeat_its_address(ehr, registration):
    response = make_browser().get("/smart/callback/?code=hush-code&state=hush-state")
    assert response.status_code == 400
    content = response.content.decode()
    assert "hush" not in content
    assert button_of(response) == ("/smart/login/", "Connect your records")


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["get", "post"])
def test_unreachable_organisation_can_be_tried_again(method):
    # Nothing answers there, and the tests reach no network.
    make_registration(
        server__base_url="https://127.0.0.1:9/fhir", server__slug="harbour"
    )
    browser = make_browser()
    values = {"server": "harbour", "next": "/a/"}
    response = getattr(browser, method)("/smart/login/", values)
    assert response.status_code == 503
    assert "Harbour Hospital is unavailable" in response.content.decode()
    assert button_of(response) == (
        "/smart/login/?server=harbour&next=%2Fa%2F",
        "Try again",
    )


@pytest.mark.django_db
def test_launch_from_an_unreachable_ehr_can_be_tried_again():
    make_registration(server__base_url="https://127.0.0.1:9/fhir")
    url = "/smart/launch/?iss=https%3A%2F%2F127.0.0.1%3A9%2Ffhir&launch=abc"
    response = make_browser().get(url)
    assert response.status_code == 503
    assert button_of(response) == (url, "Try again")


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["get", "post"])
def test_unknown_organisation_leads_to_those_that_are_known(registration, method):
    values = {"server": "nowhere", "next": "/a/"}
    response = getattr(make_browser(), method)("/smart/login/", values)
    assert response.status_code == 400
    assert button_of(response) == (
        "/smart/login/?next=%2Fa%2F",
        "Choose an organization",
    )


@pytest.mark.django_db
@pytest.mark.urls("tests.site.urls")
def test_ended_connection_can_be_connected_again(ehr, registration):
    browser = make_browser()
    response = get_callback(browser, ehr.authorize(start_login(browser)))
    Launch.objects.update(status=Launch.Status.ENDED)
    response = browser.get(response["Location"] + "chart/")
    assert response.status_code == 410
    link = button_of(response)
    assert link is not None
    assert link[1] == "Connect again"
    assert link[0].startswith("/smart/login/?server=harbour&next=")


@pytest.mark.django_db
@pytest.mark.urls("tests.site.urls")
def test_ended_ehr_launch_has_no_button(ehr, registration):
    browser = make_browser()
    response = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    Launch.objects.update(status=Launch.Status.ENDED)
    response = browser.get(response["Location"] + "chart/")
    assert response.status_code == 410
    assert button_of(response) is None
    assert "from the patient&#x27;s chart" in response.content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize("kind", Launch.Kind.values)
def test_passing_trouble_in_a_callback_can_be_tried_again(ehr, registration, kind):
    browser = make_browser()
    is_from_ehr = kind == Launch.Kind.EHR
    url = start_ehr_launch(browser, ehr) if is_from_ehr else start_login(browser)
    ehr.faults.add("token_503")
    response = get_callback(browser, ehr.authorize(url))
    assert f"<code>{exceptions.TokenServerError.code}</code>" in response.text
    # A reload of the callback would not do.
    assert ("open the app" in response.context["advice"]) is is_from_ehr
    assert (button_of(response) is None) is is_from_ehr


@pytest.mark.django_db
def test_switched_off_organisation_is_not_offered_again(ehr, registration):
    browser = make_browser()
    url = ehr.authorize(start_login(browser), approve=False)
    type(registration).objects.update(is_active=False)
    response = get_callback(browser, url)
    assert response.status_code == 403
    assert button_of(response) is None


@pytest.mark.parametrize(
    ("error", "turn"),
    [
        (exceptions.StateError("x", code="state_expired"), Turn.USER),
        (exceptions.LaunchRequestError("x", code="decision_declined"), Turn.USER),
        (exceptions.ServerTimeoutError("x"), Turn.EHR),
        (exceptions.MalformedTokenResponseError("x"), Turn.EHR),
        (exceptions.UnsupportedServerError("x"), Turn.EHR),
        (exceptions.FHIRNotFoundError("x", status_code=404), Turn.EHR),
        (exceptions.CredentialsError("x"), Turn.SITE),
        (exceptions.LaunchRequestError("x", code="unknown_server"), Turn.SITE),
    ],
)
def test_every_error_is_for_one_to_put_right(error, turn):
    assert find_page(error).advice.turn is turn


@of_every_code
def test_error_can_be_sent_to_another_process(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args, vars(copy)) == (
        type(error),
        error.args,
        vars(error),
    )


@of_every_page
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("can_retry", [True, False])
def test_no_advice_contradicts_whose_turn_it_is(page: Page, kind, can_retry):
    advice = page.advice
    text = get_advice(page, kind, can_retry=can_retry)
    starts_with_support = text.startswith("Contact")
    waits = "Wait" in text
    assert "administrators" not in text
    match advice.turn:
        case Turn.USER:
            # The support is named only for what does not help.
            assert not starts_with_support
            assert not waits
            assert "support" not in text or " or " in text
        case Turn.SITE:
            assert starts_with_support
            assert not {"again", "there", "hospital"} & set(re.findall(r"\w+", text))
        case Turn.EHR:
            # It passes, or it is told there.
            assert waits or re.search(r"\b(there|hospital)\b", text)
    # Where it can only be started in the EHR, no one is sent elsewhere.
    if kind == Launch.Kind.EHR and not can_retry and advice.in_ehr:
        assert "patient's chart" in text


@pytest.mark.parametrize("refusal", ["invalid_client", "unauthorized_client"])
def test_refused_credentials_are_not_the_persons_to_correct(refusal):
    error = exceptions.TokenResponseError("x", error=refusal)
    page = render(error, kind="ehr")
    assert "open the app" not in page
    assert find_page(error).advice.turn is Turn.SITE
    other = exceptions.TokenResponseError("x", error="invalid_grant")
    assert find_page(other).advice.turn is Turn.USER


@pytest.mark.django_db
@pytest.mark.usefixtures("registration")
def test_launch_value_that_was_used_already_is_for_the_person_to_replace(ehr):
    browser = make_browser()
    values = {
        "iss": ehr.base_url,
        "launch": ehr.create_launch(CLIENT_ID, patient=PATIENT),
    }
    # The page was loaded twice.
    first, second = (browser.get("/smart/launch/", values) for _ in range(2))
    ehr.authorize(first["Location"])
    response = get_callback(browser, ehr.authorize(second["Location"]))
    page = response.content.decode()
    assert "<code>authorization_refused</code>" in page
    assert "open the app from the patient&#x27;s chart again" in page
    assert "Contact" not in page


@pytest.mark.parametrize("busy", ["server_error", "temporarily_unavailable"])
def test_ehr_that_is_busy_has_not_refused_the_app(busy):
    error = exceptions.AuthorizationDeniedError("x", error=busy)
    assert find_page(error) is DIAGNOSES["token_server_error"].page
    assert "open the app" in render(error, kind="ehr")
    other = exceptions.AuthorizationDeniedError("x", error="invalid_scope")
    assert find_page(other) is DIAGNOSES["authorization_refused"].page

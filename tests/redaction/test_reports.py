"""Django's error reports: by mail, and as a page under ``DEBUG``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core import mail
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import HttpRequest, QueryDict, StreamingHttpResponse
from django.test import Client, RequestFactory
from django.utils import timezone
from django.utils.module_loading import import_string
from django.views.debug import (
    SafeExceptionReporterFilter,
)
from werkzeug.wrappers import Response

from django_smart.launches.prefix import LaunchPrefix
from django_smart.models import ClientRegistration, TokenGrant
from django_smart.redaction import (
    SMARTExceptionReporter,
    SMARTExceptionReporterFilter,
    hide_parameters,
)
from django_smart.testing import EHRSimulator
from tests.ehr import (
    PATIENT,
    launch,
    make_browser,
    start_ehr_launch,
)
from tests.factories import register_at
from tests.redaction.reporting import ADMINS, redacted_reports
from tests.redaction.views import NAME

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.redaction.views")]

Report = Callable[..., str]


@pytest.fixture
def _redacting() -> Iterator[None]:
    with redacted_reports():
        yield


@pytest.fixture(params=["page", "mail"])
def report(request: Any, settings: Any) -> Report:
    """What is told of the error at a path: by the page, or to the admins."""
    settings.DEBUG = request.param == "page"
    settings.ADMINS = ADMINS

    def get(browser: Client, url: str, form: dict[str, Any] | None = None) -> str:
        browser.raise_request_exception = False
        mail.outbox.clear()
        response = browser.post(url, form) if form else browser.get(url)
        assert response.status_code == 500
        if settings.DEBUG:
            assert not mail.outbox
            return response.content.decode()
        (message,) = mail.outbox
        # The mail's other form has the variables.
        error: Any = response
        reporter_class = import_string(settings.DEFAULT_EXCEPTION_REPORTER)
        reporter = reporter_class(error.wsgi_request, *error.exc_info, is_email=True)
        return f"{message.subject}\n{message.body}\n{reporter.get_traceback_html()}"

    return get


def open_chart(ehr: EHRSimulator) -> tuple[Client, str]:
    """A browser with a launch, and its prefix."""
    browser = make_browser()
    return browser, f"/~{launch(browser, ehr).key}"


@pytest.mark.usefixtures("_redacting", "registration")
def test_report_of_a_view_in_a_launch_has_neither_patient_nor_token(ehr, report):
    browser, prefix = open_chart(ehr)
    grant = TokenGrant.objects.get()
    text = report(browser, f"{prefix}/fail/launch/")
    assert "ZeroDivisionError" in text
    assert "fail_in_launch" in text
    assert NAME not in text
    assert PATIENT not in text
    assert grant.access_token not in text
    # Types are told: without any a report would be of little use.
    assert "&lt;dict of " in text
    assert f"&lt;str of {len(NAME)}&gt;" in text


@pytest.mark.usefixtures("_redacting", "registration")
def test_report_of_a_view_in_a_launch_has_nothing_that_a_person_has_entered(
    ehr, report
):
    browser, prefix = open_chart(ehr)
    url = f"{prefix}/fail/launch/?search=s3arched"
    scan = SimpleUploadedFile("sc4nned.pdf", b"%PDF")
    referer = f"https://app.example.org{prefix}/people/?q=r3ferred"
    browser.defaults["HTTP_REFERER"] = referer
    text = report(browser, url, {"note": "wr1tten", "scan": scan})
    for name in ("search", "note", "scan"):
        assert name in text
    for value in ("s3arched", "wr1tten", "sc4nned", "r3ferred"):
        assert value not in text


@pytest.mark.usefixtures("_redacting", "registration")
def test_report_of_a_middleware_in_a_launch_has_nothing_of_that_either(
    ehr, report, settings
):
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "tests.redaction.views.fail_at_searches",
    ]
    browser, prefix = open_chart(ehr)
    text = report(browser, f"{prefix}/page/?search=s3arched", {"note": "wr1tten"})
    assert "LookupError" in text
    assert "s3arched" not in text
    assert "wr1tten" not in text


@pytest.mark.usefixtures("_redacting", "registration")
def test_report_of_a_failed_request_has_no_token(ehr, report):
    browser, prefix = open_chart(ehr)
    text = report(browser, f"{prefix}/fail/fhir/")
    assert "LookupError" in text
    assert "the read of Observation returned status 404" in text
    assert TokenGrant.objects.get().access_token not in text


@pytest.mark.usefixtures("registration")
def test_without_our_filter_a_failed_request_shows_no_token_either(ehr, report):
    browser, prefix = open_chart(ehr)
    text = report(browser, f"{prefix}/fail/fhir/")
    assert "LookupError" in text
    assert "the read of Observation returned status 404" in text
    assert TokenGrant.objects.get().access_token not in text


@pytest.mark.parametrize("report", ["mail"], indirect=True)
def test_without_our_filter_a_failed_refresh_shows_no_variables(
    ehr, registration, report
):
    registration.ehr_scope += " offline_access"
    registration.save()
    browser, prefix = open_chart(ehr)
    TokenGrant.objects.update(expires_at=timezone.now())
    ehr.faults.add("refresh_number_patient")
    text = report(browser, f"{prefix}/fail/fhir/")
    assert "LookupError" in text
    assert "_try_refresh" in text
    assert "&lt;TokenGrant: " not in text
    assert TokenGrant.objects.get().refresh_token not in text


@pytest.mark.usefixtures("registration")
def test_without_our_filter_a_body_that_is_too_large_is_not_shown(
    ehr, report, settings
):
    def respond_at_length(respond: Any, request: Any) -> Any:
        if not request.path.endswith("/no-such-one"):
            return respond(request)
        # Without a length, by which it would be refused before it is read.
        return Response(
            iter([f"{NAME} " * 999] * 2000), content_type="application/fhir+json"
        )

    browser, prefix = open_chart(ehr)
    ehr.interceptors.append(respond_at_length)
    text = report(browser, f"{prefix}/fail/fhir/")
    assert "sent more than 10485760 bytes" in text
    assert NAME not in text


@pytest.mark.usefixtures("_redacting", "registration")
def test_report_of_a_failing_hook_has_nothing_of_the_exchange(ehr, report):
    check_callback(ehr, report)


@pytest.mark.usefixtures("registration")
def test_without_our_filter_the_address_of_a_callback_is_hidden(ehr, report, settings):
    check_callback(ehr, report, with_variables=not settings.DEBUG)


def check_callback(
    ehr: EHRSimulator, report: Report, *, with_variables: bool = True
) -> None:
    """Complete a launch at the failing callback, and look for what it carried."""
    browser = make_browser()
    ClientRegistration.objects.update(
        redirect_uri="https://app.example.org/failing-callback/"
    )
    register_at(ehr, "https://app.example.org/failing-callback/")
    callback = ehr.authorize(start_ehr_launch(browser, ehr))
    text = report(browser, callback)
    assert "no_such_attribute" in text
    parameters = QueryDict(callback.partition("?")[2])
    (tokens,) = ehr.requests_to("token")
    verifier = dict(tokens.form)["code_verifier"]
    for value in (parameters["code"], parameters["state"]):
        assert value not in text
    if with_variables:
        for value in (verifier, TokenGrant.objects.get().access_token):
            assert value not in text


@pytest.mark.usefixtures("_redacting")
def test_outside_of_launches_only_what_is_secret_is_hidden(report):
    text = report(make_browser(), "/fail/?state=s3cret&tab=labs")
    assert "s3cret" not in text
    assert NAME not in text
    # The rest stays as Django has it.
    assert "labs" in text
    assert "harmless" in text
    assert "code=[hidden]" in text


@pytest.mark.usefixtures("_redacting")
def test_text_of_exceptions_and_of_their_causes_is_redacted(report):
    text = report(make_browser(), "/fail/cause/")
    assert "s3cret" not in text
    assert "direct cause of the following exception" in text
    assert "https://ehr.example.org/token?code=[hidden]" in text


@pytest.mark.usefixtures("_redacting")
def test_variables_of_the_package_are_hidden_without_a_launch_too(report):
    text = report(make_browser(), "/fail/offline/")
    assert "digest" in text
    assert "s3cret" not in text


@pytest.mark.usefixtures("_redacting")
def test_what_a_site_calls_sensitive_is_hidden_from_debug_pages_too(report):
    text = report(make_browser(), "/fail/remark/")
    assert "fail_with_remark" in text
    assert "s3cret" not in text


def test_settings_and_cookies_of_ours_are_hidden(settings):
    settings.CELERY_BROKER_URL = "amqp://worker:s3cret@broker.example.org//"
    settings.SMART_ENCRYPTION_KEYS = ["s3cret"]
    settings.NESTED = {"url": ["https://me:s3cret@example.org"]}
    report_filter = SMARTExceptionReporterFilter()
    shown = report_filter.get_safe_settings()
    assert "s3cret" not in str(shown)
    assert shown["CELERY_BROKER_URL"] == "amqp://worker:[hidden]@broker.example.org//"
    request = RequestFactory().get("/page/", headers={"Referer": "/?code=s3cret"})
    request.COOKIES.update(
        {
            "__Host-smart_browser": "s3cret",
            "__Host-smart_browser_0123": "s3cret",
            "smart_browser": "s3cret",
            "sessionid": "s3cret",
            "language": "en",
        }
    )
    assert "s3cret" not in str(report_filter.get_safe_cookies(request))
    assert report_filter.get_safe_cookies(request)["language"] == "en"
    assert "s3cret" not in str(report_filter.get_safe_request_meta(request))


@pytest.mark.parametrize("path", ["/smart/callback/", "/smart/launch/"])
def test_request_that_never_reached_our_view_is_hidden(path):
    # A middleware of the site failed before: nothing is resolved yet.
    request = RequestFactory().get(path, {"code": "s3cret", "session": "s3cret"})
    request.META["RAW_URI"] = f"{path}?code=s3cret"
    report_filter = SMARTExceptionReporterFilter()
    assert "s3cret" not in str(report_filter.get_safe_request_meta(request))
    assert "s3cret" not in str(report_filter.get_get_parameters(request))
    text = report_with(request).get_traceback_text()
    assert "s3cret" not in text
    assert "ZeroDivisionError" in text


def test_site_code_behind_a_part_of_a_streamed_page_is_shown():
    def make_part():
        tab = "-".join(("labs", "today"))
        return tab[20]

    response = StreamingHttpResponse(iter(make_part, ""))
    inner = RequestFactory().get("/smart/at/key/page/")
    LaunchPrefix(inner, "key", "/page/").keep_for(response)
    with pytest.raises(IndexError) as caught:
        list(response)
    reporter = SMARTExceptionReporter(None, caught.type, caught.value, caught.tb)
    reporter.filter = SMARTExceptionReporterFilter()
    assert "labs-today" in reporter.get_traceback_html()


def report_with(request: HttpRequest | None) -> SMARTExceptionReporter:
    """The report of an error of this very function."""
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        reporter = SMARTExceptionReporter(request, *sys.exc_info())
        reporter.filter = SMARTExceptionReporterFilter()
        return reporter


def test_posted_parameters_are_hidden_where_they_are_ours():
    report_filter = SMARTExceptionReporterFilter()
    ours = RequestFactory().post("/smart/callback/", {"anything": "s3cret"})
    assert report_filter.get_post_parameters(ours)["anything"] != "s3cret"
    other = RequestFactory().post("/page/", {"code": "s3cret", "tab": "labs"})
    assert report_filter.get_post_parameters(other)["code"] != "s3cret"
    assert report_filter.get_post_parameters(other)["tab"] == "labs"
    assert not report_filter.get_post_parameters(None)


def test_report_without_a_request_is_made():
    assert "ZeroDivisionError" in report_with(None).get_traceback_html()


def test_reporter_gets_along_with_a_filter_of_the_site():
    reporter = report_with(RequestFactory().get("/?code=s3cret"))
    reporter.filter = SafeExceptionReporterFilter()
    assert "code=[hidden]" in reporter.get_traceback_text()


def test_parameters_are_taken_out_of_a_request():
    request = RequestFactory().get("/smart/callback/", {"code": "s3cret", "a": "b"})
    request.META["REQUEST_URI"] = "/smart/callback/?code=s3cret"
    hide_parameters(request)
    assert list(request.GET) == ["code", "a"]
    assert "s3cret" not in f"{request.GET}{request.META}{request!r}"
    assert "s3cret" not in request.get_full_path()


@pytest.mark.usefixtures("registration")
def test_template_of_an_error_page_is_given_no_parameters():
    response = make_browser().get("/smart/callback/?code=s3cret&state=s3cret")
    assert response.status_code == 400
    assert "s3cret" not in repr(response.wsgi_request)

"""One journey through sites of several kinds, and what each of them refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import django
import pytest
from csp.constants import NONCE
from django.contrib.auth.models import Group
from django.db import connections
from django.test.utils import override_script_prefix
from django.utils import timezone

from django_smart.contrib.doctor.launch import try_launch
from django_smart.models import TokenGrant
from tests.ehr import PATIENT, make_browser
from tests.site.browsers import make_mounted_browser
from tests.sites.journey import Visitor, expect_patient, find, follow, visit

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("registration")]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a site differs from the tests' own."""

    urls: str = "tests.sites.urls"
    settings: dict[str, Any] = field(default_factory=dict)
    middleware: str = ""
    context_processor: str = ""
    is_atomic: bool = False
    make_visitor: Callable[[], Visitor] = lambda: Visitor(make_browser())


KINDS = {
    "async": Kind(
        urls="tests.sites.async_urls",
        make_visitor=lambda: Visitor(make_browser(), by_asgi=True),
    ),
    "mounted": Kind(make_visitor=lambda: Visitor(make_mounted_browser(), root="/app")),
    "languages": Kind(
        urls="tests.sites.language_urls",
        settings={"LANGUAGES": [("en", "English"), ("de", "Deutsch")]},
        middleware="django.middleware.locale.LocaleMiddleware",
    ),
    "atomic": Kind(is_atomic=True),
    "django-csp": Kind(
        settings={
            "CONTENT_SECURITY_POLICY": {
                "DIRECTIVES": {"default-src": ["'self'"], "script-src": [NONCE]}
            }
        },
        middleware="csp.middleware.CSPMiddleware",
        context_processor="csp.context_processors.nonce",
    ),
    "own-csp": Kind(
        settings={
            "SECURE_CSP": {
                "default-src": ["'self'"],
                # CSP.NONCE of Django 6.0 and newer.
                "script-src": ["<CSP_NONCE_SENTINEL>"],
            }
        },
        middleware="django.middleware.csp.ContentSecurityPolicyMiddleware",
        context_processor="django.template.context_processors.csp",
    ),
}
_POLICIES = ["django-csp", "own-csp"]


@pytest.fixture
def kind(request: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """The site of the parameter."""
    if request.param == "own-csp" and django.VERSION < (6, 0):
        pytest.skip("needs Django 6.0")
    kind = KINDS[request.param]
    settings.ROOT_URLCONF = kind.urls
    settings.SMART_LAUNCH_REDIRECT_URL = "chart"
    settings.LOGIN_URL = "login"
    for name, value in kind.settings.items():
        setattr(settings, name, value)
    if kind.middleware:
        # Behind the sessions, where LocaleMiddleware has to be.
        at = settings.MIDDLEWARE.index("django.middleware.common.CommonMiddleware")
        settings.MIDDLEWARE = [
            *settings.MIDDLEWARE[:at],
            kind.middleware,
            *settings.MIDDLEWARE[at:],
        ]
    if kind.context_processor:
        (engine,) = deepcopy(settings.TEMPLATES)
        engine["OPTIONS"]["context_processors"].append(kind.context_processor)
        settings.TEMPLATES = [engine]
    if kind.is_atomic:
        of_the_database = connections["default"].settings_dict
        monkeypatch.setitem(of_the_database, "ATOMIC_REQUESTS", True)
    return kind


def of(*names: str) -> pytest.MarkDecorator:
    """The test is for these sites."""
    return pytest.mark.parametrize("kind", names, indirect=True)


@of(*KINDS)
def test_everything_on_a_site_stays_in_its_launch(ehr, kind):
    visit(kind.make_visitor(), kind.make_visitor(), ehr)


@of(*KINDS)
def test_doctor_can_launch_every_site(settings, kind):
    settings.SMART_SITE_URL = "https://app.example.org"
    with override_script_prefix(f"{kind.make_visitor().root}/"):
        assert list(try_launch()) == []


@of(*KINDS)
def test_page_that_needs_a_launch_is_refused_without_one(ehr, kind):
    visitor = kind.make_visitor()
    page = f"{visitor.root}/chart/"
    response = visitor.get(page)
    if response.status_code == 302:
        response = visitor.get(response["Location"])
    assert response.status_code == 403
    assert b"<code>no_launch</code>" in response.content
    # And with two, none of which the address names.
    for patient in list(ehr.data["Patient"])[:2]:
        visitor.launch(ehr, patient)
    response = visitor.get(page, **{"accept-language": "en"})
    if response.status_code == 302:
        response = visitor.get(response["Location"])
    assert response.status_code == 403
    assert b"<code>ambiguous</code>" in response.content


@of("languages")
def test_language_of_the_browser_leads_to_its_pages_in_the_launch(ehr, kind):
    visitor = kind.make_visitor()
    landing = visitor.launch(ehr, PATIENT, **{"accept-language": "de"})
    page = follow(visitor, landing, landing.removesuffix("de/chart/"))
    assert find(page, "results").endswith("/de/results/")
    assert b'<html lang="de">' in page.content
    expect_patient(page, PATIENT)
    # Without it the redirect to a language keeps the launch.
    bare = find(page, "chart").replace("/de/", "/")
    response = visitor.get(bare, **{"accept-language": "de"})
    assert response["Location"] == find(page, "chart")
    assert visitor.get(bare.replace("chart", "nothing")).status_code == 404


@of("languages")
def test_other_language_of_a_page_is_in_the_launch_too(ehr, kind):
    """By Django's own view, which gets what {{ request.path_info }} says."""
    visitor = kind.make_visitor()
    landing = visitor.launch(ehr, PATIENT)
    page = follow(visitor, landing, landing.removesuffix("en/chart/"))
    (token,) = re.findall(
        'name="csrfmiddlewaretoken" value="([^"]+)"', page.content.decode()
    )
    values = {
        "csrfmiddlewaretoken": token,
        "language": "de",
        "next": page.wsgi_request.path_info,
    }
    url = landing.replace("en/chart/", "i18n/setlang/")
    response = visitor.post(url, values)
    assert response["Location"] == landing.replace("/en/", "/de/")
    assert b'<html lang="de">' in visitor.get(response["Location"]).content
    assert visitor.get(landing.replace("/en/", "/xx/")).status_code == 404


@of("atomic")
def test_what_a_view_wrote_is_rolled_back_when_the_ehr_fails(ehr, kind):
    visitor = kind.make_visitor()
    landing = visitor.launch(ehr, PATIENT)
    page = visitor.get(landing).content.decode()
    (action,) = re.findall('action="([^"]+)"', page)
    (token,) = re.findall('name="csrfmiddlewaretoken" value="([^"]+)"', page)
    values = {"text": "kept", "csrfmiddlewaretoken": token}
    ehr.faults = {"fhir_500"}
    assert visitor.post(action, values).status_code >= 500
    assert not Group.objects.exists()
    ehr.faults = ()
    assert visitor.post(action, values).status_code == 302
    assert Group.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@of("atomic")
@pytest.mark.parametrize(
    ("scope", "fault", "status", "code"),
    [
        ("", "", 403, "grant_lost"),
        (" offline_access", "refresh_500", 502, "token_server_error"),
        (" offline_access", "", 200, ""),
    ],
    ids=["has ended", "cannot be replaced now", "is replaced"],
)
def test_token_that_ended_is_seen_to_outside_of_the_transaction(
    ehr, registration, kind, scope, fault, status, code
):
    registration.ehr_scope += scope
    registration.save()
    visitor = kind.make_visitor()
    landing = visitor.launch(ehr, PATIENT)
    TokenGrant.objects.update(expires_at=timezone.now())
    ehr.faults = {fault} - {""}
    page = visitor.get(landing)
    assert page.status_code == status, page.content
    assert f"<code>{code}</code>" in page.content.decode() or status == 200


@of(*_POLICIES)
def test_policy_of_the_site_holds_in_the_launch_and_for_our_pages(ehr, kind):
    visitor = kind.make_visitor()
    page = visitor.get(visitor.launch(ehr, PATIENT))
    (nonce,) = re.findall('<script nonce="([^"]+)">', page.content.decode())
    assert f"'nonce-{nonce}'" in page["Content-Security-Policy"]
    refused = kind.make_visitor().get(find(page, "chart"))
    assert "default-src 'self'" in refused["Content-Security-Policy"]
    # Nothing of ours stands in the page itself, which the policy would block.
    assert not re.search("<script>|<style|style=|onclick", refused.content.decode())

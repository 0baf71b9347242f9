"""The dry run of a launch: what a browser would meet, without a signal or a launch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.core.cache.backends.dummy import DummyCache
from django.urls import get_urlconf
from django.utils import translation

from django_smart import signals, transport
from django_smart.contrib.doctor import Finding, examine
from django_smart.models import Launch
from tests.answers import Away
from tests.contrib.doctor.conftest import World
from tests.contrib.doctor.faults import sign_in_required
from tests.ehr import SITE

pytestmark = pytest.mark.django_db


def find(world: World, code: str) -> Finding:
    findings = [each for each in examine([world.server]) if each.code == code]
    assert findings, code
    return findings[0]


def test_dry_run_launches_nothing_and_sends_no_signal(world: World) -> None:
    sent: list[Any] = []

    def note(**values: Any) -> None:
        sent.append(values)

    ours = [getattr(signals, name) for name in signals.__all__]
    for each in ours:
        each.connect(note)
    try:
        assert examine([world.server]) == []
    finally:
        for each in ours:
            each.disconnect(note)
    assert [each for each in sent if each["signal"] in ours] == []
    assert not Launch.objects.exists()
    assert {"/smart/launch/", "/smart/callback/", "/smart/login/"} <= {
        *world.site.paths
    }


def test_landing_page_that_is_missing_is_named(world: World) -> None:
    world.settings.SMART_LAUNCH_REDIRECT_URL = "/dashboard/"
    assert "/dashboard/" in find(world, "landing_page_missing").what
    world.set_registration(landing_page="/admin/")
    assert examine([world.server]) == []
    world.set_registration(landing_page="/nothing/")
    transport.mount(SITE, Away())
    assert find(world, "landing_page_missing").severity == "warning"


@pytest.mark.parametrize(("language", "is_missing"), [("de", False), ("xx", True)])
def test_landing_page_may_be_in_any_language_of_this_site(
    world: World, language: str, is_missing: bool
) -> None:
    world.settings.ROOT_URLCONF = "tests.site.i18n_package_urls"
    world.set_registration(landing_page=f"/{language}/smart/jwks.json")
    transport.mount(SITE, Away())
    codes = {each.code for each in examine([world.server])}
    assert ("landing_page_missing" in codes) is is_missing


def test_page_that_something_before_django_serves_is_a_landing_page(
    world: World,
) -> None:
    world.settings.SMART_LAUNCH_REDIRECT_URL = "/app/"
    world.settings.MIDDLEWARE = [
        *world.settings.MIDDLEWARE,
        "tests.contrib.doctor.site.serve_app",
    ]
    assert examine([world.server]) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SESSION_COOKIE_DOMAIN", "other.example.org"),
        ("CSRF_COOKIE_DOMAIN", ".example.com"),
    ],
)
def test_cookie_that_browsers_do_not_send_is_named(
    world: World, name: str, value: str
) -> None:
    setattr(world.settings, name, value)
    assert name in find(world, "cookie_hidden").fix


@pytest.mark.parametrize("value", ["app.example.org", ".example.org", "example.org"])
def test_cookie_of_the_site_or_a_domain_above_it_is_fine(
    world: World, value: str
) -> None:
    world.settings.SESSION_COOKIE_DOMAIN = value
    assert examine([world.server]) == []


def test_secure_cookie_of_a_plain_site_is_named(world: World) -> None:
    world.settings.SMART_SITE_URL = "http://app.example.org"
    world.settings.SMART_INSECURE_HTTP_HOSTS = ["app.example.org"]
    with transport.mounted("http://app.example.org", world.site):
        assert "https" in find(world, "cookie_hidden").fix


@pytest.mark.parametrize(
    ("base", "code"),
    [
        ("<title>Clinic</title>", "page_empty"),
        ("{% block title %}{% endblock %}{% block main %}{% endblock %}", "page_empty"),
        ("{% include 'nothing.html' %}", "page_broken"),
        ("{% block title %}{% endblock %}{% block content %}{% endblock %}", ""),
    ],
)
def test_base_template_without_the_blocks_is_named(
    world: World, tmp_path: Path, base: str, code: str
) -> None:
    set_base_template(world, tmp_path, base)
    assert [each.code for each in examine([world.server])] == [code] * bool(code)


def set_base_template(world: World, folder: Path, base: str) -> None:
    (folder / "django_smart").mkdir()
    (folder / "django_smart" / "base.html").write_text(base)
    world.settings.TEMPLATES = [{**world.settings.TEMPLATES[0], "DIRS": [str(folder)]}]


def require_sign_in_elsewhere(world: World) -> None:
    world.settings.MIDDLEWARE = [
        *world.settings.MIDDLEWARE,
        "tests.contrib.doctor.site.redirect_others_to_sign_in",
    ]


def redirect_to_https(world: World) -> None:
    world.settings.SMART_SITE_URL = ""
    world.settings.SECURE_SSL_REDIRECT = True


def allow_no_localhost(world: World) -> None:
    world.settings.SMART_SITE_URL = ""
    world.settings.ALLOWED_HOSTS = ["app.example.org"]


SPOILERS = [
    sign_in_required,
    require_sign_in_elsewhere,
    redirect_to_https,
    allow_no_localhost,
]


@pytest.mark.parametrize("spoil", SPOILERS)
@pytest.mark.parametrize(
    ("base", "code"),
    [("<title>Clinic</title>", "page_empty"), ("{% nothing %}", "page_broken")],
)
def test_broken_pages_are_named_although_a_middleware_answers(
    world: World, tmp_path: Path, base: str, code: str, spoil: Callable[[World], None]
) -> None:
    set_base_template(world, tmp_path, base)
    spoil(world)
    find(world, code)


@pytest.mark.parametrize("name", ["show_patient", "show_tenant"])
def test_context_processor_may_rely_on_the_middleware(world: World, name: str) -> None:
    add_context_processor(world, name)
    assert examine([world.server]) == []


@pytest.mark.parametrize("spoil", SPOILERS)
def test_middleware_that_answers_does_not_accuse_a_context_processor(
    world: World, spoil: Callable[[World], None]
) -> None:
    spoil(world)
    add_context_processor(world, "show_tenant")
    assert "page_broken" not in {each.code for each in examine([world.server])}


def add_context_processor(world: World, name: str) -> None:
    world.settings.MIDDLEWARE = [
        *world.settings.MIDDLEWARE,
        "tests.contrib.doctor.site.name_tenant",
    ]
    engine = dict(world.settings.TEMPLATES[0])
    processor = f"tests.contrib.doctor.site.{name}"
    engine["OPTIONS"] = {
        **engine["OPTIONS"],
        "context_processors": [*engine["OPTIONS"]["context_processors"], processor],
    }
    world.settings.TEMPLATES = [engine]


def test_site_that_cannot_reach_itself_is_walked_in_this_process(
    world: World,
) -> None:
    transport.mount(SITE, Away())
    sign_in_required(world)
    finding = find(world, "url_blocked")
    assert "/accounts/login/" in finding.what


class CacheThatIsDown(DummyCache):
    """No value can be stored."""

    def add(self, *_args: Any, **_values: Any) -> Any:
        raise ConnectionError("Connection refused")

    set = get = add


def test_cookie_of_a_session_that_cannot_be_saved_is_not_accused(
    world: World,
) -> None:
    here = f"{__name__}.{CacheThatIsDown.__name__}"
    world.settings.CACHES = {"default": {"BACKEND": here}}
    world.settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    (finding,) = examine([world.server])
    assert finding.code == "not_examined"
    assert "Connection refused" in finding.what


@pytest.mark.parametrize("name", ["drop_session_cookie", "move_session_cookie"])
def test_middleware_that_changes_the_cookie_of_the_session_is_named(
    world: World, name: str
) -> None:
    transport.mount(SITE, Away())
    world.settings.MIDDLEWARE = [
        f"tests.contrib.doctor.site.{name}",
        *world.settings.MIDDLEWARE,
    ]
    assert "sessionid" in find(world, "cookie_hidden").what
    assert not Session.objects.exists()


def test_walk_in_this_process_leaves_language_and_urls_alone(world: World) -> None:
    world.settings.MIDDLEWARE = [
        *world.settings.MIDDLEWARE,
        "django.middleware.locale.LocaleMiddleware",
    ]
    transport.mount(SITE, Away())
    with translation.override("de"):
        examine([world.server])
        assert translation.get_language() == "de"
    assert get_urlconf() is None


def test_site_that_cannot_reach_itself_is_a_note(world: World) -> None:
    transport.mount(SITE, Away())
    (finding,) = examine([world.server])
    assert (finding.code, finding.severity) == ("jwks_unreachable", "note")

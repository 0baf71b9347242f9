"""The page on other ways to sign in, by its settings."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from django.template import engines
from django.test import RequestFactory

from tests.docs.blocks import DOCS, apply, read_blocks
from tests.ehr import make_browser
from tests.projects import run
from tests.site.browsers import open_chart

_PAGE = "how-to/users-and-sign-in.rst"


@pytest.mark.process
def test_site_with_allauth() -> None:
    assert len(read_blocks(_PAGE, "Beside django-allauth")) == 1
    command = (sys.executable, "-m", "tests.docs.beside_allauth")
    assert "all of it" in run(*command, cwd=DOCS.parent)


@pytest.mark.django_db
@pytest.mark.urls("tests.site.oidc_urls")
@pytest.mark.usefixtures("registration")
def test_site_with_mozilla_django_oidc(settings: Any, ehr: Any) -> None:
    (backends,) = read_blocks(_PAGE, "Beside mozilla-django-oidc")
    (link,) = read_blocks(_PAGE, "One person, two ways to sign in")
    apply(settings, backends)
    for name, value in (
        ("OIDC_RP_CLIENT_ID", "staff"),
        ("OIDC_RP_CLIENT_SECRET", "staff secret"),
        ("OIDC_OP_AUTHORIZATION_ENDPOINT", "https://staff.example.org/authorize"),
        ("OIDC_OP_TOKEN_ENDPOINT", "https://staff.example.org/token"),
        ("OIDC_OP_USER_ENDPOINT", "https://staff.example.org/user"),
        ("OIDC_RP_SIGN_ALGO", "HS256"),
    ):
        setattr(settings, name, value)
    assert open_chart(ehr).launch.user is not None
    to_staff = make_browser().get("/oidc/authenticate/")
    assert to_staff["Location"].startswith("https://staff.example.org/authorize?")
    page = engines["django"].from_string(link.code)
    assert 'href="/smart/login/"' in page.render({}, RequestFactory().get("/"))

"""What the middleware adds to a page that does not use it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from benchmarks.harness import Report, Variant, measure
from benchmarks.setting_up import LoginDriver, configure, make_registration
from benchmarks.stub import running_stub

__all__ = ["TEXT", "run"]

TEXT = """
A signed-in user requests a page that uses neither session nor user nor launch, through Django's usual seven middleware classes and one more.
Under a launch prefix, the key is checked, which needs session, user and launch; this is compared with a page that uses ``request.user``.
"""

_BASE = "no further middleware"
_OPERATIONS = 200


def run(report: Report) -> None:
    """Measure."""
    with running_stub() as stub:
        configure(stub=stub, PEERS="all")
        make_registration(stub)
        pages = _make_pages()
        plain = {
            _BASE: pages["plain"],
            "django_smart": pages["ours"],
            "mozilla-django-oidc SessionRefresh": pages["mozilla"],
        }
        if "allauth" in pages:
            plain["allauth"] = pages["allauth"]
        times = measure(
            [Variant(name=name, run=page.run) for name, page in plain.items()],
            rounds=report.rounds(120),
            operations=_OPERATIONS,
        )
        report.add_table(
            "untouched",
            "A page that touches nothing",
            times,
            base=_BASE,
            operations=_OPERATIONS,
            unit="page",
        )
        report.check_ratio(
            "untouched",
            "of no middleware",
            name="django_smart",
            base=_BASE,
            at_most=1.10,
        )
        report.check(
            "untouched-queries",
            "queries, nothing touched",
            pages["ours"].count_queries(),
            at_most=0,
        )
        report.facts["queries of mozilla-django-oidc's SessionRefresh"] = pages[
            "mozilla"
        ].count_queries()
        _measure_prefix(report, pages)


def _measure_prefix(report: Report, pages: dict[str, Any]) -> None:
    base, ours = pages["plain-user"], pages["prefixed"]
    times = measure(
        [
            Variant(name="request.user", run=base.run),
            Variant(name="django_smart, under a prefix", run=ours.run),
        ],
        rounds=report.rounds(120),
        operations=_OPERATIONS // 4,
    )
    report.add_table(
        "prefix",
        "A page under a launch prefix",
        times,
        base="request.user",
        operations=_OPERATIONS // 4,
        unit="page",
    )
    report.check(
        "prefix-queries",
        "queries under a prefix, beyond the session's and the user's",
        ours.count_queries() - base.count_queries(),
        at_most=1,
    )
    report.check_ratio(
        "prefix",
        "under a prefix, of request.user",
        name="django_smart, under a prefix",
        base="request.user",
        at_most=2.0,
    )


class Page:
    """One page, asked for again and again with the cookies of one browser."""

    def __init__(self, driver: LoginDriver, path: str, browser: Any) -> None:
        from django.core.handlers.wsgi import WSGIRequest

        self._handler = driver.handler
        self._make = WSGIRequest
        self._environ = browser._base_environ(PATH_INFO=path)
        assert self.get().status_code == 200

    def get(self) -> Any:
        """The answer of one request."""
        return self._handler.get_response(self._make(self._environ.copy()))

    def run(self, number: int) -> None:
        """*number* requests."""
        for _ in range(number):
            self.get()

    def count_queries(self) -> int:
        """Of one request."""
        from django.db import connection
        from django.test.utils import CaptureQueriesContext

        with CaptureQueriesContext(connection) as captured:
            self.get()
        return len(captured)


def _make_pages() -> dict[str, Page]:
    ours = LoginDriver(
        "/smart/login/?server=stub", "/smart/callback/", middleware="ours"
    )
    browser = ours.browser()
    landing = ours.sign_in(browser)["Location"]
    drivers = {
        name: LoginDriver("", "", middleware=name) for name in ("plain", "mozilla")
    }
    session = browser.session
    pages = {
        "ours": Page(ours, "/plain/", browser),
        "prefixed": Page(ours, landing, browser),
        "prefixed-fhir": Page(ours, landing.replace("plain", "fhir"), browser),
        "plain": Page(drivers["plain"], "/plain/", browser),
        "plain-user": Page(drivers["plain"], "/user/", browser),
    }
    if find_spec("allauth"):
        driver = LoginDriver("", "", middleware="allauth")
        pages["allauth"] = Page(driver, "/plain/", browser)
    # Its middleware looks at sessions of its own backend alone.
    staff = drivers["mozilla"].browser()
    staff.cookies.load(browser.cookies)
    other = session.__class__()
    other.update(dict(session))
    other["_auth_user_backend"] = "mozilla_django_oidc.auth.OIDCAuthenticationBackend"
    other["oidc_id_token_expiration"] = 2**40
    other.save()
    staff.cookies["sessionid"] = other.session_key
    pages["mozilla"] = Page(drivers["mozilla"], "/plain/", staff)
    return pages

"""A whole login, warm."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from benchmarks.harness import Report, Variant, measure
from benchmarks.setting_up import LoginDriver, configure, make_registration
from benchmarks.stub import running_stub

__all__ = ["TEXT", "run"]

TEXT = """
From the first URL to the response of the callback, in a browser without cookies, for a user who has signed in before; the EHR's own pages take no time.
*By hand* is the minimum that is correct: it stores who the user is and nothing else.
The package also stores the launch, the identity and the encrypted tokens.
*Authlib and a launch* does so as well, written plainly with Authlib and Django's ORM.
"""

_BASE = "by hand"
_OURS = "django_smart"
_SAME_WORK = "Authlib and a launch"


def run(report: Report) -> None:
    """Measure."""
    with running_stub() as stub:
        configure(stub=stub, PEERS="all")
        from benchmarks.site.with_authlib_and_launch import make_hospital

        make_registration(stub)
        make_hospital(stub.base_url)
        logins = {
            _BASE: LoginDriver(
                "/by-hand/login/", "/by-hand/callback/", middleware="plain"
            ),
            _OURS: LoginDriver(
                "/smart/login/?server=stub", "/smart/callback/", middleware="ours"
            ),
            "Authlib": LoginDriver(
                "/authlib/login/", "/authlib/callback/", middleware="plain"
            ),
            _SAME_WORK: LoginDriver(
                "/authlib-launch/login/?hospital=stub",
                "/authlib-launch/callback/",
                middleware="plain",
            ),
            "mozilla-django-oidc": LoginDriver(
                "/mozilla/authenticate/", "/mozilla/callback/", middleware="mozilla"
            ),
        }
        if find_spec("allauth"):
            logins["allauth"] = LoginDriver(
                "/allauth/oidc/stub/login/",
                "/allauth/oidc/stub/login/callback/",
                middleware="allauth",
            )
        stub.take_counts()
        logins[_OURS].sign_in()
        report.check(
            "outbound-cold",
            "outbound requests, first login",
            _count_requests(stub),
            at_most=3,
        )
        for name, login in logins.items():
            login.sign_in()
            stub.take_counts()
            statements = _count_statements(login)
            requests = _count_requests(stub)
            report.facts[f"{name}: outbound requests, statements"] = (
                f"{requests}, {statements}"
            )
            if name == _OURS:
                report.check("outbound", "outbound requests, warm", requests, at_most=1)
                report.check("statements", "statements", statements, at_most=14)
        times = measure(
            [Variant(name=name, run=login.run) for name, login in logins.items()],
            rounds=report.rounds(60),
            operations=10,
        )
        report.add_table(
            "login", "One login", times, base=_BASE, operations=10, unit="login"
        )
        report.check_ratio("login", "of by hand", name=_OURS, base=_BASE, at_most=1.65)
        report.check_ratio(
            "same-work",
            "logins a second, over those of Authlib and a launch",
            name=_OURS,
            base=_SAME_WORK,
            at_least=1.0,
            inverse=True,
        )


def _count_requests(stub: Any) -> int:
    counts = stub.take_counts()
    return sum(number for path, number in counts.items() if path != "connections")


def _count_statements(login: LoginDriver) -> int:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as captured:
        login.sign_in()
    # What marks a transaction is no statement that anything is asked by.
    marks = ("SAVEPOINT", "RELEASE", "BEGIN", "COMMIT")
    return sum(not each["sql"].startswith(marks) for each in captured)

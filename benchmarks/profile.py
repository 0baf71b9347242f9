"""
Where the time of a launch and of a refresh goes, by library.

    python -m benchmarks.profile

Shares are of the time that this process works, under a profiler, which makes small
functions look larger than they are; waiting for the server is left out.
"""

from __future__ import annotations

import cProfile
import pstats
import secrets
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from benchmarks.setting_up import LoginDriver, configure, make_registration
from benchmarks.stub import Stub, running_stub

__all__ = ["main"]

_LOGINS, _GRANTS = 200, 500
# The first that is part of the path of a file.
_AREAS = (
    ("/django/db/models/sql/", "Django: making SQL"),
    ("/django/db/models/", "Django: querysets and instances"),
    ("/django/db/", "Django: database connections"),
    ("/sqlite3/", "Django: database connections"),
    ("/django/", "Django: requests, sessions, signals"),
    ("/django_smart/transport/", "this package: HTTP"),
    ("/django_smart/protocol/", "this package: protocol"),
    ("/django_smart/", "this package: the rest"),
    ("/urllib3/", "urllib3 and http.client"),
    ("/http/", "urllib3 and http.client"),
    ("/email/", "urllib3 and http.client"),
    ("/cryptography/", "cryptography and PyJWT"),
    ("/jwt/", "cryptography and PyJWT"),
)
_OTHERS = "Python's own and others"
_WAITING = ("recv_into", "acquire", "poll", "select")


def main() -> None:
    """Print both."""
    with running_stub() as stub:
        configure(stub=stub)
        registration = make_registration(stub)
        driver = LoginDriver(
            "/smart/login/?server=stub", "/smart/callback/", middleware="ours"
        )
        driver.run(5)
        _show("A launch", _LOGINS, lambda: driver.run(_LOGINS))
        refresh = _prepare_refresh(stub, registration)
        _show("A refresh", _GRANTS, refresh)


def _prepare_refresh(stub: Stub, registration: Any) -> Callable[[], Any]:
    from django.utils import timezone

    from django_smart.grants.turn import serve
    from django_smart.models import TokenGrant

    now = timezone.now()
    grants = []
    for _ in range(_GRANTS):
        grant = TokenGrant(
            registration=registration,
            is_offline=True,
            scope="launch/patient patient/*.rs offline_access",
            scope_granted="launch/patient patient/*.rs offline_access",
            patient_id="p1",
            received_at=now - timedelta(hours=2),
            expires_at=now - timedelta(hours=1),
            refresh_due_at=now - timedelta(hours=1),
        )
        grant.set_tokens(access_token="a" * 43, refresh_token=secrets.token_hex(20))
        grants.append(grant)
    TokenGrant.objects.bulk_create(grants)
    return lambda: serve(registration.server_id)


def _show(title: str, number: int, action: Callable[[], Any]) -> None:
    profile = cProfile.Profile()
    profile.enable()
    action()
    profile.disable()
    shares: Counter[str] = Counter()
    calls = 0
    stats: Any = pstats.Stats(profile)
    for (path, _, name), (_, count, own, _, callers) in stats.stats.items():
        calls += count
        if path != "~":
            shares[_get_area(path)] += own
        elif not any(each in name for each in _WAITING):
            # What is built in counts for whoever calls it.
            for (caller, _, _), (_, _, part, _) in callers.items():
                shares[_get_area(caller)] += part
    total = sum(shares.values())
    print(f"{title}: {calls // number:,} calls of functions")
    for area, own in shares.most_common():
        print(f"    {own / total:4.0%}  {area}")


def _get_area(path: str) -> str:
    return next((area for part, area in _AREAS if part in path), _OTHERS)


if __name__ == "__main__":
    main()

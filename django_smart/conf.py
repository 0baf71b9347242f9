"""
The package's settings: flat, typed, read at access.

Nothing is read at import and nothing is written to ``django.conf.settings``, so
``override_settings`` works everywhere.  System checks report invalid values.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.conf import settings

__all__ = ["SMARTSettings", "conf"]


class SMARTSettings:
    """One property per setting, under the setting's own name."""

    @property
    def SMART_SITE_URL(self) -> str:
        """
        Scheme and host of this site, such as ``https://app.example.org``.

        New registrations derive their ``redirect_uri`` from it.  Default: empty.
        """
        return str(self._get("SMART_SITE_URL", "")).rstrip("/")

    @property
    def SMART_LAUNCH_REDIRECT_URL(self) -> str:
        """Path or URL name to open after a launch.  Default: ``/``."""
        return str(self._get("SMART_LAUNCH_REDIRECT_URL", "/"))

    @property
    def SMART_ENCRYPTION_KEYS(self) -> tuple[str, ...]:
        """
        Fernet keys for secrets and tokens at rest; the first encrypts, all decrypt.

        Default: empty.  Keys derived from ``SECRET_KEY`` and its fallbacks come last.
        """
        return tuple(self._get("SMART_ENCRYPTION_KEYS", ()))

    @property
    def SMART_INSECURE_HTTP_HOSTS(self) -> frozenset[str]:
        """
        Host names, without port, for which plain ``http`` is accepted.

        For development only.  Default: empty.
        """
        hosts = self._get("SMART_INSECURE_HTTP_HOSTS", ())
        return frozenset(str(host).lower().strip("[]") for host in hosts)

    @property
    def SMART_PRIVATE_HOSTS(self) -> frozenset[str]:
        """
        Host names, without port, that may have a private address.

        ``localhost`` and loopback addresses need no entry if
        ``SMART_INSECURE_HTTP_HOSTS`` lists them.  Default: empty.
        """
        hosts = self._get("SMART_PRIVATE_HOSTS", ())
        return frozenset(str(host).lower().strip("[]") for host in hosts)

    @property
    def SMART_LAUNCH_PREFIX(self) -> str:
        """
        Prefix of a launch's key in the path.  Default: ``~``.

        An empty string disables the prefix; a browser can then use only one launch.
        """
        return str(self._get("SMART_LAUNCH_PREFIX", "~") or "")

    @property
    def SMART_HTTP_TIMEOUT(self) -> tuple[float, float, float]:
        """Seconds to connect, between two reads, and for a whole call: 5, 10, 20."""
        connect, read, total = self._get("SMART_HTTP_TIMEOUT", (5, 10, 20))
        return float(connect), float(read), float(total)

    @property
    def SMART_AUTHORIZATION_LIFETIME(self) -> timedelta:
        """Seconds from the start of a launch to the callback.  Default: 900."""
        return timedelta(seconds=self._get("SMART_AUTHORIZATION_LIFETIME", 900))

    @property
    def SMART_LAUNCH_LIFETIME(self) -> timedelta:
        """Seconds that a completed launch can be used.  Default: 43,200 (12 hours)."""
        return timedelta(seconds=self._get("SMART_LAUNCH_LIFETIME", 12 * 3600))

    @property
    def SMART_LAUNCH_IDLE_LIFETIME(self) -> timedelta:
        """Seconds after which an unused launch ends.  Default: 14,400 (4 hours)."""
        return timedelta(seconds=self._get("SMART_LAUNCH_IDLE_LIFETIME", 4 * 3600))

    @property
    def SMART_LAUNCHES_PER_BROWSER(self) -> int:
        """Launches that a browser can have open.  Default: 20."""
        return int(self._get("SMART_LAUNCHES_PER_BROWSER", 20))

    @property
    def SMART_DISCOVERY_LIFETIME(self) -> timedelta:
        """
        Maximum seconds to cache a server's configuration and keys.

        The server may shorten it, down to five minutes.  Default: 86,400.
        """
        return timedelta(seconds=self._get("SMART_DISCOVERY_LIFETIME", 24 * 3600))

    @property
    def SMART_REFRESH_IDLE_AFTER(self) -> timedelta:
        """
        Seconds after which an unused grant is only kept alive.

        Default: 0, never: every access token is replaced before it expires.
        """
        return timedelta(seconds=self._get("SMART_REFRESH_IDLE_AFTER", 0))

    @property
    def SMART_REFRESH_THREADS(self) -> int:
        """Concurrent requests of one worker process.  Default: 16."""
        return int(self._get("SMART_REFRESH_THREADS", 16))

    @property
    def SMART_PURGE_AFTER(self) -> timedelta:
        """Seconds to keep ended launches and grants.  Default: 30 days."""
        return timedelta(seconds=self._get("SMART_PURGE_AFTER", 30 * 24 * 3600))

    @property
    def SMART_KEY_ROTATION(self) -> timedelta:
        """
        Seconds that a key signs before the next one replaces it.

        Default: 0, no automatic rotation.
        """
        return timedelta(seconds=self._get("SMART_KEY_ROTATION", 0))

    @property
    def SMART_BROWSER_COOKIE_NAME(self) -> str:
        """
        How the names of launch cookies begin.  Default: ``smart_browser``.

        Over https, they get the prefix ``__Host-``.
        """
        return str(self._get("SMART_BROWSER_COOKIE_NAME", "smart_browser"))

    @property
    def SMART_SUPPORT_URL(self) -> str:
        """
        The site's support page, linked from error pages: a URL, path or ``mailto:``.

        Default: empty, for no link.
        """
        return str(self._get("SMART_SUPPORT_URL", ""))

    @property
    def SMART_STAFF_SIGN_IN_SERVERS(self) -> frozenset[str]:
        """
        Slugs of the servers that may sign in staff and superusers.

        Default: empty.  From other servers, they sign in at ``LOGIN_URL`` first.
        """
        return frozenset(self._get("SMART_STAFF_SIGN_IN_SERVERS", ()))

    @property
    def SMART_PICKER_SHOW_UNREGISTERED(self) -> bool:
        """
        Whether ``login/`` shows organizations that cannot be connected yet.

        Default: ``False``.
        """
        return bool(self._get("SMART_PICKER_SHOW_UNREGISTERED", default=False))

    @property
    def SMART_LOGO_LICENSES(self) -> frozenset[str]:
        """
        URLs of the logo licenses that this site has agreed to.

        A logo with another license is not shown.  Default: empty.
        """
        return frozenset(self._get("SMART_LOGO_LICENSES", ()))

    @property
    def SMART_APP_STATE_SYSTEM(self) -> str:
        """
        Origin of app state codes, without a trailing slash.

        Default: empty, for the site's own origin.
        """
        return str(self._get("SMART_APP_STATE_SYSTEM", "")).rstrip("/")

    @property
    def SMART_SCOPE_CHECK(self) -> str:
        """
        What happens before a FHIR request that the granted scopes do not cover.

        ``warn`` logs the missing scope, ``raise`` raises, and ``off`` sends the request
        silently.  Default: ``warn``.
        """
        return str(self._get("SMART_SCOPE_CHECK", "warn"))

    @property
    def SMART_RECORDS_SINK(self) -> str:
        """
        Dotted path of a callable that returns where whole records go.

        For ``django_smart.contrib.records``.  Default: empty.
        """
        return str(self._get("SMART_RECORDS_SINK", ""))

    @staticmethod
    def _get(name: str, default: Any) -> Any:
        return getattr(settings, name, default)


conf = SMARTSettings()

CLOCK_LEEWAY = timedelta(minutes=1)
"""By how much an EHR's clock may differ from ours."""

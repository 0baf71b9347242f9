"""
The package's settings: flat, typed, read at access.

Nothing is read at import and nothing is written to ``django.conf.settings``, so
``override_settings`` works everywhere.  Wrong values are reported by the system checks.
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
        Scheme and host this site is reached at, such as ``https://app.example.org``.

        New registrations take their ``redirect_uri`` from it.  Default: empty.
        """
        return str(self._get("SMART_SITE_URL", "")).rstrip("/")

    @property
    def SMART_LAUNCH_REDIRECT_URL(self) -> str:
        """Path or URL name a finished launch goes to.  Default: ``/``."""
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
        Host names, without port, that plain ``http`` is accepted for.

        For development only.  Default: empty.
        """
        hosts = self._get("SMART_INSECURE_HTTP_HOSTS", ())
        return frozenset(str(host).lower().strip("[]") for host in hosts)

    @property
    def SMART_LAUNCH_PREFIX(self) -> str:
        """
        What stands before a launch's key in the path.  Default: ``~``.

        An empty string turns the prefix off; a browser can then use one launch only.
        """
        return str(self._get("SMART_LAUNCH_PREFIX", "~") or "")

    @property
    def SMART_CLOCK_LEEWAY(self) -> timedelta:
        """Seconds that an EHR's clock may differ from ours.  Default: 60."""
        return timedelta(seconds=self._get("SMART_CLOCK_LEEWAY", 60))

    @property
    def SMART_HTTP_TIMEOUT(self) -> tuple[float, float, float]:
        """Seconds to connect, between two reads, and for a whole call: 5, 10, 20."""
        connect, read, total = self._get("SMART_HTTP_TIMEOUT", (5, 10, 20))
        return float(connect), float(read), float(total)

    @property
    def SMART_MAX_BODY(self) -> int:
        """Largest answer that is read, in bytes after unpacking.  Default: 10 MiB."""
        return int(self._get("SMART_MAX_BODY", 10 * 1024 * 1024))

    @property
    def SMART_AUTHORIZATION_LIFETIME(self) -> timedelta:
        """Seconds a person has at the EHR before the callback.  Default: 900."""
        return timedelta(seconds=self._get("SMART_AUTHORIZATION_LIFETIME", 900))

    @property
    def SMART_LAUNCH_LIFETIME(self) -> timedelta:
        """Seconds a finished launch can be used for.  Default: 43,200 (12 hours)."""
        return timedelta(seconds=self._get("SMART_LAUNCH_LIFETIME", 12 * 3600))

    @property
    def SMART_LAUNCH_IDLE_LIFETIME(self) -> timedelta:
        """Seconds a launch can be left unused for.  Default: 14,400 (4 hours)."""
        return timedelta(seconds=self._get("SMART_LAUNCH_IDLE_LIFETIME", 4 * 3600))

    @property
    def SMART_LAUNCHES_PER_BROWSER(self) -> int:
        """Launches that one browser can have open.  Default: 20."""
        return int(self._get("SMART_LAUNCHES_PER_BROWSER", 20))

    @property
    def SMART_DISCOVERY_LIFETIME(self) -> timedelta:
        """
        Longest time a server's configuration and keys are cached, in seconds.

        The server may shorten it, down to five minutes.  Default: 86,400.
        """
        return timedelta(seconds=self._get("SMART_DISCOVERY_LIFETIME", 24 * 3600))

    @property
    def SMART_REFRESH_FRACTION(self) -> float:
        """
        Part of an access token's life after which the worker refreshes it.

        Default: 0.75.  Up to a tenth of the life is taken off at random.
        """
        return float(self._get("SMART_REFRESH_FRACTION", 0.75))

    @property
    def SMART_REFRESH_FLOOR(self) -> timedelta:
        """Least seconds between two refreshes by the worker.  Default: 30."""
        return timedelta(seconds=self._get("SMART_REFRESH_FLOOR", 30))

    @property
    def SMART_REFRESH_IDLE_AFTER(self) -> timedelta:
        """
        Seconds without use after which a grant is only kept alive.

        Default: 0, never: every access token is replaced before it ends.
        """
        return timedelta(seconds=self._get("SMART_REFRESH_IDLE_AFTER", 0))

    @property
    def SMART_REFRESH_THREADS(self) -> int:
        """Requests of one worker process that overlap.  Default: 16."""
        return int(self._get("SMART_REFRESH_THREADS", 16))

    @property
    def SMART_PURGE_AFTER(self) -> timedelta:
        """Seconds that ended launches and grants are kept for.  Default: 30 days."""
        return timedelta(seconds=self._get("SMART_PURGE_AFTER", 30 * 24 * 3600))

    @property
    def SMART_KEY_ROTATION(self) -> timedelta:
        """
        Seconds that a key signs for before the next one takes over.

        Default: 0, never by itself.
        """
        return timedelta(seconds=self._get("SMART_KEY_ROTATION", 0))

    @property
    def SMART_BROWSER_COOKIE_NAME(self) -> str:
        """
        Name of the cookie that binds launches to a browser: ``smart_browser``.

        Over https the name gets the prefix ``__Host-``.
        """
        return str(self._get("SMART_BROWSER_COOKIE_NAME", "smart_browser"))

    @property
    def SMART_PICKER_SHOW_UNREGISTERED(self) -> bool:
        """
        Whether organisations that nobody can connect to yet are shown at ``login/``.

        Default: ``False``.
        """
        return bool(self._get("SMART_PICKER_SHOW_UNREGISTERED", default=False))

    @property
    def SMART_LOGO_LICENSES(self) -> frozenset[str]:
        """
        URLs of the licences of logos that this site has agreed to.

        A logo with another licence is not shown.  Default: empty.
        """
        return frozenset(self._get("SMART_LOGO_LICENSES", ()))

    @property
    def SMART_APP_STATE_SYSTEM(self) -> str:
        """
        Origin that the codes of app state belong to, without a trailing slash.

        Default: empty, which takes the site's own.
        """
        return str(self._get("SMART_APP_STATE_SYSTEM", "")).rstrip("/")

    @property
    def SMART_APP_STATE_MAX_SIZE(self) -> int:
        """Largest app state that is sent, in bytes of JSON.  Default: 256 KiB."""
        return int(self._get("SMART_APP_STATE_MAX_SIZE", 256 * 1024))

    @property
    def SMART_SCOPE_CHECK(self) -> str:
        """
        What happens before a FHIR request that the granted scopes do not allow.

        ``warn`` logs the missing scope, ``raise`` raises, ``off`` asks the server
        without a word.  Default: ``warn``.
        """
        return str(self._get("SMART_SCOPE_CHECK", "warn"))

    @staticmethod
    def _get(name: str, default: Any) -> Any:
        return getattr(settings, name, default)


conf = SMARTSettings()

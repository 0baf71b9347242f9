"""Compare and validate URLs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote, urlsplit

from django_smart.exceptions import InsecureURLError

__all__ = [
    "LOOPBACK_HOSTS",
    "get_origin",
    "is_https_url",
    "is_same_origin",
    "is_within_base",
    "normalize_base_url",
    "validate_https_url",
]

#: Names by which a machine in development is usually reached from itself.
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

_DEFAULT_PORTS = {"http": 80, "https": 443}
# Visible ASCII without the backslash, which some clients treat as a slash.
_ALLOWED = re.compile(r"[!-\[\]-~]+")
_HOST = re.compile(r"[a-z0-9._~-]+|[0-9a-f:.]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """A parsed URL; ``port`` is never empty, ``path`` is as written."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port == _DEFAULT_PORTS[self.scheme]:
            return f"{self.scheme}://{host}"
        return f"{self.scheme}://{host}:{self.port}"


# One request parses the same URL several times.
@lru_cache(maxsize=64)
def _split(url: str, *, what: str = "URL") -> _Parts:
    """Parse *url*; refuse anything that two parsers could read differently."""
    if not _ALLOWED.fullmatch(url):
        raise InsecureURLError(
            f"The {what} is empty or contains whitespace, a backslash or "
            "characters that must be percent-encoded."
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InsecureURLError(f"The {what} has an invalid host or port.") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise InsecureURLError(f"The {what} is not an absolute http or https URL.")
    if "@" in parts.netloc:
        raise InsecureURLError(f"The {what} contains user information.")
    if not host or not _HOST.fullmatch(host):
        raise InsecureURLError(f"The {what} has no valid host name.")
    return _Parts(
        scheme=parts.scheme,
        host=host,
        port=_DEFAULT_PORTS[parts.scheme] if port is None else port,
        path=parts.path,
    )


def normalize_base_url(url: str) -> str:
    """
    Normalize a FHIR base URL for comparison.

    Scheme and host in lower case, no default port, one trailing slash removed; the path
    keeps its case. The ``aud`` is sent as received, not normalized (EHRL-05).

    Raises:
        InsecureURLError: not an absolute http(s) URL, or with user information, query,
            fragment, or dot segments. Plain http is not refused here.
    """
    parts = _split(url, what="FHIR base URL")
    if "?" in url or "#" in url:
        raise InsecureURLError("The FHIR base URL has a query or a fragment.")
    if _has_dot_segments(parts.path):
        raise InsecureURLError("The FHIR base URL has dot segments in its path.")
    return parts.origin + parts.path.removesuffix("/")


def get_origin(url: str) -> str:
    """
    Return the origin of *url* (scheme, host and port), as browsers write it.

    Raises:
        InsecureURLError: not an absolute http or https URL.
    """
    return _split(url).origin


def validate_https_url(
    url: str, *, insecure_hosts: frozenset[str] = frozenset(), what: str = "URL"
) -> str:
    """
    Return *url* unchanged if secrets may be sent to it.

    Args:
        insecure_hosts: host names in lower case, without port, for which http is
            accepted.
        what: name of the value for the message.

    Raises:
        InsecureURLError: neither https nor http at one of *insecure_hosts*; user
            information, fragment, whitespace or control characters; no host.

    Spec: SMART App Launch 2.2, "App protection"; RFC 6749 sections 3.1 and 3.2.
    """
    parts = _split(url, what=what)
    if "#" in url:
        raise InsecureURLError(f"The {what} has a fragment.")
    if parts.scheme != "https" and parts.host not in insecure_hosts:
        message = (
            f"The {what} is not https, and its host is not in "
            "SMART_INSECURE_HTTP_HOSTS."
        )
        if parts.host in LOOPBACK_HOSTS:
            message += f' For development, add "{parts.host}" to that setting.'
        raise InsecureURLError(message)
    return url


def is_https_url(url: str) -> bool:
    """
    Return whether *url* is an https link that can be shown; a fragment is allowed.
    """
    try:
        return _split(url).scheme == "https"
    except InsecureURLError:
        return False


def is_same_origin(a: str, b: str) -> bool:
    """Return whether both are absolute http(s) URLs with the same origin."""
    try:
        return _split(a).origin == _split(b).origin
    except InsecureURLError:
        return False


@lru_cache(maxsize=64)
def is_within_base(url: str, base_url: str) -> bool:
    """
    Return whether *url* is *base_url* or below its path, on the same origin.

    Dot segments are refused, not resolved: plain or percent-encoded (also twice),
    before a ``;`` or after an encoded slash, because servers interpret them
    differently.
    """
    try:
        parts, base = _split(url), _split(base_url)
    except InsecureURLError:
        return False
    if parts.origin != base.origin or _has_dot_segments(parts.path):
        return False
    base_path = base.path.removesuffix("/")
    return parts.path == base_path or parts.path.startswith(f"{base_path}/")


def _has_dot_segments(path: str) -> bool:
    """Return whether *path* has ``.`` or ``..`` in any encoding."""
    if "." not in path and "%" not in path:
        return False
    for _ in range(3):
        path = unquote(path)
    return any(
        segment.partition(";")[0] in (".", "..") for segment in re.split(r"[/\\]", path)
    )

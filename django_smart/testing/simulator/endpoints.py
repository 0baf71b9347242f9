"""The URLs of the simulated EHR's endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

__all__ = ["Endpoints"]


class Endpoints:
    """The URLs of one EHR; all follow from its base URL."""

    def __init__(
        self, base_url: str, *, issuer: str | None, page_path: str | None
    ) -> None:
        self.base_url = base_url
        self._issuer = issuer
        self._page_path = page_path

    @contextmanager
    def moved_to(self, origin: str) -> Iterator[None]:
        """Use *origin* inside the ``with`` block; paths do not change."""
        before = self.base_url, self._issuer
        if self._issuer is not None and self._issuer.startswith(self.origin):
            self._issuer = origin + self._issuer.removeprefix(self.origin)
        self.base_url = origin + urlunsplit(("", "", *urlsplit(self.base_url)[2:]))
        try:
            yield
        finally:
            self.base_url, self._issuer = before

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        parts = urlsplit(self.base_url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def base_path(self) -> str:
        return urlsplit(self.base_url).path.rstrip("/")

    @property
    def root_path(self) -> str:
        """The base path without its last segment; ``/auth/…`` is below it."""
        return self.base_path.rpartition("/")[0]

    @property
    def page_path(self) -> str:
        return self.base_path if self._page_path is None else self._page_path

    @property
    def page_url(self) -> str:
        """The start of the links in a Bundle."""
        if self._page_path is None:
            return self.base_url
        return f"{self.origin}{self._page_path}"

    @property
    def issuer(self) -> str:
        return self._issuer or f"{self.origin}{self.root_path}"

    @property
    def authorization_endpoint(self) -> str:
        return f"{self.origin}{self.root_path}/auth/authorize"

    @property
    def token_endpoint(self) -> str:
        return f"{self.origin}{self.root_path}/auth/token"

    @property
    def revocation_endpoint(self) -> str:
        return f"{self.origin}{self.root_path}/auth/revoke"

    @property
    def introspection_endpoint(self) -> str:
        return f"{self.origin}{self.root_path}/auth/introspect"

    @property
    def jwks_uri(self) -> str:
        return f"{self.origin}{self.root_path}/auth/jwks"

    @property
    def registration_endpoint(self) -> str:
        return f"{self.origin}{self.root_path}/auth/register"

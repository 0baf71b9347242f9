"""This site at its public address, behind a proxy that ends TLS, without sockets."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import urlsplit

import requests
from django.test import Client
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict


class PublicSite(BaseAdapter):
    """
    Passes requests on to this site by plain http, as a proxy does.

    Attributes:
        passes_host: whether the proxy leaves the Host header as it came.
        headers: what it sets in every answer.
        content: what it answers in place of the site, if anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passes_host = True
        self.headers: dict[str, str] = {}
        self.content: bytes | None = None
        self.paths: list[str] = []

    def send(self, request: Any, *_: Any, **__: Any) -> requests.Response:
        parts = urlsplit(request.url)
        self.paths.append(parts.path)
        browser = Client(
            HTTP_HOST=parts.netloc if self.passes_host else "127.0.0.1:8000",
            HTTP_X_FORWARDED_PROTO=parts.scheme,
        )
        page = browser.get(f"{parts.path}?{parts.query}")
        answer = requests.Response()
        answer.status_code = page.status_code
        answer.headers = CaseInsensitiveDict({**page.headers, **self.headers})
        content = page.content if self.content is None else self.content
        answer.raw = io.BytesIO(content)
        return answer

    def close(self) -> None:
        """Nothing is held."""

"""This site at its public address, behind a proxy that ends TLS, without sockets."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import urlsplit

import requests
from django.http import HttpResponse, HttpResponseRedirect
from django.test import Client
from django.urls import get_script_prefix
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict


class PublicSite(BaseAdapter):
    """
    Passes requests on to this site by plain http, as a proxy does.

    Of a site that is mounted below a path, nothing else is passed on.

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
        answer = requests.Response()
        answer.raw = io.BytesIO()
        root = get_script_prefix().removesuffix("/")
        if not parts.path.startswith(f"{root}/"):
            answer.status_code = 404
            return answer
        browser = Client(
            # As clients write it: in lower case, without the default port.
            HTTP_HOST=(
                parts.netloc.lower().removesuffix(":443")
                if self.passes_host
                else "127.0.0.1:8000"
            ),
            HTTP_X_FORWARDED_PROTO=parts.scheme,
            SCRIPT_NAME=root,
        )
        path = parts.path.removeprefix(root)
        page = browser.generic(request.method or "GET", f"{path}?{parts.query}")
        answer.status_code = page.status_code
        answer.headers = CaseInsensitiveDict({**page.headers, **self.headers})
        content = page.content if self.content is None else self.content
        answer.raw = io.BytesIO(content)
        return answer

    def close(self) -> None:
        """Nothing is held."""


def serve_app(get_response: Any) -> Any:
    """A middleware that serves a page that no URL pattern has."""

    def answer(request: Any) -> Any:
        if request.path == "/app/":
            return HttpResponse("The app")
        return get_response(request)

    return answer


def redirect_to_sign_in(get_response: Any) -> Any:
    """A middleware that lets nobody in without an account."""

    def answer(request: Any) -> Any:
        if request.path.endswith("jwks.json"):
            return get_response(request)
        return HttpResponseRedirect("/accounts/login/?next=/")

    return answer


def redirect_others_to_sign_in(get_response: Any) -> Any:
    """A middleware that exempts only this package's URLs."""

    def answer(request: Any) -> Any:
        if request.path.startswith("/smart/"):
            return get_response(request)
        return HttpResponseRedirect("/accounts/login/?next=/")

    return answer


def show_patient(request: Any) -> dict[str, str]:
    """A context processor that relies on ``SMARTMiddleware``."""
    return {"patient": request.smart.patient_id or ""}


def name_tenant(get_response: Any) -> Any:
    """A middleware that sets an attribute."""

    def answer(request: Any) -> Any:
        request.tenant_name = "clinic"
        return get_response(request)

    return answer


def show_tenant(request: Any) -> dict[str, str]:
    """A context processor that relies on ``name_tenant``."""
    return {"tenant": request.tenant_name}


def drop_session_cookie(get_response: Any) -> Any:
    """A middleware that keeps the session's cookie from browsers."""

    def answer(request: Any) -> Any:
        response = get_response(request)
        response.cookies.pop("sessionid", None)
        return response

    return answer


def move_session_cookie(get_response: Any) -> Any:
    """A middleware that sends the session's cookie for a part of the site alone."""

    def answer(request: Any) -> Any:
        response = get_response(request)
        if "sessionid" in response.cookies:
            response.cookies["sessionid"]["path"] = "/accounts/"
        return response

    return answer

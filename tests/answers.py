"""Let the simulated EHR answer one path otherwise, or a server not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl

import requests
from requests.adapters import BaseAdapter
from werkzeug.wrappers import Request, Response

from django_smart.models import TokenGrant
from django_smart.testing import EHRSimulator

Respond = Callable[[Request], Response]


class Away(BaseAdapter):
    """A server that cannot be reached."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self._error = error or requests.ConnectionError("no route")

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        raise self._error

    def close(self) -> None:
        """Nothing is held."""


def answer(
    ehr: EHRSimulator,
    path: str,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    remove: tuple[str, ...] = (),
    **members: Any,
) -> None:
    """
    Change what *ehr* answers where the path ends with *path*, while it stays recorded.

    Args:
        status: of the answer; unless it says success, the body is empty.
        headers: added to its own.
        remove: members that its document then lacks.
        members: set in its document.
    """

    def respond_otherwise(respond: Respond, request: Request) -> Response:
        response = respond(request)
        if not request.path.endswith(path):
            return response
        if status >= 300:
            return Response("", status=status)
        document = {**json.loads(response.get_data()), **members}
        for name in remove:
            del document[name]
        response.set_data(json.dumps(document))
        response.headers.extend(headers or {})
        return response

    ehr.interceptors.append(respond_otherwise)


def after_answer(ehr: EHRSimulator, action: Callable[[], Any]) -> None:
    """Do *action* when the token endpoint has answered and we do not know it yet."""

    def respond_and_act(respond: Respond, request: Request) -> Response:
        response = respond(request)
        if request.path.endswith("/auth/token"):
            action()
        return response

    ehr.interceptors.append(respond_and_act)


def refuse_refresh(ehr: EHRSimulator, grant: TokenGrant, error: str) -> None:
    """Refuse the refresh token of *grant*, and no other, with *error*."""
    token = grant.refresh_token

    def respond_otherwise(respond: Respond, request: Request) -> Response:
        data = request.get_data()
        if dict(parse_qsl(data.decode())).get("refresh_token") != token:
            request.environ["wsgi.input"] = BytesIO(data)
            return respond(request)
        body = json.dumps({"error": error})
        return Response(body, status=400, content_type="application/json")

    ehr.interceptors.append(respond_otherwise)

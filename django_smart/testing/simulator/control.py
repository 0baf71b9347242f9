"""A JSON API for tests that run in another process (``control=True`` only)."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from django_smart.testing.simulator.exchange import json_response

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.exchange import (
        Exchange,
        RecordedRequest,
        Routes,
    )

__all__ = ["routes"]


def routes() -> Routes:
    """Path, method and handler of the control API."""
    yield "/_control/requests", "GET", _requests
    yield "/_control/clear", "POST", _clear
    yield "/_control/expire", "POST", _expire
    yield "/_control/faults", "POST", _faults
    yield "/_control/launch", "POST", _launch


def _requests(exchange: Exchange) -> Response:
    """The recorded requests: the fields of ``RecordedRequest``, the body in base64."""
    return json_response([_as_json(one) for one in list(exchange.ehr.requests)])


def _as_json(one: RecordedRequest) -> dict[str, Any]:
    values = {item.name: getattr(one, item.name) for item in dataclasses.fields(one)}
    values["headers"] = dict(one.headers)
    values["body"] = base64.b64encode(one.body).decode()
    return values


def _clear(exchange: Exchange) -> Response:
    exchange.ehr.clear_requests()
    return json_response({})


def _expire(exchange: Exchange) -> Response:
    exchange.ehr.expire_access_tokens()
    return json_response({})


def _faults(exchange: Exchange) -> Response:
    """``{"faults": [name, …]}``: these, and no others, are on."""
    try:
        exchange.ehr.faults = _arguments(exchange)["faults"]
    except (KeyError, TypeError, ValueError) as exc:
        return json_response({"error": str(exc)}, status=400)
    return json_response({"faults": list(exchange.ehr.faults)})


def _launch(exchange: Exchange) -> Response:
    """The arguments of ``create_launch``; answers ``{"launch": …, "url": …}``."""
    ehr = exchange.ehr
    try:
        arguments = _arguments(exchange)
        client_id = arguments.pop("client_id")
        launch_id = ehr.create_launch(client_id, **{"patient": None, **arguments})
        url = ehr.launch_url(client_id, launch_id)
    except (KeyError, TypeError, ValueError) as exc:
        return json_response({"error": str(exc)}, status=400)
    return json_response({"launch": launch_id, "url": url})


def _arguments(exchange: Exchange) -> dict[str, Any]:
    arguments = json.loads(exchange.body or b"{}")
    if not isinstance(arguments, dict):
        raise TypeError("the body must be a JSON object")
    return arguments

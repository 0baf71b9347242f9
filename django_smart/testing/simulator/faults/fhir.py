"""Faults of the FHIR API."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from werkzeug.wrappers import Response

from django_smart.testing.simulator.faults import answers
from django_smart.testing.simulator.faults.registry import (
    edits,
    edits_json,
    leave_out,
    put,
    replaces,
    send,
)

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange

__all__: list[str] = []


def _other_port(exchange: Exchange, url: str) -> str:
    netloc = urlsplit(url).netloc
    host = netloc.rpartition(":")[0] if ":" in netloc else netloc
    return url.replace(netloc, f"{host}:4444", 1)


def _other_scheme(exchange: Exchange, url: str) -> str:
    scheme, rest = url.split(":", 1)
    return f"{'http' if scheme == 'https' else 'https'}:{rest}"


_Change = Callable[["Exchange", str], str]

# How a URL of this server is turned into one that the token must not go to.
_PLACES: dict[str, tuple[str, _Change]] = {
    "other_origin": (
        "at another host",
        lambda one, url: url.replace(one.ehr.origin, one.ehr.foreign_origin, 1),
    ),
    "other_port": ("at another port", _other_port),
    "other_scheme": ("with another scheme", _other_scheme),
    "user_info": (
        "with user information",
        lambda _, url: url.replace("://", "://user:password@", 1),
    ),
    "outside_base": (
        "at the same origin, outside of the FHIR base",
        lambda one, url: url.replace(one.ehr.base_url, f"{one.ehr.origin}/other", 1),
    ),
}
# Status, title of the page, and in words: each is a fault.
_PAGES = {
    403: ("Forbidden", "always 403"),
    409: ("Conflict", "409: something else refers to it"),
    410: ("Gone", "410: it was deleted"),
    412: ("Precondition Failed", "412: it was changed in the meantime"),
    422: ("Unprocessable Content", "422: it violates a rule"),
}


def _lead_next(change: _Change, exchange: Exchange, answer: dict[str, Any]) -> None:
    for link in answer.get("link", []):
        if link["relation"] == "next":
            link["url"] = change(exchange, link["url"])


def _get_url(exchange: Exchange) -> str:
    return exchange.ehr.origin + exchange.request.path


def _redirect(change: _Change, exchange: Exchange) -> Response:
    location = change(exchange, _get_url(exchange))
    return Response(status=302, headers={"Location": location})


def _refer(change: _Change, exchange: Exchange, answer: dict[str, Any]) -> None:
    for resource in (answer, *(e["resource"] for e in answer.get("entry", []))):
        if "subject" in resource:
            url = f"{exchange.ehr.base_url}/{resource['subject']['reference']}"
            resource["subject"]["reference"] = change(exchange, url)


def _add_header(
    name: str, change: _Change, exchange: Exchange, response: Response
) -> Response:
    response.headers[name] = change(exchange, _get_url(exchange))
    return response


def _move_created(change: _Change, exchange: Exchange, response: Response) -> Response:
    response.headers["Location"] = change(exchange, response.headers["Location"])
    response.set_data(b"")
    return response


for _place, (_words, _change) in _PLACES.items():
    edits(
        f"fhir_created_{_place}",
        "refuse",
        f"no body, and a Location {_words}",
        status=201,
    )(partial(_move_created, _change))
    # Behind a proxy that terminates TLS, servers write http: https is requested.
    _kind: Any = "tolerate" if _place == "other_scheme" else "refuse"
    edits_json(f"fhir_next_{_place}", _kind, f"next link {_words}")(
        partial(_lead_next, _change)
    )
    replaces(f"fhir_redirect_{_place}", "refuse", f"302 to a URL {_words}")(
        partial(_redirect, _change)
    )
    edits_json(f"fhir_reference_{_place}", "refuse", f"a reference {_words}")(
        partial(_refer, _change)
    )
    for _header in ("Location", "Content-Location"):
        _name = _header.lower().replace("-", "_")
        # Beside a resource they lead nowhere: the app must not follow them.
        edits(f"fhir_{_name}_{_place}", "tolerate", f"{_header} {_words}")(
            partial(_add_header, _header, _change)
        )
for _status, (_title, _words) in _PAGES.items():
    replaces(f"fhir_{_status}", "refuse", _words)(send(answers.html, _title, _status))
for _name, _words, _edit in (
    ("wrong_id", "a read returns another resource's id", put("id", "somebody-else")),
    ("wrong_type", "a resource of another type", put("resourceType", "Basic")),
    ("missing_type", "no resourceType", leave_out("resourceType")),
    ("missing_id", "a resource without its id", leave_out("id")),
):
    edits_json(f"fhir_{_name}", "refuse", _words)(_edit)


@replaces("fhir_redirect_loop", "refuse", "302 to the same URL, endlessly")
def _redirect_loop(exchange: Exchange) -> Response:
    return Response(status=302, headers={"Location": exchange.request.path})


@edits_json("fhir_next_loop", "refuse", "the next link is this page")
def _next_loop(exchange: Exchange, answer: dict[str, Any]) -> None:
    links = {link["relation"]: link for link in answer.get("link", [])}
    if "next" in links:
        links["next"]["url"] = links["self"]["url"]


@edits_json("fhir_next_circle", "refuse", "the pages form a loop")
def _next_circle(exchange: Exchange, answer: dict[str, Any]) -> None:
    if answer.get("type") == "searchset":
        count = int(dict(exchange.query).get("_count", "2")) % 3 + 2
        url = f"{exchange.ehr.base_url}/Observation?code=4548-4&_count={count}"
        others = [one for one in answer["link"] if one["relation"] != "next"]
        answer["link"] = [*others, {"relation": "next", "url": url}]


@replaces("fhir_401_twice", "refuse", "401 for the first two requests")
def _401_twice(exchange: Exchange) -> Response | None:
    if exchange.ehr.faults.strikes("fhir_401_twice") > 2:
        return None
    challenge = 'Bearer realm="fhir", error="invalid_token"'
    return Response(status=401, headers={"WWW-Authenticate": challenge})


@replaces("fhir_204", "refuse", "204: no body and no reason")
def _204(exchange: Exchange) -> Response:
    return Response(status=204)


@edits(
    "fhir_created_nowhere", "refuse", "201 with neither body nor Location", status=201
)
def _created_nowhere(exchange: Exchange, response: Response) -> Response:
    del response.headers["Location"]
    response.set_data(b"")
    return response


@edits_json("fhir_answer_missing", "refuse", "a batch with too few responses")
def _answer_missing(exchange: Exchange, answer: dict[str, Any]) -> None:
    if answer.get("type") == "batch-response":
        answer["entry"].pop()


@edits("fhir_wrong_media_type", "refuse", "JSON as text/plain")
def _wrong_media_type(exchange: Exchange, response: Response) -> Response:
    response.content_type = "text/plain"
    return response


@edits("fhir_nan", "refuse", "a number that is NaN")
def _nan(exchange: Exchange, response: Response) -> Response:
    text = response.get_data(as_text=True).rstrip().removesuffix("}")
    return answers.json_text(f'{text}, "x": NaN}}')


@edits_json("fhir_bundle_type", "refuse", "a search returns a collection")
def _bundle_type(exchange: Exchange, answer: dict[str, Any]) -> None:
    if answer.get("resourceType") == "Bundle":
        answer["type"] = "collection"


@edits_json("fhir_entry_object", "refuse", "entry is not a list")
def _entry_object(exchange: Exchange, answer: dict[str, Any]) -> None:
    if answer.get("resourceType") == "Bundle":
        answer["entry"] = {"resource": None}

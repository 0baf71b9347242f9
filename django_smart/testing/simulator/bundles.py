"""
Batch and transaction: a Bundle of requests.

Spec: FHIR R4, "RESTful API", http://hl7.org/fhir/R4/http.html#transaction.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Request, Response

from django_smart.testing.simulator import fhir
from django_smart.testing.simulator.digits import dump, load
from django_smart.testing.simulator.errors import FHIRError
from django_smart.testing.simulator.exchange import fhir_response

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange

__all__ = ["answer_bundle"]

# The order in which a transaction does things, whatever the order of its entries.
_ORDER = ("DELETE", "POST", "PUT", "PATCH", "GET")
_JSON_PATCH = "application/json-patch+json"
_CONDITIONS = {
    "ifMatch": "If-Match",
    "ifNoneMatch": "If-None-Match",
    "ifNoneExist": "If-None-Exist",
}

Dispatch = Callable[[Request, str | None], Response]


def answer_bundle(exchange: Exchange, dispatch: Dispatch) -> Response:
    """
    Answer ``POST [base]``.

    Args:
        dispatch: answers one request; its second argument is the id that a create is
            to give.
    """
    fhir.authorize(exchange)
    bundle = exchange.json
    if not isinstance(bundle, dict):
        raise FHIRError(400, "structure", "the body is no Bundle")
    kind = bundle.get("type")
    if kind not in {"batch", "transaction"}:
        raise FHIRError(400, "structure", "the body is no batch and no transaction")
    entries = bundle.get("entry", [])
    if not all(each.get("request", {}).get("method") in _ORDER for each in entries):
        raise FHIRError(400, "structure", "an entry does not say what to do")
    if kind == "batch":
        answers = [_answer_entry(exchange, dispatch, entry) for entry in entries]
    else:
        answers = _transact(exchange, dispatch, entries)
    answer = {
        "resourceType": "Bundle",
        "type": f"{kind}-response",
        "entry": answers,
    }
    return fhir_response(answer)


def _transact(
    exchange: Exchange, dispatch: Dispatch, entries: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """
    All of *entries*, or none.

    Raises:
        FHIRError: what the first entry that fails was refused with.
    """
    ids = {}
    text = dump(entries)
    for entry in entries:
        url = entry.get("fullUrl", "")
        if entry["request"]["method"] == "POST" and url.startswith("urn:uuid:"):
            ids[url] = str(uuid.uuid4())
            reference = f"{entry['resource']['resourceType']}/{ids[url]}"
            text = text.replace(f'"reference": "{url}"', f'"reference": "{reference}"')
    entries = load(text)
    answers: dict[int, dict[str, Any]] = {}
    versions = exchange.ehr.versions
    with exchange.ehr.store.lock:
        snapshot = versions.take_snapshot()
        order = sorted(
            range(len(entries)),
            key=lambda at: _ORDER.index(entries[at]["request"]["method"]),
        )
        for at in order:
            entry = entries[at]
            given = ids.get(entry.get("fullUrl", ""))
            answers[at] = _answer_entry(exchange, dispatch, entry, given)
            response = answers[at]["response"]
            status = int(response["status"][:3])
            if status >= 400:
                versions.restore(snapshot)
                issue = response["outcome"]["issue"][0]
                raise FHIRError(
                    status, issue["code"], f"entry {at}: {issue['diagnostics']}"
                )
    return [answers[at] for at in range(len(entries))]


def _answer_entry(
    exchange: Exchange,
    dispatch: Dispatch,
    entry: dict[str, Any],
    resource_id: str | None = None,
) -> dict[str, Any]:
    response = dispatch(_build_request(exchange, entry), resource_id)
    value = load(response.get_data()) if response.get_data() else None
    told = {"status": response.status}
    for header, name in (("ETag", "etag"), ("Location", "location")):
        if header in response.headers:
            told[name] = response.headers[header]
    answer: dict[str, Any] = {"response": told}
    if response.status_code >= 400:
        answer["response"]["outcome"] = value
    elif value is not None:
        answer["resource"] = value
    return answer


def _build_request(exchange: Exchange, entry: dict[str, Any]) -> Request:
    """Return the request in *entry*, with the token of the whole request."""
    told = entry["request"]
    resource = entry.get("resource")
    headers = {"Authorization": exchange.request.headers["Authorization"]}
    headers |= {
        header: told[name] for name, header in _CONDITIONS.items() if name in told
    }
    if prefer := exchange.request.headers.get("Prefer"):
        headers["Prefer"] = prefer
    body = None
    media_type = "application/fhir+json"
    if isinstance(resource, dict):
        body = dump(resource).encode()
        if told["method"] == "PATCH" and resource.get("contentType") == _JSON_PATCH:
            body, media_type = base64.b64decode(resource["data"]), _JSON_PATCH
    path, _, query = told["url"].partition("?")
    return Request.from_values(
        base_url=exchange.ehr.origin,
        path=f"{exchange.ehr.base_path}/{path}",
        query_string=query,
        method=told["method"],
        headers=list(headers.items()),
        data=body,
        content_type=media_type if body is not None else None,
    )

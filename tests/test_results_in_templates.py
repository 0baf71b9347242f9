"""No page renders as if there were no data, whatever the EHR answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.template import Context, Engine, Template
from django.urls import path
from django.utils.functional import SimpleLazyObject
from django.utils.http import urlencode
from werkzeug.wrappers import Request, Response

from django_smart.exceptions import FHIRError, FHIRRequestError, SMARTError
from django_smart.middleware import SMARTMiddleware
from tests.known import PATIENT
from tests.site.browsers import open_chart
from tests.site.urls import urlpatterns as of_the_site

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("registration"),
]

# What a page says of the results ``r``; ``p`` is true, ``q`` is not.
TEMPLATES = {
    "length": "{% if r|length %}DATA{% else %}NONE{% endif %}",
    "length-compared": "{% if r|length > 0 %}DATA{% else %}NONE{% endif %}",
    "if": "{% if r %}DATA{% else %}NONE{% endif %}",
    "if-not": "{% if not r %}NONE{% else %}DATA{% endif %}",
    "and": "{% if r and p %}DATA{% else %}NONE{% endif %}",
    "or": "{% if r or q %}DATA{% else %}NONE{% endif %}",
    "total": "{% if r.total > 0 %}DATA{% else %}NONE{% endif %}",
    "comparison": "{% if r.0.id == 'o-0' %}DATA{% else %}NONE{% endif %}",
    "in": "{% if wanted in r %}DATA{% else %}NONE{% endif %}",
    "for-empty": "{% for each in r %}DATA{% empty %}NONE{% endfor %}",
    "first": "{% if r|first %}DATA{% else %}NONE{% endif %}",
    "first-and": "{% if r.first and p %}DATA{% else %}NONE{% endif %}",
    "default": "{{ r|default:'NONE' }}",
    "slice": "{% for each in r|slice:':2' %}DATA{% empty %}NONE{% endfor %}",
    "slice-and": "{% if r|slice:':2' and p %}DATA{% else %}NONE{% endif %}",
    "with": "{% with n=r|length %}{% if n %}DATA{% else %}NONE{% endif %}{% endwith %}",
    "include": "{% include inner %}",
    "yesno": "{{ r|yesno:'DATA,NONE' }}",
}
INNER = "{% if p and r|length >= 1 %}DATA{% else %}NONE{% endif %}"

# Status and pages that the EHR answers with, and the code of the page that is right.
ANSWERS = {
    "data": "",
    "none": "",
    "empty-chain": "",
    "empty-pages-first": "",
    "401": "grant_lost",
    "403": "fhir_forbidden",
    "404": "fhir_not_found",
    "429": "fhir_unavailable",
    "500": "fhir_unavailable",
    "503": "fhir_unavailable",
    "cut-off": "fhir_response_malformed",
    "failed-with-200": "fhir_response_malformed",
    "second-page": "fhir_unavailable",
    "endless": "too_many_results",
    "endless-empty": "fhir_response_malformed",
}


_OBSERVATION = {
    "resourceType": "Observation",
    "subject": {"reference": f"Patient/{PATIENT}"},
}


def _answer(kind: str, number: int) -> Response:
    """Page *number* of the answer."""
    status = "503" if kind == "second-page" and number else kind
    if status.isdigit():
        # Busy servers are asked again, here without a pause.
        return Response("", status=int(status), headers={"Retry-After": "0"})
    has_next = {"empty-chain": 3, "empty-pages-first": 3, "second-page": 1}.get(
        kind, 20_000 if kind.startswith("endless") else 0
    )
    is_full = kind in {"data", "second-page", "endless", "cut-off"} or (
        kind == "empty-pages-first" and number == 3
    )
    count = 100 if kind == "endless" else 2 * is_full
    start = number * 100 if kind == "endless" else 0
    resources: list[dict[str, Any]] = [
        {**_OBSERVATION, "id": f"o-{start + each}"} for each in range(count)
    ]
    if kind == "failed-with-200":
        issue = {"severity": "fatal", "code": "exception"}
        resources = [{"resourceType": "OperationOutcome", "issue": [issue]}]
    body = json.dumps(
        {
            "resourceType": "Bundle",
            "type": "searchset",
            "entry": [{"resource": each} for each in resources],
            "link": [{"relation": "next", "url": f"?page={number + 1}"}]
            if number < has_next
            else [],
        }
    )
    if kind == "cut-off":
        body = body[:-40]
    return Response(body, content_type="application/fhir+json")


def _render(request: HttpRequest, r: object) -> HttpResponse:
    engine = Engine()
    template = engine.from_string(request.GET["template"])
    inner = engine.from_string(INNER)
    wanted = {**_OBSERVATION, "id": "o-0"}
    context = {"r": r, "p": True, "q": False, "inner": inner, "wanted": wanted}
    return HttpResponse(template.render(Context(context)))


def _load(request: HttpRequest) -> Any:
    smart: Any = request.smart  # type: ignore[attr-defined]
    return smart.fhir.search("Observation")


def loaded(request: HttpRequest) -> HttpResponse:
    """As the docs have it."""
    return _render(request, _load(request))


def called(request: HttpRequest) -> HttpResponse:
    """The template calls what asks the EHR."""
    return _render(request, lambda: _load(request))


def put_off(request: HttpRequest) -> HttpResponse:
    """The EHR is asked when the template needs the value."""
    return _render(request, SimpleLazyObject(lambda: _load(request)))


def streamed(request: HttpRequest) -> HttpResponse:
    """What does not belong in a template."""
    smart: Any = request.smart  # type: ignore[attr-defined]
    return _render(request, smart.fhir.iterate("Observation"))


async def aloaded(request: HttpRequest) -> HttpResponse:
    """As the docs have it."""
    smart = await request.asmart()  # type: ignore[attr-defined]
    return _render(request, await smart.afhir.search("Observation"))


async def acalled(request: HttpRequest) -> HttpResponse:
    """The template, in a thread, calls what asks the EHR."""
    await request.asmart()  # type: ignore[attr-defined]
    return await sync_to_async(called)(request)


async def astreamed(request: HttpRequest) -> HttpResponse:
    """What belongs in a template even less."""
    smart = await request.asmart()  # type: ignore[attr-defined]
    return _render(request, smart.afhir.iterate("Observation"))


def handled(request: HttpRequest) -> HttpResponse:
    """A page that says what it could not read."""

    def load() -> Any:
        try:
            return _load(request)
        except FHIRError:
            return ["could not be read"]

    return _render(request, load)


def many_handled(request: HttpRequest) -> HttpResponse:
    """Hides one error, and handles many."""
    response = called(request)
    for _ in range(500):
        try:
            raise FHIRError("handled")
        except FHIRError:
            continue
    return response


def in_a_thread(request: HttpRequest) -> HttpResponse:
    """A thread of the site's own, with the context of the request as the docs say."""
    fhir = request.smart.fhir  # type: ignore[attr-defined]
    with ThreadPoolExecutor(1) as threads:
        run = copy_context().run
        load = partial(fhir.search, "Observation")
        return threads.submit(run, _render, request, load).result()


VIEWS = (loaded, called, put_off, streamed, aloaded, acalled, astreamed)
urlpatterns = [
    *of_the_site,
    *(
        path(f"{each.__name__}/", each)
        for each in (*VIEWS, handled, many_handled, in_a_thread)
    ),
]


@pytest.fixture
def ask(ehr) -> Callable[..., Any]:
    """Opens a chart, and asks for a page of it."""
    chart = open_chart(ehr)
    chart.browser.raise_request_exception = False
    kind = "data"

    def respond(respond: Callable[[Request], Response], request: Request) -> Response:
        if not request.path.rstrip("/").endswith("/Observation"):
            return respond(request)
        return _answer(kind, int(request.args.get("page", "0")))

    ehr.interceptors.append(respond)

    def get(
        view: Callable[..., Any], answer: str, template: str, *, is_async: bool = False
    ) -> Any:
        nonlocal kind
        kind = answer
        is_async = is_async or view.__name__.startswith("a")
        method = chart.aget if is_async else chart.get
        return method(f"/{view.__name__}/?{urlencode({'template': template})}")

    return get


def each_with_the_launch_as_it_was(names: Iterable[str]) -> Iterator[str]:
    """Each of *names*; what its pages did to the launch is undone before the next."""
    for name in names:
        with transaction.atomic():
            yield name
            transaction.set_rollback(True)


@pytest.mark.parametrize("answer", ANSWERS)
def test_page_shows_the_data_or_that_there_is_none_or_what_went_wrong(ask, answer):
    has_data = answer in {"data", "empty-pages-first"}
    for template in each_with_the_launch_as_it_was(TEMPLATES):
        views = [called, put_off, acalled]
        if not ANSWERS[answer] or template == "if":
            # Where they fail, they never come to the template.
            views += [loaded, aloaded]
        for view in views:
            page = ask(view, answer, TEMPLATES[template])
            text = page.content.decode()
            where = f"{template}, {view.__name__}: {text[:300]}"
            if ANSWERS[answer]:
                assert page.status_code in {403, 502}, where
                assert f"<code>{ANSWERS[answer]}</code>" in text, where
            elif template == "default" and has_data:
                assert "SearchResult" in text, where
            else:
                assert page.status_code == 200, where
                found = ("DATA" in text, "NONE" in text)
                assert found == (has_data, not has_data), where


@pytest.mark.parametrize("view", [streamed, astreamed])
def test_stream_in_a_template_is_never_nothing(ask, view):
    for template in each_with_the_launch_as_it_was(TEMPLATES):
        try:
            page = ask(view, "data", TEMPLATES[template])
        except FHIRRequestError:
            continue  # the async client has no way not to raise
        text = page.content.decode()
        where = f"{template}: {text}"
        assert "NONE" not in text, where
        assert page.status_code == 500 or "DATA" in text or "Stream" in text, where


def test_error_that_a_view_handles_is_its_own_matter(ask):
    page = ask(handled, "503", TEMPLATES["and"])
    assert (page.status_code, page.content) == (200, b"DATA")


@pytest.mark.parametrize("view", [called, put_off])
def test_sync_view_at_an_async_server_hides_nothing(ask, view):
    page = ask(view, "503", TEMPLATES["and"], is_async=True)
    assert page.status_code == 502
    page = ask(view, "data", TEMPLATES["and"], is_async=True)
    assert page.content == b"DATA"


def test_error_is_found_in_a_thread_that_has_the_context_of_the_request(ask):
    page = ask(in_a_thread, "503", TEMPLATES["and"])
    assert page.status_code == 502
    assert ask(in_a_thread, "data", TEMPLATES["and"]).content == b"DATA"


def test_hidden_error_is_found_among_many(ask):
    page = ask(many_handled, "503", TEMPLATES["and"])
    assert page.status_code == 502
    assert ask(many_handled, "none", TEMPLATES["and"]).content == b"NONE"


def test_template_may_ask_whether_there_is_a_launch(rf):
    def view(request: HttpRequest) -> HttpResponse:
        template = Template("{% if smart.fhir and p %}A{% else %}B{% endif %}")
        context = Context({"smart": request.smart, "p": True})  # type: ignore[attr-defined]
        return HttpResponse(template.render(context))

    assert SMARTMiddleware(view)(rf.get("/")).content == b"B"  # type: ignore[union-attr]


def test_hidden_misuse_without_a_launch_is_raised(rf):
    def misuse() -> None:
        raise SMARTError("misuse")

    def view(request: HttpRequest) -> HttpResponse:
        template = Template("{% if r and p %}A{% else %}B{% endif %}")
        return HttpResponse(template.render(Context({"r": misuse, "p": True})))

    with pytest.raises(SMARTError, match="misuse"):
        SMARTMiddleware(view)(rf.get("/"))

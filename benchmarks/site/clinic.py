"""A page of a chart, and how many statements each response took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import connection
from django.http import HttpRequest, HttpResponse

from django_smart.decorators import smart_required

__all__ = ["CountStatements", "chart"]


@smart_required(scopes="patient/Patient.rs", context="patient")
def chart(request: HttpRequest) -> HttpResponse:
    """Read the patient of the launch from the EHR."""
    smart = request.smart  # type: ignore[attr-defined]  # the middleware's
    return HttpResponse(smart.fhir.read("Patient", smart.patient_id)["id"])


class CountStatements:
    """The outermost middleware: adds ``X-Statements`` to every response."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        number = 0

        def count(execute: Any, *arguments: Any) -> Any:
            nonlocal number
            number += 1
            return execute(*arguments)

        with connection.execute_wrapper(count):
            response = self._get_response(request)
        response["X-Statements"] = str(number)
        return response

"""The page on Django REST framework, by the code that it shows."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import RequestFactory
from django.utils.module_loading import import_string

from django_smart.launches.context import SMARTContext
from tests.docs.blocks import execute, read_blocks
from tests.ehr import PATIENT
from tests.site.browsers import open_chart

pytest.importorskip("rest_framework", reason="needs the extra drf")


@pytest.mark.django_db
@pytest.mark.usefixtures("registration")
def test_view_of_the_page_answers_with_the_latest_result(ehr):
    _, view, settings = read_blocks(
        "how-to/other-libraries.rst", "Django REST framework"
    )
    names = execute(view)
    chart = open_chart(ehr)
    request: Any = RequestFactory().get("/", secure=True)
    request.COOKIES = {name: one.value for name, one in chart.browser.cookies.items()}
    request.user = chart.launch.user or pytest.fail("nobody was signed in")
    request.smart = SMARTContext(request, key=chart.launch.key)
    response = names["LatestResult"].as_view()(request)
    assert response.data["result"]["subject"]["reference"] == f"Patient/{PATIENT}"
    chosen = execute(settings)["REST_FRAMEWORK"]
    import_string(chosen["EXCEPTION_HANDLER"])
    assert all(map(import_string, chosen["DEFAULT_AUTHENTICATION_CLASSES"]))

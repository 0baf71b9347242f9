"""The page on app state, by the code that it shows."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import RequestFactory

from django_smart.launches.context import SMARTContext
from django_smart.models import ClientRegistration
from django_smart.testing import EHRSimulator
from tests.docs.blocks import execute, read_blocks
from tests.ehr import EHR_SCOPE, launch, make_browser
from tests.factories import make_registration

pytestmark = pytest.mark.django_db
URL = "https://app.example.org/display-preferences-v1"


@pytest.fixture
def page() -> dict[str, Any]:
    """What the code of the page on app state defines."""
    return execute(*read_blocks("how-to/cookbook.rst", "Settings that the EHR keeps"))


@pytest.fixture
def smart(ehr: EHRSimulator, page: dict[str, Any]) -> SMARTContext:
    """A launch with the scope that the page builds."""
    make_registration()
    ClientRegistration.objects.update(ehr_scope=f"{EHR_SCOPE} {page['scope']}")
    browser = make_browser()
    row = launch(browser, ehr)
    request = RequestFactory().get("/", secure=True)
    request.COOKIES = {name: one.value for name, one in browser.cookies.items()}
    request.user = row.user or pytest.fail("nobody was signed in")
    return SMARTContext(request, key=row.key)


def call(page: dict[str, Any], smart: SMARTContext, method: str) -> Any:
    request: Any = RequestFactory().generic(method, "/rows/")
    request.smart = smart
    return page["rows_per_page"].__wrapped__(request)


@pytest.mark.compliance("STATE-01", "STATE-02", "STATE-16", "STATE-17")
def test_view_of_the_page_keeps_a_setting(
    page: dict[str, Any], smart: SMARTContext
) -> None:
    scope = "user/Basic.cuds?code=https://app.example.org|display-preferences"
    assert page["scope"] == scope
    assert call(page, smart, "GET").content == b'{"rows": 20}'
    for _ in range(2):
        assert call(page, smart, "POST").content == b'{"rows": 50}'
    assert call(page, smart, "GET").content == b'{"rows": 50}'
    assert len(smart.app_state.search(page["CODE"], subject=smart.fhir_user)) == 1


@pytest.mark.parametrize(
    "value", ["<script>", '{"rows": "<script>"}', '{"rows": 51}', "{}", "[" * 5000]
)
@pytest.mark.compliance("STATE-14")
def test_view_of_the_page_does_not_believe_what_it_reads(
    page: dict[str, Any], smart: SMARTContext, value: str
) -> None:
    smart.app_state.create(page["CODE"], {URL: value}, subject=smart.fhir_user)
    assert call(page, smart, "GET").content == b'{"rows": 20}'


@pytest.mark.compliance("STATE-11")
def test_view_of_the_page_tells_of_a_conflict(
    page: dict[str, Any], smart: SMARTContext, ehr: EHRSimulator
) -> None:
    client = smart.app_state
    state = client.create(page["CODE"], {URL: "{}"}, subject=smart.fhir_user)
    search = client.search

    def search_before_another_tab_writes(*args: Any, **kwargs: Any) -> Any:
        found = search(*args, **kwargs)
        client.update(state, {URL: '{"rows": 10}'})
        return found

    client.search = search_before_another_tab_writes  # type: ignore[method-assign]  # a race
    response = call(page, smart, "POST")
    assert response.status_code == 409
    [kept] = search(page["CODE"], subject=smart.fhir_user)
    assert kept.read_json(URL) == {"rows": 10}

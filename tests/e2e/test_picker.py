"""Choosing an organisation in Chromium: while typing, and without script."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from django_smart.contrib.brands.importing import import_brand_file
from tests.bundles import bundle, endpoint, organization
from tests.factories import make_registration

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

R4 = "https://fhir.example.org/r4"
LOGO = (
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'>"
    "<path d='M0 9 4.5 0 9 9z' fill='teal'/></svg>"
)


@pytest.fixture
def address(live_server, tmp_path: Path, settings, monkeypatch) -> str:
    """The page, with forty clinics, a hospital at two servers, and one at none."""
    # Playwright runs a loop of its own in this thread; the queries here are no views.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    settings.SMART_PICKER_SHOW_UNREGISTERED = True
    for number, base_url in enumerate((R4, f"{R4}/2")):
        make_registration(
            server__slug=f"s{number}",
            server__name=f"Portal {number}",
            server__base_url=base_url,
        )
    path = tmp_path / "brands.json"
    path.write_bytes(
        bundle(
            *[
                organization(
                    f"{number}",
                    f"Clinic {number:02}",
                    endpoints=["Endpoint/1"],
                    address=[{"city": "Saltmarsh", "state": "ME"}] * 2,
                    alias=[f"Practice {number:02}"],
                    logo=LOGO if number % 2 else None,
                )
                for number in range(40)
            ],
            organization(
                "h",
                "Harbour Children's Hospital of the Northern Counties",
                endpoints=["Endpoint/1", "Endpoint/2"],
                address=[{"city": "Port Ellery"}, {"city": "Saltmarsh"}],
                logo=LOGO,
            ),
            organization("f", "Far Away", endpoints=["Endpoint/3"]),
            endpoint("1", R4),
            endpoint("2", f"{R4}/2"),
            endpoint("3", "https://far.example.org/r4"),
        )
    )
    import_brand_file(path)
    return f"{live_server.url}/smart/login/?next=%2Flabs%2F%3Fa%3D1%26b%3D2"


def results(page: Page) -> list[str]:
    return page.locator("#smart-results .smart-choice-name").all_inner_texts()


def test_results_follow_what_is_typed(chromium: Browser, address: str) -> None:
    page = chromium.new_page()
    errors: list[object] = []
    page.on("pageerror", lambda error: errors.append(error))
    page.on("console", lambda said: errors.append(said.text))
    page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
    page.goto(address)
    assert len(results(page)) == 20
    expect(page.get_by_role("status")).to_contain_text("20")
    search = page.get_by_role("searchbox")
    search.press_sequentially("harb chil")
    # The address of the last search, and not of one half-way.
    expect(page).to_have_url(re.compile(r"q=harb\+chil"))
    expect(page.locator("#smart-results .smart-choice-name")).to_have_count(1)
    expect(page.get_by_role("status")).to_contain_text("1 ")
    expect(search).to_be_focused()
    assert results(page) == ["Harbour Children's Hospital of the Northern Counties"]
    assert "next=%2Flabs%2F%3Fa%3D1%26b%3D2" in page.url
    for name in ("Portal 0", "Portal 1"):
        link = page.get_by_role("link", name=name)
        assert "next=%2Flabs%2F%3Fa%3D1%26b%3D2" in str(link.get_attribute("href"))

    search.fill("nowhere at all")
    expect(page.locator("#smart-results .smart-choice-name")).to_have_count(0)
    expect(page.get_by_role("status")).not_to_contain_text("1")
    search.fill("far")
    expect(page.locator("div.smart-choice", has_text="Far Away")).to_be_visible()
    assert page.get_by_role("link", name="Far Away").count() == 0
    search.fill("practice 07")
    expect(page.locator(".smart-muted", has_text="Practice 07")).to_be_visible()
    page.wait_for_function("document.querySelector('img.smart-logo')?.naturalWidth > 0")

    # What was typed is there again after a detour.
    page.reload()
    expect(search).to_have_value("practice 07")
    assert results(page) == ["Clinic 07"]
    page.keyboard.press("Tab")
    assert errors == []


def test_search_and_pages_work_without_script(chromium: Browser, address: str) -> None:
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto(address)
    assert results(page)[0] == "Clinic 00"
    page.get_by_role("link", name="Next").click()
    names = page.locator("#smart-results .smart-choice-name")
    expect(names.first).to_have_text("Clinic 20")
    page.get_by_role("searchbox").fill("clinic 1")
    page.get_by_role("button", name="Search").click()
    expect(names).to_have_text([f"Clinic {number}" for number in range(10, 20)])
    assert "next=%2Flabs%2F%3Fa%3D1%26b%3D2" in page.url
    link = page.get_by_role("link", name="Clinic 15")
    assert str(link.get_attribute("href")).endswith(
        "?server=s0&next=%2Flabs%2F%3Fa%3D1%26b%3D2"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(chromium: Browser, address: str, scheme: str) -> None:
    context = chromium.new_context(
        viewport={"width": 375, "height": 800},
        color_scheme=scheme,  # type: ignore[arg-type]  # one of two words
    )
    page = context.new_page()
    for query in ("", "&q=h", "&q=nowhere"):
        page.goto(address + query)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width == 375
    page.goto(address)
    for control in page.locator("#smart-results a, button, input[type=search]").all():
        box = control.bounding_box()
        assert box is not None
        assert box["height"] >= 44

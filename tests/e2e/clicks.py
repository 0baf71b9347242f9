"""The example, registered at an EHR and running, and the clicks that open it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page

from django_smart.testing import EHRSimulator
from tests.processes import ExampleSite

SCOPE = "openid fhirUser offline_access patient/Patient.rs patient/Observation.rs"
NAME = "Marisol Jean Quillfeather"
CLINICIAN = "Dr. Helena Brandvold"


@contextmanager
def run_example(folder: Path, ehr: EHRSimulator) -> Iterator[ExampleSite]:
    """The example in *folder*, registered at *ehr* and running."""
    site = ExampleSite(folder)
    site.register_at(
        ehr,
        *("--slug", "harbour"),
        *("--ehr-scope", f"launch {SCOPE} user/Practitioner.r"),
        *("--standalone-scope", f"launch/patient {SCOPE}"),
    )
    with site.web():
        yield site


def click_app(
    page: Page, ehr: EHRSimulator, *, name: str = NAME, clinician: str = CLINICIAN
) -> Page:
    """
    Sign in to the EHR, open a chart and click the app; returns the app's tab.

    Args:
        clinician: empty if somebody is signed in already.
    """
    page.goto(ehr.origin)
    if clinician:
        page.get_by_role("button", name=clinician).click()
    page.get_by_role("link", name=name).click()
    with page.expect_popup() as opened:
        page.get_by_role("button", name="Open in new tab").click()
    return opened.value


def open_chart(page: Page, ehr: EHRSimulator) -> Page:
    """As :func:`click_app`, and approve."""
    app = click_app(page, ehr)
    app.get_by_role("button", name="Approve").click()
    app.wait_for_url("**/~*/patient/")
    return app


def open_as_another(page: Page, ehr: EHRSimulator) -> Page:
    """Change the EHR's user, click the app and approve; returns the app's tab."""
    page.goto(ehr.origin)
    page.get_by_role("button", name="Sign out").click()
    names = (each.name for each in ehr.users.values() if each.name != CLINICIAN)
    app = click_app(page, ehr, clinician=next(names))
    app.get_by_role("button", name="Approve").click()
    return app

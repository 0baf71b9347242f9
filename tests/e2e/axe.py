"""axe-core on a page that is open, in both color schemes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from playwright.sync_api import Page

__all__ = ["AXE", "OF_DJANGO", "look", "look_at"]

AXE = Path(__file__).parents[1] / "vendor" / "axe-core-4.14.1" / "axe.min.js"
_Scheme = Literal["light", "dark"]
# Parts of every admin page that Django (5.2 to 6.1) writes with faults of its own.
OF_DJANGO = (
    ".breadcrumbs",  # links told from text by colour alone
    "#changelist-search",  # a label that is a title alone
    "#changelist-filter",  # links of 20 px
    ".select2-container",  # no name
    ".inline-group thead",  # headings without text
)

# Each page is looked at whole in light; in dark its colours alone are others.
_RULES: dict[_Scheme, str] = {
    "light": '{"rules": {"target-size": {"enabled": true}}}',
    "dark": '{"runOnly": ["color-contrast", "link-in-text-block"]}',
}
_RUN = """async ([exclude, rules]) => {
    // Colours that are on their way from one scheme to the other have no contrast yet.
    document.getAnimations().forEach(animation => animation.finish());
    const result = await axe.run(
        { exclude: exclude }, { resultTypes: ["violations"], ...JSON.parse(rules) },
    );
    return result.violations.flatMap(violation => violation.nodes.map(
        node => `${violation.id}: ${node.target} ${node.failureSummary}`));
}"""


def look_at(page: Page, path: str, *, exclude: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with the page at *path*."""
    page.emulate_media(color_scheme="light")
    page.goto(path)
    return look(page, path, exclude=exclude)


def look(page: Page, name: str, *, exclude: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with the page that is open."""
    faults = []
    for scheme, rules in _RULES.items():
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate(_RUN, [[[each] for each in exclude], rules])
        faults += [f"{name} ({scheme}): {each}" for each in found]
    width = page.evaluate("document.documentElement.scrollWidth")
    if width > (page.viewport_size or {"width": 375})["width"]:
        faults.append(f"{name}: {width} px wide")
    return faults

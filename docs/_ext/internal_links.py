"""
After the build, every link between our own pages leads somewhere.

Sphinx checks its roles; this looks at the finished pages: addresses in the text,
pictures, and the places within a page.  The build fails where one is missing.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.typing import ExtensionMetadata

__all__ = ["setup"]


class _Page(HTMLParser):
    """The links of a page, and the places in it that a link can lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        for name in ("href", "src"):
            if name in values and tag != "link":
                self.links.add(values[name])


def _check(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    root = Path(app.outdir).resolve()
    pages = {
        path: _Page(path.read_text(encoding="utf-8"))
        for path in root.rglob("*.html")
        if "_static" not in path.parts
    }
    faults = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)) if parts.path else path
            target = target.resolve()
            known = pages.get(target)
            if not target.exists() or not target.is_relative_to(root):
                faults.append(f"{path.relative_to(root)}: {link} is not there")
            elif known and unquote(parts.fragment) not in known.places:
                faults.append(f"{path.relative_to(root)}: {link} has no such place")
    if faults:
        raise ExtensionError("\n".join(["links that lead nowhere:", *faults]))


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

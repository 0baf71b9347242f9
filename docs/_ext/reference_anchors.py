"""
Anchors for everything the reference lists, and links to them.

Pages of the package print these addresses, so the anchors follow one rule per page
(see ``get_anchor``).  Wherever a page writes the name of a setting, command, signal
or code as a literal, the name links to its entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

from django_smart import signals
from django_smart.conf import conf
from django_smart.diagnoses import DIAGNOSES

__all__ = ["find_entry", "get_anchor", "setup"]

_PAGES = (*("settings", "codes", "signals", "models", "commands", "launch-context"),)
#: What a literal links to, by what it looks like.
_ENTRIES = {
    r"SMART_[A-Z_]*[A-Z]": "settings",
    r"smart_(?:discover|doctor|import_brands|keys|purge|reencrypt|refresh|register"
    r"|simulator|sync)": "commands",
}


def get_anchor(page: str, name: str, section: str) -> str:
    """
    The anchor of an entry.

    Args:
        page: name of the page below ``reference``, such as ``settings``.
        name: of the entry, as the page writes it.
        section: title of the section that the entry is in.

    Returns:
        ``smart-site-url`` for a setting, ``FHIRServer.base_url`` for a column,
        ``smart-register-base-url`` for an option; for all else the name.
    """
    if page == "settings":
        return name.lower().replace("_", "-")
    if page == "models":
        return f"{section}.{name}"
    if page == "commands":
        option = name.split()[0].lstrip("-")
        return f"{section}-{option}".replace("_", "-")
    return name.partition("(")[0]


def find_entry(text: str) -> tuple[str, str] | None:
    """Page and anchor that a literal links to; ``None`` for any other text."""
    for pattern, page in _ENTRIES.items():
        if re.fullmatch(pattern, text):
            if page == "settings" and not hasattr(type(conf), text):
                continue  # a vendor's word
            anchor = get_anchor(page, text, "")
            return page, text.replace("_", "-") if page == "commands" else anchor
    if text in signals.__all__:
        return "signals", text
    return ("codes", text) if text in DIAGNOSES else None


def _add_anchors(app: Sphinx, doctree: nodes.document) -> None:
    folder, _, page = app.env.docname.partition("/")
    if folder != "reference" or page not in _PAGES:
        return
    for term in doctree.findall(nodes.term):
        names = [
            get_anchor(page, literal.astext(), _get_section(term))
            for literal in _get_names(term)
        ]
        names = [name for name in names if name not in doctree.ids]
        if not names:
            continue
        for name in names:
            doctree.ids[name] = term
            term["ids"].append(name)
        link = f'<a class="headerlink" href="#{names[0]}" title="Link here">¶</a>'
        term += nodes.raw("", link, format="html")


def _get_names(term: nodes.term) -> Iterator[nodes.literal]:
    """The literals that a term lists; what follows in parentheses is no name."""
    for child in term:
        if isinstance(child, nodes.literal):
            yield child
        elif child.astext().strip() != ",":
            return


def _get_section(node: nodes.Node) -> str:
    while not isinstance(node, nodes.section):
        node = node.parent
    return node[0].astext()


def _add_links(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    if app.builder.format != "html":
        return
    for literal in list(doctree.findall(nodes.literal)):
        entry = find_entry(literal.astext())
        parents = (nodes.term, nodes.reference, nodes.title)
        if entry is None or isinstance(literal.parent, parents):
            continue
        page, anchor = entry
        uri = app.builder.get_relative_uri(docname, f"reference/{page}")
        link = nodes.reference("", "", internal=True, refuri=f"{uri}#{anchor}")
        literal.replace_self(link)
        link += literal


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.connect("doctree-read", _add_anchors)
    app.connect("doctree-resolved", _add_links)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

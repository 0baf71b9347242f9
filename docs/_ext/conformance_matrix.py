"""
Sphinx directive ``conformance``: the requirements and the tests that show them.

The build stops when a requirement has neither a test nor a reason, or a test is marked
with something that is no requirement (see ``tests/conformance.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from tests.conformance import (
    REQUIREMENTS,
    TESTS,
    Claim,
    Requirement,
    find_faults,
    get_shown_by,
    read_claims,
    read_requirements,
)

__all__ = ["setup"]

#: Page that is written anew with each build, since its sources are no pages.
_PAGE = "reference/conformance"
#: What the prefixes of the ids are about, in the order of the list.
_TOPICS = {
    "DISC": "Discovery",
    "CAPS": "Capabilities",
    "REG": "Registration",
    "JWKS": "Keys",
    "EHRL": "EHR launch",
    "SAL": "Standalone launch",
    "AUTH": "Authorization request",
    "CALL": "Callback",
    "TOK": "Token request",
    "RESP": "Token response",
    "FCTX": "``fhirContext``",
    "IDT": "ID token",
    "REF": "Refresh",
    "FHIR": "FHIR access",
    "SCOPE": "Scopes",
    "BACK": "Backend services",
    "INTRO": "Token introspection",
    "STATE": "App state",
    "BRAND": "User-access brands",
    "TASK": "Task-based launch",
    "SEC": "Security and best practice",
}
_Rows = Mapping[str, Requirement]
_Tests = Mapping[str, list[Claim]]


def _summary(rows: _Rows, tests: _Tests) -> Iterator[str]:
    """How many rows there are of each kind, and how many tests."""
    supported = [row for row in rows.values() if not row.not_supported]
    about_servers = sum(row.is_about_the_server for row in supported)
    shown = {test.where for claims in tests.values() for test in claims}
    yield f"Of the {len(rows)} requirements,"
    yield ""
    yield f"- {len(supported) - about_servers} about the app are shown by tests;"
    yield f"- {about_servers} about the server, which the app relies on, are as well;"
    yield f"- {len(rows) - len(supported)} are not supported."
    yield ""
    yield f"{len(shown)} tests are marked with them."


def _not_supported(rows: _Rows, tests: _Tests) -> Iterator[str]:
    for row in rows.values():
        if row.not_supported:
            yield from (f"{row.id}: {row.summary}", f"    {row.not_supported}", "")


def _notes(rows: _Rows, tests: _Tests) -> Iterator[str]:
    for row in rows.values():
        if row.note:
            yield from (f"{row.id}: {row.summary}", f"    {row.note}", "")


def _topics(rows: _Rows, tests: _Tests) -> Iterator[str]:
    """A table for each topic."""
    for prefix, topic in _TOPICS.items():
        of_topic = [row for row in rows.values() if row.id.startswith(f"{prefix}-")]
        if not of_topic:
            continue
        yield from (f".. list-table:: {topic}", "    :widths: 12 12 76")
        yield from ("    :header-rows: 1", "")
        yield from ("    * - Id", "      - Level", "      - Requirement, and tests")
        for row in of_topic:
            yield from _row(row, tests.get(row.id, []))
        yield ""


def _row(row: Requirement, claims: Iterable[Claim]) -> Iterator[str]:
    yield f"    * - {row.id}"
    yield f"      - {row.level}".replace("*", r"\*")
    yield f"      - {row.summary}"
    yield f"        *{row.source}*"
    yield ""
    for text in filter(None, (row.note, row.not_supported)):
        yield from (f"        {text}", "")
    by_path: dict[str, list[str]] = {}
    for claim in claims:
        by_path.setdefault(claim.path, []).append(claim.sentence)
    for path, sentences in by_path.items():
        yield f"        - ``{path}``: {'; '.join(sentences)}"
    yield ""


_PARTS: dict[str, Callable[[_Rows, _Tests], Iterator[str]]] = {
    "summary": _summary,
    "not-supported": _not_supported,
    "notes": _notes,
    "topics": _topics,
}


class Conformance(SphinxDirective):
    """``.. conformance:: topics`` writes one of the parts of the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        part = directives.choice(self.arguments[0], tuple(_PARTS))
        rows, tests = _read(self.config)
        return self.parse_text_to_nodes("\n".join(_PARTS[part](rows, tests)))


def _read(config: Config) -> tuple[_Rows, _Tests]:
    """Requirements and tests; stops the build where they do not fit."""
    rows = read_requirements(Path(config.conformance_requirements))
    claims = read_claims(Path(config.conformance_tests))
    faults = find_faults(rows, claims)
    faults += [
        f"{row.id}: docs/_ext/conformance_matrix.py has no topic for it"
        for row in rows.values()
        if row.id.rpartition("-")[0] not in _TOPICS
    ]
    if faults:
        raise ExtensionError("\n  ".join(["the requirements are not met:", *faults]))
    return rows, get_shown_by(claims)


def _check(app: Sphinx, config: Config) -> None:
    """Stop at the start, whatever page is built."""
    _read(config)


def _outdated(app: Sphinx, env: BuildEnvironment, *changes: set[str]) -> list[str]:
    """The page, always: tests change without it."""
    return [_PAGE] if _PAGE in env.found_docs else []


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    directive: type[Directive] = Conformance
    app.add_directive("conformance", directive)
    app.add_config_value("conformance_requirements", str(REQUIREMENTS), "env")
    app.add_config_value("conformance_tests", str(TESTS), "env")
    app.connect("config-inited", _check)
    app.connect("env-get-outdated", _outdated)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

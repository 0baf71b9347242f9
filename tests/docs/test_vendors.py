"""The table of vendors: every preset is in it, and every cell says something."""

from __future__ import annotations

import csv
import re

from django_smart.models import FHIRServer
from django_smart.protocol.quirks import QUIRKS
from django_smart.servers.presets import PRESETS
from tests.docs.blocks import DOCS

_PAGE = (DOCS / "how-to" / "register.rst").read_text(encoding="utf-8")
_, _, _WITHOUT = _PAGE.partition("\nWithout a preset\n")


def _rows() -> list[dict[str, str]]:
    with (DOCS / "reference" / "vendors.csv").open(
        encoding="utf-8", newline=""
    ) as file:
        return list(csv.DictReader(file))


def _links() -> dict[str, str]:
    """The page of each preset."""
    return dict(re.findall(r":doc:`(\w+) <(\S+)>`", "".join(map(str, _rows()))))


def test_every_preset_has_a_row_that_leads_to_its_page() -> None:
    links = _links()
    assert set(links) == set(PRESETS)
    assert all((DOCS / f"{page[1:]}.rst").exists() for page in links.values())


def test_no_cell_is_empty_and_launches_are_stated() -> None:
    for row in _rows():
        assert all(row.values())
        assert re.match(
            r"not launched against|\d{4}-\d\d-\d\d: ", row["Verified against"]
        )


def test_every_vendor_without_a_page_has_its_fields() -> None:
    entries = re.findall(
        r"^(\w[^\n]*)\n((?:    .*\n|\n(?=    ))+)", _WITHOUT, re.MULTILINE
    )
    known = {name: text for name, text in entries if ":Fields:" in text}
    assert len(known) == sum(row["Preset"] == "none" for row in _rows())
    columns = {field.name for field in FHIRServer._meta.concrete_fields} | set(QUIRKS)
    for name, text in known.items():
        said = re.search(r":Fields: (.+)", text)
        assert said is not None, name
        assert set(re.findall(r"``([a-z_]+)``", said[1])) <= columns, name


def test_page_of_a_preset_says_what_it_sets() -> None:
    for preset, page in _links().items():
        text = (DOCS / f"{page[1:]}.rst").read_text(encoding="utf-8")
        assert {name for name in PRESETS[preset] if f"``{name}``" not in text} == set()


def test_vendor_without_a_page_has_its_sources_here() -> None:
    assert 0 < _WITHOUT.count(":Fields:") == _WITHOUT.count(":Sources:")

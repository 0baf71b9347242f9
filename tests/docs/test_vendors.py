"""The table of vendors: every preset is in it, and every cell says something."""

from __future__ import annotations

import csv
import re

from django_smart.models import FHIRServer
from django_smart.protocol.quirks import QUIRKS
from django_smart.servers.presets import PRESETS
from tests.docs.blocks import DOCS

_PAGE = (DOCS / "reference" / "vendors.rst").read_text(encoding="utf-8")
_WITH, _, _WITHOUT = _PAGE.partition("\nWithout a preset\n")


def _rows() -> list[dict[str, str]]:
    with (DOCS / "reference" / "vendors.csv").open(
        encoding="utf-8", newline=""
    ) as file:
        return list(csv.DictReader(file))


def test_every_preset_has_a_row_that_leads_to_its_page() -> None:
    links = dict(re.findall(r":doc:`(\w+) <(\S+)>`", "".join(map(str, _rows()))))
    assert set(links) == set(PRESETS)
    assert all((DOCS / f"{page[1:]}.rst").exists() for page in links.values())


def test_no_cell_is_empty_and_launches_are_stated() -> None:
    for row in _rows():
        assert all(row.values())
        assert re.match(
            r"not launched against|\d{4}-\d\d-\d\d: ", row["Verified against"]
        )


def test_every_vendor_has_its_facts_and_columns() -> None:
    entries = re.findall(
        r"^(\w[^\n]*)\n((?:    .*\n|\n(?=    ))+)", _WITH + _WITHOUT, re.MULTILINE
    )
    known = {name: text for name, text in entries if ":Fields:" in text}
    assert len(known) == len(_rows())
    columns = {field.name for field in FHIRServer._meta.concrete_fields} | set(QUIRKS)
    for name, text in known.items():
        said = re.search(r":Fields: (.+)", text)
        assert said is not None, name
        named = set(re.findall(r"``([a-z_]+)``", said[1]))
        assert named - columns <= {"token_endpoint_auth_methods_supported"}, name


def test_presets_set_what_the_page_says() -> None:
    said = " ".join(re.findall(r":Fields: (.+)", _WITH))
    assert {name for values in PRESETS.values() for name in values} <= set(
        re.findall(r"``([a-z_]+)``", said)
    )


def test_vendor_without_a_page_has_its_sources_here() -> None:
    assert 0 < _WITHOUT.count(":Fields:") == _WITHOUT.count(":Sources:")

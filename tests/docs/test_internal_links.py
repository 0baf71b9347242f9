"""What ``make docs`` says of links that lead nowhere."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.docs.blocks import DOCS


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    module = importlib.import_module("internal_links")
    yield lambda: module._check(
        SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=tmp_path), None
    )
    del sys.modules["internal_links"]


def test_links_that_lead_nowhere_are_told(check: Any, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.html").write_text('<p id="here"></p><a href="../c.html">')
    (tmp_path / "c.html").write_text(
        '<a href="a/b.html#here"><a href="#top"><a href="https://example.org/x">'
    )
    check()
    (tmp_path / "c.html").write_text(
        '<a href="a/b.html#there"><img src="p.png"><a href="d.html">'
    )
    with pytest.raises(Exception, match="lead nowhere") as caught:
        check()
    for fault in ("c.html: a/b.html#there has no such place", "p.png is not there"):
        assert fault in str(caught.value)
    assert "c.html: d.html is not there" in str(caught.value)

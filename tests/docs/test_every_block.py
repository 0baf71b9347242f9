"""No page shows code that nobody runs, and no picture that nobody sees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import DOCS, read_blocks

_TESTS = Path(__file__).resolve().parents[1]
_ROOT = _TESTS.parent
# What a reader types or copies; the others are drawings, answers and another
# program's configuration.
_RUN = {"python", "console", "html", "html+django", "css", "po"}
_SHOWN = {"text", "json", "nginx", "javascript"}


def _pages() -> dict[str, str]:
    """Every page with its text, the README's path included."""
    pages = [page for page in DOCS.rglob("*.rst") if "_build" not in page.parts]
    named = {str(page.relative_to(DOCS)): page for page in sorted(pages)}
    named["../README.rst"] = _ROOT / "README.rst"
    return {name: page.read_text(encoding="utf-8") for name, page in named.items()}


def _languages(text: str) -> list[str]:
    return re.findall(r"^ *\.\. code-block:: (\S+)$", text, re.MULTILINE)


def _pages_of_tests() -> set[str]:
    """Pages whose blocks a test reads, by the names that it gives them."""
    names: set[str] = set()
    for tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and str(node.value).endswith(".rst"):
                names.add(str(node.value))
    return names


def _sections_of_tests() -> dict[str, set[str]]:
    """For each page that tests read section by section, the sections."""
    sections: dict[str, set[str]] = {}
    whole: set[str] = set()
    for tree in _trees():
        values = {
            ast.unparse(node.targets[0]): node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "read_blocks":
                texts = [values.get(ast.unparse(each), each) for each in node.args]
                names = [ast.literal_eval(e) for e in texts if _is_constant(e)]
                if len(names) == 2:
                    sections.setdefault(names[0], set()).add(names[1])
                whole |= set(names[:1]) if len(node.args) == 1 else set()
    return {page: named for page, named in sections.items() if page not in whole}


def _trees() -> Iterator[ast.Module]:
    for path in _TESTS.rglob("test_*.py"):
        source = path.read_text(encoding="utf-8")
        if path != Path(__file__) and "read_blocks(" in source:
            yield ast.parse(source)


def _is_constant(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)


def _sections(text: str) -> dict[str, str]:
    """The sections of a page, by their headings."""
    parts = re.split(r"^(\S.*)\n-{3,}\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_page_with_code_is_run_by_a_test():
    with_code = {
        name for name, text in _pages().items() if _RUN.intersection(_languages(text))
    }
    assert len(with_code) > 30
    assert with_code - _pages_of_tests() == set()


def test_every_section_with_code_is_run_where_tests_read_sections():
    for name, named in _sections_of_tests().items():
        sections = _sections((DOCS / name).read_text(encoding="utf-8"))
        with_code = {
            each for each in sections if _RUN.intersection(_languages(sections[each]))
        }
        assert with_code - named == set(), name


def test_every_block_is_of_a_language_that_is_known():
    found = {each for text in _pages().values() for each in _languages(text)}
    assert found - _RUN - _SHOWN == set()


@pytest.mark.parametrize("name", _pages())
def test_tests_see_the_blocks_as_readers_do(name):
    # An indented block would be overlooked; those are shown, and not run.
    text = _pages()[name]
    indented = re.findall(r"^ +\.\. code-block:: (\S+)$", text, re.MULTILINE)
    assert set(indented) <= _SHOWN
    assert len(read_blocks(name)) == len(_languages(text)) - len(indented)
    # A literal block has no language: addresses for a vendor's form, and no commands.
    literal = re.findall(r"[^:\n]::\n\n((?:(?:    .*)?\n)+)", text)
    typed = [block for block in literal if re.search(r"^ +(\$|>>>) ", block, re.M)]
    assert typed == []


def test_every_picture_is_shown_on_a_page():
    shown = {
        Path(each).name
        # The results of the benchmarks are included by a page.
        for text in (
            *_pages().values(),
            (DOCS.parent / "benchmarks/RESULTS.rst").read_text(),
        )
        for each in re.findall(r"image:: (\S+)", text)
    }
    shown |= {
        f"{name}{form}.png"
        for text in _pages().values()
        for name in re.findall(r"screenshot:: (\S+)", text)
        for form in ("", "-dark", "-375")
    }
    assert {path.name for path in (DOCS / "images").iterdir()} == shown

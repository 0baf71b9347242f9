"""Catalogues of translated texts, and the texts that they have to contain."""

from __future__ import annotations

import ast
import gettext
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.template import Engine
from django.templatetags.i18n import BlockTranslateNode, TranslateNode

import django_smart
import example_project

__all__ = ["CATALOGUES", "Catalogue", "Text"]

#: Context, text and its plural; the context and the plural are empty for most.
Text = tuple[str, str, str]

_FUNCTIONS = {
    "_": ("text",),
    "gettext": ("text",),
    "gettext_lazy": ("text",),
    "gettext_noop": ("text",),
    "ngettext": ("text", "plural"),
    "pgettext": ("context", "text"),
}


@dataclass(frozen=True)
class Catalogue:
    """The texts of *domain* below *root*, translated to *language*."""

    root: Path
    language: str
    domain: str = "django"

    def __str__(self) -> str:
        return f"{self.root.name}-{self.language}-{self.domain}"

    @property
    def texts(self) -> set[Text]:
        """Every text that the code marks for translation."""
        found: set[Text] = set()
        if self.domain == "djangojs":
            for path in (self.root / "static").rglob("*.js"):
                if "vendor" not in path.parts:
                    found.update(_texts_of_script(path))
            return found
        for path in self.root.rglob("*.py"):
            if "testing" not in path.parts:
                found.update(_texts_of_code(path))
        for path in (self.root / "templates").rglob("*.html"):
            found.update(_texts_of_template(path))
        return found

    @property
    def entries(self) -> dict[Text, list[str]]:
        """What a person edits: each text with its translations."""
        entries = {}
        for chunk in self._path("po").read_text(encoding="utf-8").split("\n\n"):
            assert not re.search(r"^#(, .*fuzzy|~)", chunk, re.MULTILINE), chunk
            lines = [line for line in chunk.splitlines() if not line.startswith("#")]
            found = re.findall(
                r'^(msg\w+)(?:\[\d\])? ((?:".*"\n?)+)', "\n".join(lines), re.MULTILINE
            )
            values = [
                (name, str(ast.literal_eval(f"({text})"))) for name, text in found
            ]
            of = dict(values)
            key = (of.get("msgctxt", ""), of["msgid"], of.get("msgid_plural", ""))
            assert key not in entries
            entries[key] = [text for name, text in values if name == "msgstr"]
        del entries["", "", ""]
        return entries

    @property
    def compiled(self) -> gettext.GNUTranslations:
        """What Django reads."""
        with self._path("mo").open("rb") as file:
            return gettext.GNUTranslations(file)

    def _path(self, suffix: str) -> Path:
        folder = self.root / "locale" / self.language / "LC_MESSAGES"
        return folder / f"{self.domain}.{suffix}"


def _texts_of_code(path: Path) -> Iterator[Text]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        parameters = _FUNCTIONS.get(node.func.id)
        if parameters and not isinstance(node.args[0], ast.Name):
            given = {
                name: str(ast.literal_eval(value))
                for name, value in zip(parameters, node.args, strict=False)
            }
            yield given.get("context", ""), given["text"], given.get("plural", "")


def _texts_of_script(path: Path) -> Iterator[Text]:
    for text in re.findall(r'gettext\("([^"]+)"\)', path.read_text(encoding="utf-8")):
        yield "", text, ""


def _texts_of_template(path: Path) -> Iterator[Text]:
    template = Engine.get_default().from_string(path.read_text(encoding="utf-8"))
    nodes: Any = template.nodelist
    for node in nodes.get_nodes_by_type(TranslateNode):
        yield "", str(node.filter_expression.var.literal), ""
    for node in nodes.get_nodes_by_type(BlockTranslateNode):
        texts = [
            node.render_token_list(tokens)[0] if tokens else ""
            for tokens in (node.singular, node.plural)
        ]
        yield "", texts[0], texts[1]


_PACKAGE = Path(django_smart.__file__).parent
_EXAMPLE = Path(example_project.__file__).parent

CATALOGUES = [
    *(Catalogue(_PACKAGE, language) for language in ("de", "es", "fr")),
    Catalogue(_EXAMPLE, "de"),
    Catalogue(_EXAMPLE, "de", "djangojs"),
]

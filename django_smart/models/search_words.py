"""
Words as people type them: folded, without case and accents, letters and digits alone.

They match the same on every database, whatever its collation.
"""

from __future__ import annotations

import unicodedata

from django.db import models

__all__ = ["SearchTextField", "build_search_text", "split_words"]

# Of a word that is stored or looked for.
_MAX_WORD = 40

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
# Letters that Unicode does not take apart, and that people type without the stroke.
_PLAIN = str.maketrans(
    {"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
)


def split_words(text: str) -> list[str]:
    """
    The words of *text*, folded, in order and each once.

    "Children's" is one word; a letter beyond Latin becomes its number, so that any
    script can be searched.
    """
    decomposed = unicodedata.normalize("NFKD", text.casefold().translate(_PLAIN))
    symbols = []
    for char in decomposed:
        if char in _DIGITS:
            symbols.append(char)
        elif char.isalnum():
            symbols.append(_write_code_point(ord(char)))
        elif not unicodedata.combining(char) and char not in "'’ʼ`":
            symbols.append(" ")
    return [word[:_MAX_WORD] for word in dict.fromkeys("".join(symbols).split())]


def build_search_text(text: str) -> str:
    """
    Every word of *text* after a space, to look for beginnings within one column.

    ``" harb"`` is in it if and only if a word begins with "harb".
    """
    return "".join(f" {word}" for word in split_words(text))


class SearchTextField(models.TextField):  # type: ignore[type-arg]  # in the stubs alone
    """
    The words of another attribute of the row, kept up to date by ``save()``.

    Args:
        source: name of an attribute that holds text.
    """

    def __init__(self, *args: object, source: str = "", **kwargs: object) -> None:
        self.source = source
        kwargs.setdefault("editable", False)
        kwargs.setdefault("default", "")
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # passed through

    def deconstruct(self) -> tuple[str, str, list[object], dict[str, object]]:
        """Django's, with *source*."""
        name, path, args, kwargs = super().deconstruct()
        return name, path, [*args], {**kwargs, "source": self.source}

    def pre_save(self, model_instance: models.Model, add: bool) -> str:
        """The words as they are now."""
        text = build_search_text(str(getattr(model_instance, self.source)))
        setattr(model_instance, self.attname, text)
        return text


def _write_code_point(number: int) -> str:
    """Four symbols of base 36, enough for every code point."""
    symbols = ""
    for _ in range(4):
        number, digit = divmod(number, 36)
        symbols = _DIGITS[digit] + symbols
    return symbols

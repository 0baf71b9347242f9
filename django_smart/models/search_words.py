"""
Words as people type them: folded, without case and accents, letters and digits alone.

They match the same on every database, whatever its collation.
"""

from __future__ import annotations

import unicodedata

__all__ = ["matches_words", "split_words"]

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


def matches_words(text: str, words: list[str]) -> bool:
    """Whether each of the folded *words* begins a word of *text*."""
    own = split_words(text)
    return all(any(each.startswith(word) for each in own) for word in words)


def _write_code_point(number: int) -> str:
    """Four symbols of base 36, enough for every code point."""
    symbols = ""
    for _ in range(4):
        number, digit = divmod(number, 36)
        symbols = _DIGITS[digit] + symbols
    return symbols

"""Words as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.models.search_words import matches_words, split_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Children's Hospital", ["childrens", "hospital"]),
        ("Children’s", ["childrens"]),
        ("Hôpital Saint-Luc", ["hopital", "saint", "luc"]),
        ("Łódź, Ørsted", ["lodz", "orsted"]),
        ("Straße", ["strasse"]),
        ("ST. MARY & ST. JOHN", ["st", "mary", "john"]),
        ("  ", []),
        ("ﬁrst", ["first"]),
    ],
)
def test_words_are_folded(text, expected):
    assert split_words(text) == expected


@pytest.mark.parametrize(
    ("typed", "name"), [("東", "東京病院"), ("Κλι", "κλινική"), ("مستش", "مستشفى")]
)
def test_every_script_can_be_searched(typed, name):
    (prefix,), (word,) = split_words(typed), split_words(name)
    assert word.startswith(prefix)


@given(st.text())
def test_any_text_has_words_of_ascii(text):
    for word in split_words(text):
        assert word.isascii()
        assert word.isalnum()
        assert len(word) <= 40


@pytest.mark.parametrize(
    ("typed", "found"),
    [("", True), ("har hos", True), ("arbour", False), ("har x", False)],
)
def test_each_word_begins_a_word_of_the_text(typed, found):
    assert matches_words("Harbour Hospital", split_words(typed)) is found

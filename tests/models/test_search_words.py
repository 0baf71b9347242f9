"""Words as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.models import FHIRServer
from django_smart.models.search_words import build_search_text, split_words


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


def test_search_text_has_a_space_before_each_word():
    assert build_search_text("Harbour Hospital, Hospital") == " harbour hospital"
    assert build_search_text("") == ""


@pytest.mark.django_db
def test_words_of_a_server_follow_its_name():
    server = FHIRServer.objects.create(
        slug="a", name="Hôpital", base_url="https://a.example"
    )
    assert server.search_text == " hopital"
    server.name = "Harbour"
    server.save()
    server.refresh_from_db()
    assert server.search_text == " harbour"
    FHIRServer.objects.bulk_create(
        [FHIRServer(slug="b", name="Second", base_url="https://b.example")]
    )
    assert FHIRServer.objects.get(slug="b").search_text == " second"

"""The catalogues are whole, compiled, and what people read."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import translation

from django_smart.diagnoses import PAGES
from django_smart.error_pages.words import get_title
from django_smart.models import TokenGrant
from tests.catalogues import CATALOGUES
from tests.factories import make_grant, make_registration

of_every_catalogue = pytest.mark.parametrize("catalogue", CATALOGUES, ids=str)


@of_every_catalogue
def test_every_text_is_translated_and_nothing_else(catalogue):
    texts, entries = catalogue.texts, catalogue.entries
    assert texts - set(entries) == set(), "run make messages, and translate"
    assert set(entries) - texts == set(), "run make messages"
    untranslated = [key for key, texts in entries.items() if not all(texts)]
    assert untranslated == []
    # One form for one, and one for many.
    for key, texts in entries.items():
        assert len(texts) == (2 if key[2] else 1)


@of_every_catalogue
def test_compiled_catalogue_is_that_of_its_source(catalogue):
    compiled = catalogue.compiled
    for (context, text, plural), (one, *more) in catalogue.entries.items():
        if plural:
            assert compiled.ngettext(text, plural, 1) == one
            assert [compiled.ngettext(text, plural, 7)] == more
        elif context:
            assert compiled.pgettext(context, text) == one
        else:
            assert compiled.gettext(text) == one


@of_every_catalogue
def test_translation_has_the_values_and_marks_of_its_text(catalogue):
    def marks(text: str) -> list[str]:
        return sorted(re.findall(r"%\(\w+\)\w|%s|</?\w+>", text))

    for (_, text, plural), translations in catalogue.entries.items():
        for source, translated in zip((text, plural), translations, strict=False):
            assert marks(translated) == marks(source)
            assert source.endswith(".") == translated.endswith("."), translated
            assert source.strip() == source
            assert translated.strip() == translated


@of_every_catalogue
def test_people_are_addressed_formally(catalogue):
    familiar = {
        "de": r"\b[Dd](u|ich|ir|ein|eine[mnrs]?)\b",
        "es": r"\b([Tt]ú|[Tt]us?|[Vv]osotros)\b",
        "fr": r"\b([Tt]u|[Tt]on|[Tt]es|[Tt]oi)\b",
    }[catalogue.language]
    for translations in catalogue.entries.values():
        for text in translations:
            assert not re.search(familiar, text), text


# What people read


@pytest.fixture
def localized(settings: Any) -> Any:
    """A site that follows its readers' languages."""
    middleware = list(settings.MIDDLEWARE)
    at = middleware.index("django.middleware.common.CommonMiddleware")
    middleware.insert(at, "django.middleware.locale.LocaleMiddleware")
    settings.MIDDLEWARE = middleware
    yield settings
    translation.deactivate()  # the middleware leaves it to the next request


_READERS = [
    (
        "de-CH, de;q=0.9, en;q=0.5",
        "de",
        "Verbundene Gesundheitsdaten",
        "seit dem 1. März 2026",
    ),
    ("es-MX, es;q=0.9", "es-mx", "Datos de salud conectados", "1 de marzo de 2026"),
    ("fr-CA, fr;q=0.9", "fr", "Données de santé connectées", "1 mars 2026"),
    ("gv", "en", "Connected records", "March 1, 2026"),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("accept", "language", "title", "date"), _READERS)
def test_connections_are_in_the_readers_language(
    localized, accept, language, title, date
):
    user = User.objects.create_user("rosa")
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    grant = make_grant(
        make_registration(), user=user, scope="patient/Observation.rs offline_access"
    )
    TokenGrant.objects.filter(pk=grant.pk).update(created_at=now)
    browser = Client(headers={"Accept-Language": accept})
    browser.force_login(user)
    response = browser.get("/smart/connections/")
    content = response.content.decode()
    assert f'<html lang="{language}" dir="ltr">' in content
    assert f"<h1>{title}</h1>" in content
    assert date.lower() in content.lower()
    with translation.override(language):
        access = translation.gettext("test results and measurements")
        gone = translation.gettext("%(name)s is disconnected.")
    assert access in content
    response = browser.post("/smart/connections/", {"grant": grant.pk}, follow=True)
    assert gone % {"name": "Harbour Hospital"} in response.content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("language", "title", "path"),
    [
        ("de", "Hier ist keine Patientenakte", ""),
        ("es", "Aquí no hay abierta ninguna historia", ""),
        ("fr", "Aucun dossier de patient", ""),
        ("de", "Gesundheitsdaten verbinden", "login/"),
        ("es", "Conectar sus datos de salud", "login/"),
        ("fr", "Connecter vos données de santé", "login/"),
    ],
)
def test_pages_are_in_the_readers_language(localized, language, title, path):
    make_registration()
    browser = Client(headers={"Accept-Language": language})
    response = browser.get(f"/smart/{path or 'launch/'}")
    content = response.content.decode()
    assert f'<html lang="{language}" dir="ltr">' in content
    assert title in content
    # The support finds the same word in the log, whatever the reader's language.
    assert ("<code>missing_parameter</code>" in content) == (path == "")


@pytest.mark.parametrize(
    ("language", "title"),
    [
        ("de", "Ihr Zugriff auf das Krankenhaus ist beendet"),
        ("es", "El acceso en el hospital ha terminado"),
        ("fr", "Votre accès à l’hôpital a pris fin"),
    ],
)
def test_words_for_an_ehr_without_a_name_fit_into_the_sentence(language, title):
    with translation.override(language):
        assert get_title(PAGES["access_ended"], "") == title

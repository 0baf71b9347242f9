"""The example in the language of the browser."""

from __future__ import annotations

import pytest

from tests.ehr import get_callback, start_ehr_launch


@pytest.fixture
def site(site):
    """The example as it is installed, with its own texts."""
    site.INSTALLED_APPS = [*site.INSTALLED_APPS, "example_project"]
    at = site.MIDDLEWARE.index("django.middleware.common.CommonMiddleware")
    middleware = list(site.MIDDLEWARE)
    middleware.insert(at, "django.middleware.locale.LocaleMiddleware")
    site.MIDDLEWARE = middleware
    site.LANGUAGES = [("en", "English"), ("de", "Deutsch")]
    return site


@pytest.mark.parametrize(
    ("accept", "language", "words", "number"),
    [
        ("de-AT, de;q=0.9", "de", "Neuester Wert", "7,1"),
        ("en-GB", "en", "Latest", "7.1"),
        # django_smart has French texts; a page is in one language, not in two.
        ("fr", "en", "Latest", "7.1"),
    ],
)
def test_chart_is_in_the_language_of_the_browser(
    client, site, ehr, accept, language, words, number
):
    client.defaults["HTTP_ACCEPT_LANGUAGE"] = accept
    url = ehr.authorize(start_ehr_launch(client, ehr))
    path = get_callback(client, url)["Location"]
    page = client.get(path).content.decode()
    assert f'<html lang="{language}">' in page
    assert f"<dt>{words}</dt>" in page
    assert number in page
    texts = client.get("/texts.js").content.decode()
    assert ("Vitalwerte" in texts) == (language == "de")


def test_error_page_is_in_the_language_of_the_browser(client, site, db):
    response = client.get("/nowhere/", headers={"accept-language": "de"})
    page = response.content.decode()
    assert response.status_code == 404
    assert '<html lang="de">' in page
    assert "Diese Seite gibt es nicht" in page

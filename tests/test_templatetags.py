"""``{% smart_url %}``: the package's own URLs, from any page."""

from __future__ import annotations

import pytest
from django.template import engines
from django.urls import NoReverseMatch, set_script_prefix


def render(source: str) -> str:
    return engines["django"].from_string("{% load smart %}" + source).render()


@pytest.mark.parametrize("prefix", ["/", f"/~{'k' * 24}/"])
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("launch", "/smart/launch/"),
        ("login", "/smart/login/"),
        ("callback", "/smart/callback/"),
        ("jwks", "/smart/jwks.json"),
        ("logout", "/smart/logout/"),
        ("connections", "/smart/connections/"),
    ],
)
def test_smart_url_is_never_under_a_launch(prefix, name, path):
    set_script_prefix(prefix)
    try:
        assert render(f'{{% smart_url "{name}" %}}') == path
        assert render(f'{{% smart_url "{name}" as x %}}[{{{{ x }}}}]') == f"[{path}]"
    finally:
        set_script_prefix("/")


def test_smart_url_of_another_name_is_an_error():
    with pytest.raises(NoReverseMatch):
        render('{% smart_url "elsewhere" %}')

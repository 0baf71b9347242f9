"""What the page about sign-out says to type."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.template import engines
from django.test import RequestFactory

from django_smart.models import FHIRServer
from django_smart.servers.registering import make_slug
from tests.docs.blocks import read_blocks
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

_PAGE = "how-to/users-and-sign-in.rst"


def test_form_posts_to_the_package():
    form, _ = read_blocks(_PAGE, "Sign out")
    page = engines["django"].from_string(form.code).render({}, RequestFactory().get(""))
    assert 'action="/smart/logout/"' in page
    assert "csrfmiddlewaretoken" in page


def test_command_switches_it_on_for_a_known_server(capsys):
    _, console = read_blocks(_PAGE, "Sign out")
    register, discover = console.commands
    arguments = dict(zip(register[3::2], register[4::2], strict=False))
    make_registration(
        server__base_url=arguments["--base-url"],
        server__slug=make_slug(arguments["--base-url"]),
        client_id=arguments["--client-id"],
    )
    call_command(*register[2:])
    assert FHIRServer.objects.get().quirks.rp_initiated_logout is True
    assert discover[1:] == [
        "manage.py",
        "smart_discover",
        FHIRServer.objects.get().slug,
    ]

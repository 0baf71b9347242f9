"""Pages that are mostly commands: each is typed, and its answer compared."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command, load_command_class
from django.template import engines
from django.test import Client, RequestFactory

from django_smart import transport
from django_smart.contrib.brands.models import Brand, BrandBundle
from django_smart.contrib.brands.tasks import import_known_brands
from django_smart.models import ClientRegistration, SigningKey
from django_smart.testing import EHRSimulator
from tests.answers import Away
from tests.bundles import Host, bundle, endpoint, host, organization
from tests.contrib.doctor.conftest import World, world
from tests.docs.blocks import DOCS, apply, do, read_blocks
from tests.ehr import BASE_URL, CLIENT_SECRET, SITE
from tests.factories import make_registration
from tests.management.running import run
from tests.transport.conftest import certificate

__all__ = ["certificate", "host", "world"]

pytestmark = pytest.mark.django_db

_BUNDLE = "https://ehr.example.org/brands.json"


def test_commands(monkeypatch, host: Host, tmp_path: Path):
    page = "reference/commands.rst"
    register, printed, discover, examine, brands, keys, simulate = read_blocks(page)
    ehr = EHRSimulator(base_url="https://ehr.example.org/fhir")
    monkeypatch.setenv("EHR_SECRET", "of the vendor")
    with (
        transport.mounted("https://ehr.example.org", ehr.adapter()),
        transport.mounted(SITE, Away()),
    ):
        assert do(register.commands[0]).json == json.loads(printed.code)
        do(discover.commands[0])
        assert "credentials_refused" in do(examine.commands[0]).out
    for words in keys.commands[:1]:
        do(words)
    assert SigningKey.objects.get().algorithm == "ES384"
    host.on(_BUNDLE, bundle(organization("a", "A")))
    do(brands.commands[0])
    assert Brand.objects.count() == 1
    ((_, _, name, *options),) = simulate.commands
    parser = load_command_class("django_smart", name).create_parser("manage.py", name)
    assert parser.parse_args(options).port == 8010

    # The file of smart_register --from stands among its options.
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.search(r"code-block:: json\n\n((?: {8}.*\n)+)", text)
    assert found is not None
    ClientRegistration.objects.all().delete()
    (tmp_path / "servers.json").write_text(found[1])
    run("smart_register", "--from", str(tmp_path / "servers.json"))
    registration = ClientRegistration.objects.get()
    assert registration.client_id == "my-app"
    assert registration.server.frame_origins == ["https://ehr.example.org"]


def test_if_another_user_is_signed_in() -> None:
    (console,) = read_blocks(
        "how-to/users-and-sign-in.rst", "If another user is signed in"
    )
    (words,) = console.commands
    arguments = dict(zip(words[3::2], words[4::2], strict=False))
    registration = make_registration(
        server__base_url=arguments["--base-url"], client_id=arguments["--client-id"]
    )
    do(words)
    registration.refresh_from_db()
    assert registration.user_switch == registration.UserSwitch.SWITCH


def test_find_what_is_wrong(world: World):
    blocks = read_blocks("how-to/troubleshooting.rst")[1:]
    every, shown, some, with_launch, for_programs = blocks
    do(with_launch.commands[0])
    monitored = for_programs.commands[0]
    assert json.loads(do(monitored).out)["findings"] == []
    world.registration.client_secret = "not the secret"
    world.registration.save()
    ((*words,),) = every.commands
    out = io.StringIO()
    call_command(*words[2:], stdout=out)
    assert out.getvalue().strip() == shown.code.strip()
    world.registration.client_secret = CLIENT_SECRET
    world.registration.save()
    known, unknown = some.commands
    do(known)
    assert unknown[3].startswith("https://ehr.example.org/")
    do([*unknown[:3], BASE_URL])


def test_connect_many_hospitals(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
):
    blocks = read_blocks("how-to/connect-many-hospitals.rst")
    listed, register, _, unknown, extra, app, imports, *rest = blocks
    again, schedule, link, logos = rest
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APP_SECRET", "from the vendor")
    (tmp_path / register.commands[0][4]).write_text(listed.code)
    printed = do([*register.commands[0], "--offline"]).json
    assert len(printed) == len(json.loads(listed.code)) == 2
    assert len({each["redirect_uri"] for each in printed}) == 2
    assert extra.commands == [["pip", "install", "django-smart[brands]"]]
    names: dict[str, Any] = {"INSTALLED_APPS": [], "CELERY_BEAT_SCHEDULE": {}}
    exec(f"{app.code}\n{schedule.code}", names)
    assert names["INSTALLED_APPS"][0] in settings.INSTALLED_APPS
    ((_, task),) = [
        (name, entry["task"]) for name, entry in names["CELERY_BEAT_SCHEDULE"].items()
    ]
    assert task == import_known_brands.name
    migrate, fetch, file, by_server = imports.commands
    assert migrate == ["python", "manage.py", "migrate"]
    address = "https://fhir.example.org/r4"
    harbour = bundle(
        organization("a", "Harbour", endpoints=["Endpoint/1"]), endpoint("1", address)
    )
    birch = bundle(
        organization("b", "Birch", endpoints=["Endpoint/2"]),
        endpoint("2", "https://birch.example.org/r4"),
    )
    host.on(_BUNDLE, harbour, ETag='"1"')
    assert "1 brands" in do(fetch).out
    (tmp_path / file[3]).write_bytes(birch)
    do(file)
    assert {each.location for each in BrandBundle.objects.all()} == {
        _BUNDLE,
        "national",
    }
    assert "unchanged" in do(again.commands[0]).out

    servers = [
        {
            "base_url": f"{address}/",
            "client_id": "my-app",
            "token_endpoint_auth_method": "none",
            "standalone_scope": "launch/patient patient/Patient.rs",
            "slug": "harbour",
        }
    ]
    (tmp_path / register.commands[0][4]).write_text(json.dumps(servers))
    do(register.commands[0])
    page = Client().get("/smart/login/").content.decode()
    assert "Harbour" in page
    assert "Birch" not in page
    apply(settings, unknown, logos)
    assert "Birch" in Client().get("/smart/login/").content.decode()
    html = engines["django"].from_string(link.code)
    content = html.render({}, RequestFactory().get("/"))
    assert 'href="/smart/login/?next=/labs/"' in content

    server = ClientRegistration.objects.get(server__slug="harbour").server
    server.state.configuration = {
        "token_endpoint": "https://fhir.example.org/t",
        "user_access_brand_bundle": _BUNDLE,
    }
    server.state.save()
    do(by_server)
    assert BrandBundle.objects.get(location=_BUNDLE).server == server
    do([*fetch, "--remove"])
    assert not BrandBundle.objects.filter(location=_BUNDLE).exists()

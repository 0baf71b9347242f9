"""The page on upgrades, by its commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError
from django.db.migrations.loader import MigrationLoader

from django_smart import transport
from tests.contrib.doctor.site import PublicSite
from tests.docs.blocks import do, read_blocks
from tests.ehr import SITE


@pytest.mark.django_db
def test_commands_of_the_page(settings: Any, tmp_path: Path) -> None:
    own_tests, upgrade, doctor, back = read_blocks("how-to/upgrade.rst")
    ((_, *words),) = own_tests.commands
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    subprocess.run(
        [sys.executable, *words, "-p", "no:cacheprovider", "-q"],
        cwd=tmp_path,
        env={"PATH": ""},
        check=True,
        capture_output=True,
    )
    settings.STATIC_ROOT = tmp_path / "static"
    settings.SILENCED_SYSTEM_CHECKS = ["mail.E001"]  # of the tests' own mail
    install, *commands = upgrade.commands
    assert install == ["pip", "install", "--upgrade", "django-smart"]
    for words in commands:
        do(words)
    ((*words,),) = doctor.commands
    with transport.mounted(SITE, PublicSite()), pytest.raises(CommandError):
        do(words[:3])
    assert (tmp_path / "static" / "django_smart" / "pages.css").exists()
    back_to, older = back.commands
    assert back_to[2:4] == ["migrate", "django_smart"]
    names = [name for _, name in MigrationLoader(None).disk_migrations]
    assert [name for name in names if name.startswith(back_to[4])]
    assert older[:2] == ["pip", "install"]

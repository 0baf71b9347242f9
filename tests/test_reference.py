"""The reference pages say what the code does, and all of it."""

from __future__ import annotations

import argparse
import ast
import os
import re
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand

from django_smart.checks import check_settings
from django_smart.conf import SETTINGS, conf

_REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
_APPS = {
    name: str(app)
    for name, app in get_commands().items()
    if str(app).startswith("django_smart")
}
_COMMANDS = sorted(_APPS)


def _read(page: str) -> str:
    return (_REFERENCE / page).read_text(encoding="utf-8")


def _setting_entries() -> dict[str, str]:
    """Each setting with its indented text."""
    found = re.findall(
        r"^``(SMART_\w+)``\n((?:(?:    .*)?\n)+)", _read("settings.rst"), re.MULTILINE
    )
    assert len(found) == len(dict(found))
    return dict(found)


def _command_sections() -> dict[str, str]:
    parts = re.split(r"^(\w+)\n-+\n", _read("commands.rst"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


# Settings


def test_every_setting_has_an_entry():
    assert sorted(_setting_entries()) == sorted(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_default_of_a_setting_is_the_one_in_force(settings, name):
    match = re.search(r":Default: ``(.+?)``", _setting_entries()[name])
    assert match is not None
    settings.__dict__.pop(name, None)
    if hasattr(settings, name):
        delattr(settings, name)
    in_force = getattr(conf, name)
    setattr(settings, name, ast.literal_eval(match[1]))
    assert getattr(conf, name) == in_force


@pytest.mark.parametrize("name", SETTINGS)
def test_example_of_a_setting_passes_its_check(settings, monkeypatch, name):
    match = re.search(r":Example: ``(.+?)``", _setting_entries()[name])
    assert match is not None
    monkeypatch.setenv("SMART_ENCRYPTION_KEYS", Fernet.generate_key().decode())
    values: dict[str, object] = {"os": os}
    exec(match[1], values)
    setattr(settings, name, values[name])
    assert check_settings() == []
    getattr(conf, name)


# Commands


def test_every_command_has_a_section():
    assert sorted(_command_sections()) == _COMMANDS


def _options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The long options, also those of an action such as ``smart_keys rotate``."""
    found: set[str] = set()
    for action in parser._actions:
        found |= {name for name in action.option_strings if name.startswith("--")}
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                found |= _options_of(each)
    return found


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_option_of_a_command_is_described_and_no_other(name):
    parser = load_command_class(_APPS[name], name).create_parser("manage.py", name)
    of_django = BaseCommand().create_parser("manage.py", name)
    options = _options_of(parser) - _options_of(of_django)
    entries = re.findall(r"^``--.*$", _command_sections()[name], re.MULTILINE)
    described = [
        option for entry in entries for option in re.findall(r"``(--[\w-]+)", entry)
    ]
    assert sorted(set(described)) == sorted(options)


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_says_what_it_is_for(name):
    assert load_command_class(_APPS[name], name).help

"""The page about Celery, followed with each broker in an environment of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import kombu
import pytest

import django_smart
from tests.docs.blocks import DOCS, Block, read_blocks
from tests.processes import stop, wait_for
from tests.projects import run, start
from tests.services import rabbitmq_url, redis_url

_ROOT = Path(django_smart.__file__).parents[1]
_PAGE = "how-to/celery.rst"
# What the page says beyond "pip install django-smart".
_BROKERS = [
    pytest.param("Redis", redis_url(13), marks=pytest.mark.redis),
    pytest.param("RabbitMQ", rabbitmq_url(), marks=pytest.mark.rabbitmq),
]
# What the reader has done before, by "Add to a site".
_ADDED = """
INSTALLED_APPS += ["django_smart"]
MIDDLEWARE.insert(0, "django_smart.middleware.SMARTMiddleware")
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "django_smart.backends.SMARTAuthenticationBackend",
]
SMART_SITE_URL = "https://app.example.org"
"""
_ROUTED = """
from django.urls import include

urlpatterns += [path("smart/", include("django_smart.urls"))]
"""


def _read_install_lines(broker: str) -> list[str]:
    """What the section of *broker* has its reader install."""
    text = (DOCS / _PAGE).read_text(encoding="utf-8")
    _, section = re.split(rf"^{broker}\n-+\n", text, flags=re.MULTILINE)
    section = re.split(r"^.+\n-+\n", section, flags=re.MULTILINE)[0]
    return re.findall(r"``pip install '([^']+)'``", section)


def _write(project: Path, block: Block) -> None:
    (name,) = re.findall(r"``(clinic/\w+\.py)``", block.before) or [
        "clinic/settings.py"
    ]
    with (project / name).open("a") as file:
        file.write(f"\n{block.code}")


@pytest.mark.long
@pytest.mark.process
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("broker", "url"), _BROKERS)
def test_worker_and_beat_run_with_what_the_page_installs(
    broker: str, url: str, tmp_path: Path
) -> None:
    run(sys.executable, "-m", "venv", "venv", cwd=tmp_path)
    programs = tmp_path / "venv" / "bin"
    lines = _read_install_lines(broker)
    # With the setuptools that are here, from an sdist: nothing is left in the source.
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path)
    run(*build, _ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    run(programs / "pip", "install", "-q", wheel, *lines, cwd=tmp_path)
    run(programs / "django-admin", "startproject", "clinic", cwd=tmp_path)
    project = tmp_path / "clinic"
    python = [each for each in read_blocks(_PAGE) if each.language == "python"]
    for block in python[:3]:
        _write(project, block)
    queue = f"smart-{broker.lower()}-{tmp_path.name}"
    with (project / "clinic" / "settings.py").open("a") as file:
        file.write(_ADDED + f"CELERY_BROKER_URL = {url!r}\n")
        file.write(f"CELERY_TASK_DEFAULT_QUEUE = {queue!r}\n")
    with (project / "clinic" / "urls.py").open("a") as file:
        file.write(_ROUTED)
    run(programs / "python", "manage.py", "migrate", cwd=project)
    started = []
    try:
        for command in ("worker", "beat"):
            (typed,) = [
                words
                for block in read_blocks(_PAGE)
                if block.language == "console"
                for words in block.commands
                if words[3:4] == [command] and "--queues" not in words
            ]
            typed += ["--loglevel", "INFO"]
            started.append(start(programs / typed[0], *typed[1:], cwd=project))
        log = project / "log"
        wait_for(
            lambda: (
                "tasks.refresh_due_grants" in log.read_text()
                and "succeeded" in log.read_text()
            ),
            seconds=120,
            what=str(log),
        )
    finally:
        for process in started:
            stop(process)
        with kombu.Connection(url) as connection:
            kombu.Queue(queue, channel=connection.channel()).delete()
    assert broker != "Redis" or lines

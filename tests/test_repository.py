"""What the repository as a whole promises."""

from __future__ import annotations

import ast
import configparser
import importlib
import re
import subprocess
from pathlib import Path

import pytest
from django.core.management import call_command
from django.utils.module_loading import import_string

import django_smart

_ROOT = Path(__file__).resolve().parent.parent
_LARGEST = 1024 * 1024  # bytes
_BINARY = {".gif", ".ico", ".jpg", ".mo", ".png", ".webp", ".woff2"}


@pytest.fixture(scope="session")
def tracked() -> list[Path]:
    """Every file under version control that is there."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=_ROOT, capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a clone: this is a copy of the sources")
    paths = [_ROOT / name.decode() for name in listing.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


@pytest.fixture(scope="session")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(_ROOT / "setup.cfg", encoding="utf-8")
    return parser


def _texts(paths: list[Path]) -> dict[str, str]:
    """Content of the text files among *paths*, what others wrote excepted."""
    return {
        str(path.relative_to(_ROOT)): path.read_text(encoding="utf-8")
        for path in paths
        if path.suffix not in _BINARY and "vendor" not in path.parts
    }


def test_version_is_written_in_one_place(tracked, setup_cfg):
    assert setup_cfg["metadata"]["version"] == "attr: django_smart.__version__"
    holders = [
        name
        for name, text in _texts(tracked).items()
        if name != "CHANGELOG.rst" and django_smart.__version__ in text
    ]
    assert holders == ["django_smart/__init__.py"]


def test_extras_are_the_promised_ones(setup_cfg):
    extras = set(setup_cfg["options.extras_require"])
    assert extras == {
        *("brands", "dev", "docs", "drf", "example", "mariadb", "otel"),
        *("prometheus", "records", "testing"),
    }


def test_python_versions_agree(setup_cfg):
    oldest = setup_cfg["options"]["python_requires"].removeprefix(">=")
    assert setup_cfg["mypy"]["python_version"] == oldest
    ruff = (_ROOT / "ruff.toml").read_text(encoding="utf-8")
    assert f'target-version = "py{oldest.replace(".", "")}"' in ruff
    assert f"Programming Language :: Python :: {oldest}\n" in (
        _ROOT / "setup.cfg"
    ).read_text(encoding="utf-8")


def test_no_file_is_large(tracked):
    large = [
        path.relative_to(_ROOT)
        for path in tracked
        if path.stat().st_size > _LARGEST
        and "vendor" not in path.parts
        and not path.is_relative_to(_ROOT / "docs" / "images")
    ]
    assert not large


def test_vendored_files_come_with_version_and_licence(tracked):
    vendored = {
        path.parents[len(path.parts) - path.parts.index("vendor") - 2]
        for path in tracked
        if "vendor" in path.parts
    }
    for folder in vendored:
        names = " ".join(path.name.lower() for path in folder.rglob("*"))
        assert "licen" in names, f"{folder.relative_to(_ROOT)} has no licence"
        assert re.search(r"readme|version", names), (
            f"{folder.relative_to(_ROOT)} does not say which version it holds"
        )


def test_no_file_names_a_folder_of_somebody(tracked):
    folder = re.compile(r"(?<![\w.}/-])/(?:home|root|Users|work)/\w+")
    found = {
        name: match.group()
        for name, text in _texts(tracked).items()
        if (match := folder.search(text)) and name != "tests/test_repository.py"
    }
    assert not found


def test_no_file_has_conflict_markers(tracked):
    marker = re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE)
    assert [name for name, text in _texts(tracked).items() if marker.search(text)] == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.rst", "docs/explanation/layers.rst"])
def test_paths_that_contributors_are_led_to_exist(name):
    text = (_ROOT / name).read_text(encoding="utf-8")
    paths = re.findall(r"``([\w-]+/[\w/.-]+\.\w+)``", text)
    assert len(paths) >= 10
    roots = (_ROOT, _ROOT / "django_smart")
    missing = [each for each in paths if not any((r / each).exists() for r in roots)]
    assert missing == []


def test_no_test_module_imports_another():
    found = set()
    for path in (_ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                modules = [f"{module}.{alias.name}" for alias in node.names]
            if any(re.search(r"(^|\.)test_\w+", name) for name in modules):
                found.add(str(path.relative_to(_ROOT)))
    assert found == set()


@pytest.mark.django_db
def test_no_migration_is_missing():
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)


def _python_blocks(page: str) -> list[str]:
    """The Python of a page's ``code-block``s, without their indentation."""
    blocks = re.findall(
        r"^\.\. code-block:: python\n\n((?:(?: {4}.*)?\n)+)",
        (_ROOT / page).read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in blocks]


def _pages() -> list[str]:
    pages = [_ROOT / "README.rst", *(_ROOT / "docs").rglob("*.rst")]
    return sorted(
        str(page.relative_to(_ROOT)) for page in pages if "_build" not in page.parts
    )


@pytest.mark.parametrize("page", _pages())
def test_python_in_documentation_is_correct(page):
    for block in _python_blocks(page):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "django_smart"
            ):
                for alias in node.names:
                    import_string(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Constant) and re.fullmatch(
                r"django_smart(\.\w+)+\.[A-Z]\w+", str(node.value)
            ):
                import_string(str(node.value))


def test_readme_shows_settings_urls_and_a_view():
    code = "\n".join(_python_blocks("README.rst"))
    for part in ("INSTALLED_APPS", "MIDDLEWARE", "AUTHENTICATION_BACKENDS", "include("):
        assert part in code


def test_promised_goals_of_make_are_there():
    makefile = (_ROOT / "Makefile").read_text(encoding="utf-8")
    goals = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert {"demo", "docs", "help", "lint", "long", "test", "test-fast"} <= goals


def test_checks_run_goals_that_make_has():
    makefile = (_ROOT / "Makefile").read_text(encoding="utf-8")
    for name in (".github/workflows/ci.yml", ".ci/run"):
        text = (_ROOT / name).read_text(encoding="utf-8")
        goals = re.findall(r"\bmake (?:--no-print-directory )?([a-z-]+)$", text, re.M)
        assert {"lint", "migrations", "docs"} <= {*goals}
        for goal in goals:
            assert f"\n{goal}: " in makefile


def test_readme_names_the_commands_of_a_newcomer():
    text = (_ROOT / "README.rst").read_text(encoding="utf-8")
    for command in ("make demo", "make test"):
        assert f"\n    {command}\n" in text


def test_readme_needs_nothing_but_docutils():
    # The index of packages renders it without Sphinx.
    text = (_ROOT / "README.rst").read_text(encoding="utf-8")
    core = importlib.import_module("docutils.core")  # it has no annotations
    core.publish_doctree(text, settings_overrides={"halt_level": 2, "report_level": 2})


def test_readme_shows_its_pictures_in_the_index_of_packages(setup_cfg):
    # It resolves no path of the repository; the documentation publishes the pictures.
    urls = dict(
        line.split(" = ")
        for line in setup_cfg["metadata"]["project_urls"].strip().splitlines()
    )
    readme = (_ROOT / "README.rst").read_text(encoding="utf-8")
    look = (_ROOT / "docs/how-to/style.rst").read_text(encoding="utf-8")
    shown = re.findall(r"^\.\. (?:image|figure):: (\S+)$", readme, re.MULTILINE)
    assert shown
    for url in shown:
        folder, _, name = url.rpartition("/")
        assert folder == f"{urls['Documentation']}_images"
        assert f".. screenshot:: {Path(name).stem}\n" in look


def test_every_python_that_is_claimed_is_tested(setup_cfg):
    claimed = re.findall(
        r"Python :: (3\.\d+)$", setup_cfg["metadata"]["classifiers"], re.MULTILINE
    )
    checks = (_ROOT / ".ci" / "run").read_text(encoding="utf-8")
    workflow = (_ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert claimed
    for version in claimed:
        assert version in checks or f"py{version.replace('.', '')}" in checks
        assert re.search(rf'python(?:-version)?: "{version}"$', workflow, re.MULTILINE)


def test_lower_bounds_of_the_dependencies_are_tested(setup_cfg):
    needed = setup_cfg["options"]["install_requires"].split("\n")
    bounds = {re.sub(r"\[\w+\]", "", each) for each in needed if each}
    tox = (_ROOT / "tox.ini").read_text(encoding="utf-8")
    tested = re.findall(r"^    lowest: (\S+)$", tox, re.MULTILINE)
    assert {each.replace("==", ">=") for each in tested} == bounds
    for name in (".github/workflows/ci.yml", ".ci/run"):
        assert "py311-lowest" in (_ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_workflow_trusts_nobody_further_than_it_has_to(name):
    text = (_ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8")
    used = re.findall(r"\buses: (.+)$", text, re.MULTILINE)
    # A tag can be moved, a commit cannot.
    pinned = re.compile(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+|\./\S+")
    assert [each for each in used if not pinned.fullmatch(each)] == []
    assert "\npermissions:\n  contents: read\n" in text
    checkouts = text.count("uses: actions/checkout@")
    assert text.count("persist-credentials: false") == checkouts > 0


def test_release_is_tested_and_tried_before_it_is_published():
    text = (_ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    assert "\n  test:\n    uses: ./.github/workflows/ci.yml\n" in text
    assert "\n  publish:\n    needs: [test, try]\n" in text


def test_release_needs_no_secret():
    workflow = _ROOT / ".github" / "workflows" / "release.yml"
    text = workflow.read_text(encoding="utf-8")
    assert "id-token: write" in text
    assert "secrets." not in text
    version = re.search(r"sed -n '(s/.*/p)' (\S+)\)", text)
    assert version is not None
    printed = subprocess.run(
        ["sed", "-n", version[1], str(_ROOT / version[2])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == django_smart.__version__

"""
The package with one defence taken out, in a copy.

Each attack that the adversary has to know is a hole that it must find.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MUTANTS", "Mutant", "get_finding"]

_ROOT = Path(__file__).resolve().parents[2]
_LIMIT = 1200  # seconds


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """
    One hole.

    Attributes:
        attack: its name.
        patches: file of the package, text that is there once, and what replaces it.
        without: moves that are left out, so that it is this attack that finds it.
    """

    attack: str
    patches: Sequence[tuple[str, str, str]]
    without: Sequence[str] = ()

    def __str__(self) -> str:
        return self.attack.replace(" ", "-")

    def find(self, folder: Path, *, steps: int, seed: int) -> str:
        """
        Play against a copy of the package in *folder*; returns what was printed.

        Raises:
            AssertionError: as :meth:`copy`, or nothing was found.
        """
        self.copy(folder)
        done = subprocess.run(
            [
                *(sys.executable, "-W", "ignore", "-m", "tests.adversary.run"),
                *("--steps", str(steps), "--seed", str(seed)),
                *("--without", *self.without),
            ],
            cwd=folder,
            # A database of its own, in a file.
            env={
                name: each
                for name, each in os.environ.items()
                if name not in {"DATABASE_URL", "PYTHONPATH"}
            },
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
        printed = done.stdout + done.stderr
        assert f"package: {folder}" in printed, printed
        assert done.returncode != 0, f"{self.attack} was not found:\n{printed}"
        assert "ViolationError: " in printed, printed
        return printed

    def copy(self, folder: Path) -> None:
        """
        Copy the package into *folder*, with the hole.

        Raises:
            AssertionError: a text is not there once.
            SyntaxError: a file is not Python any more.
        """
        ignored = shutil.ignore_patterns("__pycache__", "locale")
        package = folder / "django_smart"
        shutil.copytree(_ROOT / "django_smart", package, ignore=ignored)
        # The tests' settings install an app of the example site.
        for name in ("tests", "example_project"):
            (folder / name).symlink_to(_ROOT / name)
        for name, old, new in self.patches:
            text = (package / name).read_text()
            assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
            text = text.replace(old, new)
            compile(text, name, "exec")
            (package / name).write_text(text)


def get_finding(printed: str) -> str:
    """The violation, and the steps that led to it."""
    lines = re.findall(r"^(?:.*ViolationError: .*|state.*|ADVERSARY.*)$", printed, re.M)
    return "\n".join(lines)


_HAS_CHOSEN = (
    "launches/held.py",
    "return all(each.may_sign_in for each in own or known)",
)
_SCOPED = (
    "models/identity.py",
    "return self.known_to(server).filter(digest=digest(issuer, subject))",
    "return self.filter(digest=digest(issuer, subject))",
)

MUTANTS = (
    Mutant(
        attack="1 mix-up",
        patches=[
            (
                "launches/complete.py",
                "        _check_callback(launch, callback_id)\n",
                "",
            )
        ],
    ),
    Mutant(
        attack="3 assertion for another audience",
        patches=[
            (
                "servers/http.py",
                "audience=token_endpoint if names_token_endpoint else None",
                "audience=token_endpoint",
            )
        ],
    ),
    Mutant(
        attack="4 connecting gives the account away",
        patches=[
            (*_HAS_CHOSEN, "return True"),
            (
                "launches/held.py",
                "return is_staff and server.slug not in",
                "return False and server.slug not in",
            ),
        ],
    ),
    Mutant(
        attack="5 forced login",
        patches=[
            (
                "launches/held.py",
                'return "" if is_free else Launch.Question.SWITCH',
                'return ""',
            ),
            (
                "launches/held.py",
                'return "" if is_free else Launch.Question.LINK',
                'return ""',
            ),
        ],
    ),
    Mutant(
        attack="6 issuer on a shared origin",
        patches=[_SCOPED],
        without=["relay_an_id_token", "forward_to_their_own_app"],
    ),
    Mutant(
        attack="6b relay of a genuine ID token",
        patches=[_SCOPED],
        without=["forge", "pose_as_an_honest_server"],
    ),
    Mutant(
        attack="7 noted cookie",
        patches=[
            (
                "launches/complete.py",
                "        launch.browser_digest = digest(secret)\n",
                "        secret = visitor.browser._secrets[digest(launch.key)[:16]]\n",
            )
        ],
    ),
    Mutant(
        attack="8 callback in another browser",
        patches=[
            (
                "launches/complete.py",
                "if not browser.opens(launch):",
                "if not browser.digests:",
            )
        ],
    ),
    Mutant(
        attack="9 service on another port",
        patches=[
            (
                "servers/discovery.py",
                "return get_origin(url) != get_origin(server.discovered.pinned[name])",
                # Without scheme and port.
                'return get_origin(url).split(":")[1] '
                '!= get_origin(server.discovered.pinned[name]).split(":")[1]',
            )
        ],
    ),
    Mutant(
        attack="10 any account of a login group",
        patches=[
            (*_HAS_CHOSEN, "return any(each.may_sign_in for each in own or known)")
        ],
    ),
    Mutant(
        attack="11 hooks of a connected account",
        patches=[
            (
                "backends.py",
                "return signs_in(self._identities, user, self.server)",
                "return True",
            )
        ],
    ),
    Mutant(
        attack="12 open session",
        patches=[
            ("views/fresh_sign_in.py", "0 <= age < _FRESH.total_seconds()", "0 <= age")
        ],
    ),
    Mutant(
        attack="13 choice that stays",
        patches=[
            (
                "models/identity.py",
                "return changed.update(may_sign_in=may_sign_in) > 0",
                "return may_sign_in and changed.update(may_sign_in=True) > 0",
            )
        ],
    ),
    Mutant(
        attack="14 value of an honest server",
        patches=[
            (
                "servers/discovery.py",
                "    if moved := server.discovered.moved:\n",
                "    others = FHIRServer.objects.exclude(pk=server.pk)\n"
                "    same = others.filter(state__issuer=server.discovered.issuer)\n"
                "    theirs = {each.slug: '' for each in same}\n"
                "    if moved := server.discovered.moved or theirs:\n",
            )
        ],
    ),
    Mutant(
        attack="a record of another user",
        patches=[
            ("launches/records.py", "            user_id=user.pk,\n", ""),
            (
                "views/account.py",
                'self._get_own(request).filter(pk=_read_pk(request.POST, "grant"))',
                'TokenGrant.objects.filter(pk=_read_pk(request.POST, "grant"))',
            ),
        ],
    ),
)

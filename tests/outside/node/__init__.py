"""Servers that npm installs and this folder starts; they need Node.js."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["install", "running"]

_FOLDER = Path(__file__).resolve().parent
_LOCK_FILE = _FOLDER / "package-lock.json"
_STAMP = _FOLDER / "node_modules" / ".installed"
_LIMIT = 280  # seconds


def install() -> None:
    """
    ``npm ci``, once for each content of ``package-lock.json``.

    Raises:
        OSError: node or npm is missing.
        RuntimeError: they do not do what they should.
    """
    _run("node", "--version")
    digest = hashlib.sha256(_LOCK_FILE.read_bytes()).hexdigest()
    # Tests may run in several processes.
    with _LOCK_FILE.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _STAMP.exists() or _STAMP.read_text() != digest:
            _run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
            _STAMP.write_text(digest)


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        cwd=_FOLDER,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_LIMIT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:2])} ended with {done.returncode}")


@contextmanager
def running(script: str, *arguments: str) -> Iterator[str]:
    """Run *script* of this folder, which prints its port; yields its origin."""
    with subprocess.Popen(
        ["node", script, *arguments],
        cwd=_FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()

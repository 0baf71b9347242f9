"""Run a command and keep what it says."""

from __future__ import annotations

import io
import json
from typing import Any

from django.core.management import call_command


class Ran:
    """What a command wrote to each of its two outputs."""

    def __init__(self, out: str, err: str) -> None:
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        """Standard output, which has to be JSON and nothing else."""
        return json.loads(self.out)


def run(name: str, *arguments: str) -> Ran:
    """Run the command *name* with *arguments* as typed."""
    out, err = io.StringIO(), io.StringIO()
    call_command(name, *arguments, stdout=out, stderr=err)
    return Ran(out.getvalue(), err.getvalue())

"""Sinks that kill their process with a signal that it cannot handle."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction

from django_smart.contrib.records.models import SyncRun
from django_smart.contrib.records.sinks import ModelSink, NDJSONSink, Sink


class KillingSink(Sink):
    """
    Kills its process at its moment, if it has one.

    The moments are the names of the methods. With "after " before it, a method has done
    its work, which is not committed; ``commit`` is right after a commit. With a number
    behind it, it is the call of that number.
    """

    moment = ""

    def begin(self, run: SyncRun) -> None:
        self._reach("begin")
        super().begin(run)

    def truncate(self, position: str) -> None:
        self._reach("truncate")
        super().truncate(position)
        self._reach("after truncate")

    def put(self, resources: Sequence[dict[str, Any]]) -> None:
        self._reach("put")
        super().put(resources)
        self._reach("after put")
        transaction.on_commit(lambda: self._reach("commit"))

    def delete(self, resource_type: str, ids: Sequence[str]) -> None:
        self._reach("delete")
        super().delete(resource_type, ids)
        self._reach("after delete")

    def position(self) -> str:
        # The last call before the commit.
        self._reach("position")
        return super().position()

    def complete(self, run: SyncRun) -> None:
        self._reach("complete")
        super().complete(run)

    def _reach(self, moment: str) -> None:
        name, _, number = self.moment.partition(":")
        if moment != name:
            return
        left = int(number or 1) - 1
        self.moment = f"{name}:{left}"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class KillingModelSink(KillingSink, ModelSink):
    """With rows."""

    name = "killing"


class KillingNDJSONSink(KillingSink, NDJSONSink):
    """With files."""

    name = "killing files"


def make_sink(directory: str | Path) -> Sink:
    """With files if there is a *directory*."""
    return KillingNDJSONSink(directory) if directory else KillingModelSink()


def build_sink() -> Sink:
    """The worker's."""
    return make_sink(settings.MEDIA_ROOT)

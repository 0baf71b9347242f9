"""Chromium, for tests that look at a page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.services import chromium_path

FLAGS = ["--no-sandbox", "--disable-background-networking"]


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(), args=FLAGS
        )
        yield browser
        browser.close()


@pytest.fixture
def chromium() -> Iterator[Browser]:
    """Chromium, without a window."""
    with open_chromium() as browser:
        yield browser

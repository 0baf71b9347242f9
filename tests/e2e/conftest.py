"""What holds for every test that looks at a page."""

from __future__ import annotations

from playwright.sync_api import expect

# Milliseconds: of a busy machine five seconds, the default, say nothing about a page.
expect.set_options(timeout=60_000)

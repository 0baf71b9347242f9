"""The Celery task that keeps brands up to date."""

from __future__ import annotations

import logging

from celery import shared_task

from ...exceptions import SMARTError
from .importing import get_known_urls, import_brands

__all__ = ["import_known_brands"]

logger = logging.getLogger(__name__)


@shared_task(ignore_result=True)
def import_known_brands() -> None:
    """
    Import again each bundle that came from a URL.

    The same as ``smart_import_brands --known``.
    """
    for url in get_known_urls():
        try:
            import_brands(url)
        except SMARTError as exc:
            logger.warning("The brand bundle at %s was not imported: %s", url, exc)

"""To expect an error by its code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from django_smart.exceptions import SMARTError

__all__ = ["raises_code"]


@contextmanager
def raises_code(
    code: str, *, match: str | None = None
) -> Iterator[pytest.ExceptionInfo[SMARTError]]:
    """``pytest.raises`` for an error with *code*."""
    with pytest.raises(SMARTError, match=match) as caught:
        yield caught
    assert caught.value.code == code

"""Proof Key for Code Exchange with S256, the one method SMART allows."""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode

__all__ = ["build_code_challenge", "validate_code_verifier"]

_VERIFIER = re.compile(r"[A-Za-z0-9\-._~]{43,128}")


def validate_code_verifier(code_verifier: str) -> str:
    """
    Return *code_verifier* if it is one.

    Raises:
        ValueError: not 43 to 128 unreserved characters.

    Spec: RFC 7636 section 4.1.
    """
    if not _VERIFIER.fullmatch(code_verifier):
        raise ValueError(
            "A code_verifier has 43 to 128 of the characters A-Za-z0-9-._~"
        )
    return code_verifier


def build_code_challenge(code_verifier: str) -> str:
    """
    The ``code_challenge`` of *code_verifier* for ``code_challenge_method=S256``.

    Raises:
        ValueError: *code_verifier* is not valid.

    Spec: RFC 7636 section 4.2; SMART App Launch 2.2, "Obtain authorization code".
    """
    digest = hashlib.sha256(validate_code_verifier(code_verifier).encode()).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()

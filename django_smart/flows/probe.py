"""
How this site sees a request that comes to its own public address.

Behind a proxy, what a browser asks for and what Django believes to be asked are two
things.  The doctor asks for the JWK Set with a signed word, and the answer says how it
was seen; nobody else is told.
"""

from __future__ import annotations

from datetime import timedelta

from django.core import signing
from django.http import HttpRequest

__all__ = ["PARAMETER", "SEEN_AS", "answer_probe", "build_probe"]

PARAMETER = "probe"
"""The query parameter of the request."""
SEEN_AS = "Smart-Seen-As"
"""The header of the answer: the address as Django sees it, without its query."""

_WORD = "how do you see me"
_LIFETIME = timedelta(minutes=1)


def build_probe() -> str:
    """The value of the parameter, good for a minute."""
    return _get_signer().sign(_WORD)


def answer_probe(request: HttpRequest) -> str | None:
    """The value of the header; ``None`` for a request that is not the doctor's."""
    probe = request.GET.get(PARAMETER)
    if not probe:
        return None
    try:
        _get_signer().unsign(probe, max_age=_LIFETIME)
    except signing.BadSignature:
        return None
    return request.build_absolute_uri(request.path)


def _get_signer() -> signing.TimestampSigner:
    return signing.TimestampSigner(salt="django_smart.probe")

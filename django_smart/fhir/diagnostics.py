"""What an ``OperationOutcome`` says, as far as it can name no person."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, urlsplit

__all__ = ["describe_issues"]

_MAX_ISSUES = 3
_MAX_LETTERS = 300
# Of FHIR's code system "issue-type".
_CODES = """
    business-rule code-invalid conflict deleted duplicate exception expired extension
    forbidden incomplete informational invalid invariant limited-filter lock-error login
    multiple-matches no-store not-found not-supported processing required security
    structure success suppressed throttled timeout too-costly too-long transient
    unknown value
"""
_ISSUE_TYPES = frozenset(_CODES.split())
# FHIRPath: names of elements, and nothing that is compared with them.
_PLACE = re.compile(r"[A-Z][A-Za-z]{1,40}(\.[A-Za-z]{1,40}(\[(\d{1,4}|x)\])?){1,12}")
_WORD = re.compile(r"[^\s.,;:()\[\]!?'\"`]+")
# Every word of a text must be one of these: any other could be a person's name.
_WORDS = """
    a access accessible after all allowed already an and any api app application are
    argument array as at authentication authorization authorized bad be because been
    before body both bundle but by call can cannot change character client code
    coding combination conditional conflict contain contained contains content could
    count create created current data database date datetime deleted denied details
    did does duplicate each element empty encounter entry error exceeded exception
    exist existing exists expected expired extension failed failure fhir field
    fields filter for forbidden format found from given granted greater handling has
    have header http id identifier if in include includes incomplete incorrect
    insufficient integer internal invalid is it item json large later least length
    less limit list loinc long match matches matching maximum method minimum missing
    modifier more most multiple must needed needs no not number object occurred of
    on one only operation option or other page parameter parameters parse parsing
    patient permission permitted please processed processing profile property
    provided query range rate read reason reference references request requested
    require required requires resource resources result results retry rule sanitized
    scope scopes search server set should single size smart snomed some specified
    standard state status string structure subject supported syntax system
    temporarily than that the there this time timeout to token too try type ucum
    unable unauthorized unavailable unexpected unit unknown unless unprocessable
    unsupported update uri url user valid validation value values version violates
    was when which with within without xml you your
"""
_KNOWN = frozenset(_WORDS.split())


def describe_issues(issues: Iterable[Mapping[str, object]], *, url: str = "") -> str:
    """
    The issues' codes, places and, where they can name no person, texts.

    A text is shown if all of its words are plain ones, or names of what was asked for.

    Args:
        url: of the request: its resource type and the names of its parameters.
    """
    described = []
    for issue in list(issues)[:_MAX_ISSUES]:
        code = issue.get("code")
        parts = [code] if isinstance(code, str) and code in _ISSUE_TYPES else []
        details = issue.get("details")
        text = details.get("text") if isinstance(details, Mapping) else None
        for each in (text, issue.get("diagnostics")):
            if isinstance(each, str) and _is_harmless(each, url):
                parts.append(" ".join(each.split()))
                break
        places = issue.get("expression")
        for place in places if isinstance(places, list) else ():
            if isinstance(place, str) and _PLACE.fullmatch(place):
                parts.append(f"at {place}")
                break
        if parts:
            described.append(": ".join(parts[:2]) + "".join(f" {p}" for p in parts[2:]))
    return "; ".join(described)


def _is_harmless(text: str, url: str) -> bool:
    asked = urlsplit(url)
    names = {name for name, _ in parse_qsl(asked.query)}
    names |= set(re.findall("/([A-Z][A-Za-z]+)(?=/|$)", asked.path))
    words = _WORD.findall(text)
    return 0 < len(text) <= _MAX_LETTERS and all(
        word in names or word.lower() in _KNOWN for word in words
    )

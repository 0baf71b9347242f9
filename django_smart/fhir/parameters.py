"""Search parameters, from Python's words to a query string."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

from django_smart.exceptions import FHIRRequestError
from django_smart.fhir.values import AnyOf, format_value

__all__ = ["SearchParams", "build_search_query"]

SearchParams = Mapping[str, object] | Iterable[tuple[str, object]]

# Before a value: compared how (FHIR R4, Search, "Prefixes").
_PREFIXES = frozenset({"eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"})
# After a name: R4's modifiers and R5's, and the order of a sort, which DSTU2 wrote so.
_MODIFIERS = frozenset(
    {
        *("above", "asc", "below", "code-text", "contains", "desc", "exact"),
        *("identifier", "in", "iterate", "missing", "not", "not-in", "of-type"),
        *("ofType", "recurse", "text", "text-advanced"),
    }
)


def build_search_query(
    params: SearchParams | None, keywords: Mapping[str, object]
) -> str:
    """
    Build a query string, in the order given.

    Args:
        params: names exactly as FHIR has them, as a mapping or pairs.
        keywords: names in Python's words, with ``_`` within a name for the hyphen
            (``_last_updated`` is ``_lastUpdated``).
            After ``__`` comes a modifier (``name__exact``), a prefix of the value
            (``birthdate__ge``), the type a reference leads to (``subject__Patient``) or
            a parameter of what it leads to (``patient__family``).

    A value is text, a number, a bool, a date, an aware datetime or one of
    :mod:`django_smart.fhir.values`; a list repeats the parameter, for "and".

    Raises:
        FHIRRequestError: a value is ``None``, empty or of another kind.  Leaving it out
            would search more widely than was asked: among all patients, say.

    Spec: FHIR R4, Search; RFC 3986 (``%20`` for a space).
    """
    pairs = params.items() if isinstance(params, Mapping) else params or ()
    named = [(name, "", value) for name, value in pairs]
    named += [(*_read_keyword(name), value) for name, value in keywords.items()]
    try:
        return "&".join(
            f"{quote(name, safe='')}={quote(text, safe='')}"
            for name, text in _flatten(named)
        )
    except UnicodeEncodeError:
        # Its text would quote the value.
        raise FHIRRequestError(
            "A search parameter is not valid Unicode text."
        ) from None


def _read_keyword(keyword: str) -> tuple[str, str]:
    """``code__in`` → ``"code:in", ""``; ``birthdate__ge`` → ``"birthdate", "ge"``."""
    # "class_" is the parameter that Python has another use for.
    parts = [part.removesuffix("_") for part in keyword.split("__")]
    prefix = parts.pop() if len(parts) > 1 and parts[-1] in _PREFIXES else ""
    parts = [_read_name(part) for part in parts]
    if parts[0] == "_has":
        # _has:Observation:patient:code: colons alone.
        return ":".join(parts), prefix
    name = parts[0]
    after_type = False
    for part in parts[1:]:
        # After a type comes a parameter of it, even if its name is a modifier's too.
        has_colon = not after_type and (part in _MODIFIERS or part[:1].isupper())
        name += f":{part}" if has_colon else f".{part}"
        after_type = has_colon and part[:1].isupper()
    return name, prefix


def _read_name(part: str) -> str:
    """``value_quantity`` → ``value-quantity``; ``_last_updated`` → ``_lastUpdated``."""
    if not part.startswith("_"):
        return part.replace("_", "-")
    first, *others = part[1:].split("_")
    return "_" + first + "".join(each[:1].upper() + each[1:] for each in others)


def _flatten(
    named: Iterable[tuple[str, str, object]],
) -> Iterator[tuple[str, str]]:
    """Repeat the name for each item of a list."""
    for name, prefix, value in named:
        if not name:
            raise FHIRRequestError("A search parameter has no name.")
        is_one = isinstance(value, AnyOf) or not isinstance(value, (list, tuple))
        values = [value] if is_one else list(value)  # type: ignore[call-overload]
        if not values:
            raise FHIRRequestError(f'The search parameter "{name}" has no value.')
        for item in values:
            yield name, _format(name, prefix, item)


def _format(name: str, prefix: str, value: object) -> str:
    if prefix and isinstance(value, AnyOf) and value:
        return ",".join(_format(name, prefix, item) for item in value)
    try:
        return prefix + format_value(value)
    except FHIRRequestError as exc:
        raise FHIRRequestError(f'The search parameter "{name}" has {exc}.') from None

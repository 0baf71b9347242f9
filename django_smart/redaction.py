"""
Keeps secrets and patient data out of logs and error reports.

Importing this module needs no settings, because servers configure logging before
Django is set up.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import ItemsView, Mapping
from copy import copy
from functools import lru_cache
from types import FrameType, FunctionType, ModuleType
from typing import Any, cast

from django.apps import apps
from django.conf import settings
from django.db.models import Model
from django.http import HttpRequest, QueryDict
from django.template.defaultfilters import pprint
from django.urls import get_script_prefix, get_urlconf, reverse
from django.views.debug import ExceptionReporter, SafeExceptionReporterFilter

from .conf import conf

__all__ = [
    "HIDDEN",
    "PARAMETERS",
    "RedactionFilter",
    "SMARTExceptionReporter",
    "SMARTExceptionReporterFilter",
    "get_protocol_paths",
    "hide_parameters",
    "redact",
]

HIDDEN = "[hidden]"

#: OAuth and SMART App Launch parameters whose values are secret.
PARAMETERS = frozenset(
    {
        "access_token",
        "assertion",
        "client_assertion",
        "client_secret",
        "code",
        "code_verifier",
        "id_token",
        "id_token_hint",
        "launch",
        "nonce",
        "refresh_token",
        "registration_access_token",
        "state",
        "token",
    }
)
# Longest first: "code" is a prefix of "code_verifier".
_NAMES = "|".join(sorted(PARAMETERS, key=len, reverse=True))
# Where a name begins: not within a word, but after "?", "&" and what these become in a
# URL within a URL and in JSON.
_START = r"(?:(?<![\w-])|(?<=%26)|(?<=%3F)|(?<=%2526)|(?<=%253F)|(?<=u0026)|(?<=u003f))"
# The rest of a text up to the quotation mark that began it.
_TO_QUOTE = r"(?:(?!(?P=quote))(?:\\.|.))*"
# JSON within JSON within JSON, but no deeper: a limit keeps this linear.
_ESCAPES = r"\\{0,8}"
_QUOTE = rf"(?P<quote>{_ESCAPES}[\"'])"
_BYTES = rf"(?:b(?={_ESCAPES}[\"']))?"
# In a list, what comes before its last item.  Possessive: a backslash can be read in
# two ways, and trying both for each would never end.
_ITEMS = (
    rf"(?(many)(?:(?P<mark_of_item>{_ESCAPES}[\"'])"
    rf"(?:(?!(?P=mark_of_item))(?:\\.|.))*+(?P=mark_of_item),\s*{_BYTES})*)"
)
_FLAGS = re.IGNORECASE | re.DOTALL

_RULES = (
    # ?code=…&state=…, code%3D…%26state%3D…, client_secret='…'
    re.compile(
        rf"(?P<kept>{_START}(?:{_NAMES})(?:=|%(?:25)*3D){_BYTES})"
        rf"(?:{_QUOTE}{_TO_QUOTE}|(?:(?!%(?:25)*26)[^\s&\"'<>\\])+)",
        _FLAGS,
    ),
    # {"access_token": "…"}, {'code': ['…', '…']}, ('code', '…')
    re.compile(
        rf"(?P<kept>(?P<mark>{_ESCAPES}[\"'])(?:{_NAMES})(?P=mark)"
        rf"\s*:\s*(?P<many>[\[(]\s*)?{_BYTES}"
        rf"|\((?P<mark_of_pair>[\"'])(?:{_NAMES})(?P=mark_of_pair),\s*{_BYTES})"
        rf"{_ITEMS}{_QUOTE}{_TO_QUOTE}",
        _FLAGS,
    ),
    # Authorization: Bearer …, {'Authorization': 'Basic …'}
    re.compile(
        rf"(?P<kept>authorization{_ESCAPES}[\"']?\s*[:=,]\s*"
        rf"(?:[\[(](?=b?[\"']))?{_BYTES}{_ESCAPES}[\"']?"
        r"(?:(?:basic|bearer|digest|dpop|negotiate|token)\s+)?)"
        r"[^\s\"'\\,]+",
        _FLAGS,
    ),
    re.compile(r"(?P<kept>\b(?:basic|bearer|dpop)\s+)[\w+/=.~-]{20,}", _FLAGS),
    # Cookie: …, Set-Cookie: …, {'HTTP_COOKIE': '…'}
    re.compile(
        rf"(?P<kept>(?:\b|HTTP_)cookie{_ESCAPES}[\"']?\s*:\s*"
        rf"{_BYTES}{_ESCAPES}[\"']?)[^\s\"'\\][^\"'\r\n]*",
        _FLAGS,
    ),
    # https://user:password@host
    re.compile(r"(?P<kept>://[^\s/@:\"'<>]*:)[^\s/@\"'<>]+(?=@)", _FLAGS),
    # A signed JWT anywhere.  The end of its characters is searched once, from the
    # start.
    re.compile(
        r"(?P<kept>(?<![\w-])(?=[\w-]{11,}+\.[\w-]{8})(?:[\w-]*?-)??)"
        r"eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)*"
    ),
)
# Every match of a rule or path contains one of these, which are fast to search for.
_HINTS = (
    *("assertion", "code", "launch", "nonce", "secret", "state", "token"),
    *("authorization", "basic", "bearer", "dpop", "cookie", "@", "eyj", "callback"),
)


def redact(text: str) -> str:
    """
    Return *text* with every secret of a launch replaced by ``[hidden]``.

    Queries of launch and callback URLs are removed completely.  Elsewhere, this hides
    the values of :data:`PARAMETERS` (in queries, forms, JSON and Python's ``repr``), of
    ``Authorization`` and cookies, passwords in URLs, and signed JWTs.
    """
    lowered = text.lower()
    if not any(hint in lowered for hint in _HINTS):
        return text
    for path in get_protocol_paths():
        text = _query_of(path).sub(rf"\g<kept>{HIDDEN}", text)
    for rule in _RULES:
        text = rule.sub(_hide, text)
    return text


def get_protocol_paths() -> tuple[str, ...]:
    """
    Return the paths whose queries contain secrets, without the site's prefix.

    Empty until Django and the URLconf are loaded: a log line must not load them.
    """
    if not apps.ready:
        return ()
    urlconf = get_urlconf() or settings.ROOT_URLCONF
    try:
        return _find_paths(urlconf) if urlconf in sys.modules else ()
    except Exception:  # noqa: BLE001 (a URLconf can fail in any way; Django tells)
        return ()


@lru_cache(maxsize=16)
def _find_paths(urlconf: str) -> tuple[str, ...]:
    prefix = get_script_prefix()
    return tuple(
        "/" + reverse(f"django_smart:{name}", urlconf=urlconf).removeprefix(prefix)
        for name in ("callback", "launch")
    )


@lru_cache(maxsize=32)
def _query_of(path: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<kept>{re.escape(path.rstrip('/'))}/?\?)[^\s\"'<>]+")


def _hide(match: re.Match[str]) -> str:
    quote = match.groupdict().get("quote") or ""
    return f"{match['kept']}{quote}{HIDDEN}"


# Attributes that every record has: names, places and times.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class RedactionFilter(logging.Filter):
    """
    Removes secrets from each record; no record is dropped.

    Put it on handlers: a filter of a logger does not see records of the loggers below
    it. Message, arguments, traceback and other string attributes are redacted with
    :func:`~django_smart.redaction.redact`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact *record* in place."""
        record.args = _redact_arguments(record.args)
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 (logging itself would print the arguments)
            message = f"{record.msg!r} with {record.args!r}"
            record.msg, record.args = message, None
        redacted = redact(message)
        if redacted != message:
            # Values that become text only now, such as exceptions and requests.
            record.msg, record.args = redacted, None
        _redact_traceback(record)
        for name, value in vars(record).items():
            if name not in _STANDARD and isinstance(value, str):
                setattr(record, name, redact(value))
        return True


def _redact_arguments(arguments: Any) -> Any:
    """Keep the type: formatters of access logs look into the arguments."""
    if isinstance(arguments, tuple):
        return tuple(
            redact(value) if type(value) is str else value for value in arguments
        )
    if isinstance(arguments, Mapping):
        # A copy of another mapping may be read-only, or share the caller's values.
        is_dict = isinstance(arguments, dict)
        redacted: Any = copy(arguments) if is_dict else dict(arguments)
        for name, value in arguments.items():
            if type(value) is str:
                redacted[name] = redact(value)
        return redacted
    return arguments


def _redact_traceback(record: logging.LogRecord) -> None:
    text = record.exc_text
    if not text and isinstance(record.exc_info, tuple) and record.exc_info[1]:
        text = logging.Formatter().formatException(record.exc_info)
    if text and (redacted := redact(text)) != text:
        # Formatters use it instead of the exception.
        record.exc_text = redacted
    if record.stack_info:
        record.stack_info = redact(record.stack_info)


_PACKAGE = __name__.partition(".")[0]
# They call the site's own code, whose variables are the site's.
_AROUND = frozenset(
    f"{_PACKAGE}.{name}"
    for name in ("decorators", "launches.prefix", "middleware", "mixins")
)
_QUERIES = ("QUERY_STRING", "RAW_URI", "REQUEST_URI")
_SECRET_NAME = re.compile(
    "assertion|authori[sz]ation|bearer|cookie|credential|nonce|pass(word|phrase)|"
    "private_key|secret|token|verifier",
    re.IGNORECASE,
)


class SMARTExceptionReporterFilter(SafeExceptionReporterFilter):
    """
    Django's filter, extended for launches.

    Private requests are those of a launch and for this package's URLs. Their queries,
    forms and files are hidden, and variables are replaced by their types, as they are
    in code of this package and the code that it calls. Elsewhere, this hides variables
    that are named like secrets or contain FHIR resources. This package's parameters,
    cookies and settings are hidden everywhere.

    It is also active under ``DEBUG``, because debug pages are copied into tickets.
    """

    def is_active(self, request: HttpRequest | None) -> bool:
        """Return true; Django's own filter is off under ``DEBUG``."""
        return True

    def cleanse_setting(self, key: Any, value: Any) -> Any:
        """Extend Django's: also redact passwords in URLs and similar values."""
        cleansed = super().cleanse_setting(key, value)
        return redact(cleansed) if isinstance(cleansed, str) else cleansed

    def get_safe_request_meta(self, request: Any) -> dict[str, Any]:
        """Extend Django's: remove the queries of private requests."""
        meta: dict[str, Any] = super().get_safe_request_meta(request)
        if _is_private(request):
            for name in (*_QUERIES, "HTTP_REFERER"):
                if meta.get(name):
                    meta[name] = self.cleansed_substitute
        return meta

    def get_safe_cookies(self, request: Any) -> dict[str, Any]:
        """Extend Django's: remove the cookies that bind launches."""
        name = conf.SMART_BROWSER_COOKIE_NAME
        cookies: dict[str, Any] = super().get_safe_cookies(request)
        return {
            key: self.cleansed_substitute
            if key.removeprefix("__Host-").startswith(name)
            else value
            for key, value in cookies.items()
        }

    def get_cleansed_multivaluedict(
        self, request: HttpRequest, multivaluedict: QueryDict
    ) -> QueryDict:
        """Extend Django's: hide parameters of OAuth, and all of private requests."""
        cleansed = super().get_cleansed_multivaluedict(request, multivaluedict).copy()
        for name in list(cleansed):
            if name in PARAMETERS or _is_private(request):
                cleansed[name] = self.cleansed_substitute
        return cleansed

    def get_post_parameters(self, request: HttpRequest | None) -> Any:
        """Extend Django's: hide parameters of OAuth, and all of private requests."""
        if request is None:
            return super().get_post_parameters(request)
        cleansed = cast("QueryDict", super().get_post_parameters(request))
        return self.get_cleansed_multivaluedict(request, cleansed)

    def get_get_parameters(self, request: HttpRequest) -> list[tuple[str, Any]]:
        """Redact the query of *request*, which Django shows unchanged."""
        return list(self.get_cleansed_multivaluedict(request, request.GET).items())

    def get_traceback_frame_variables(
        self, request: Any, tb_frame: FrameType
    ) -> ItemsView[str, Any]:
        """Show types instead of a launch's values; else only hide secrets."""
        if _is_private(request) or _is_ours(tb_frame):
            variables = tb_frame.f_locals.items()
            return {name: _describe(value) for name, value in variables}.items()
        cleansed: dict[str, Any] = {}
        for name, value in super().get_traceback_frame_variables(request, tb_frame):
            if name in PARAMETERS or _SECRET_NAME.search(name):
                cleansed[name] = self.cleansed_substitute
                continue
            text = pprint(value)
            is_resource = "resourceType" in text
            cleansed[name] = _describe(value) if is_resource else _Text(redact(text))
        return cleansed.items()


class SMARTExceptionReporter(ExceptionReporter):
    """Django's reporter, with redacted queries and exception messages."""

    def get_traceback_data(self) -> dict[str, Any]:
        """Return the context of the report templates."""
        data: dict[str, Any] = super().get_traceback_data()
        if self.request is not None:
            data["request_insecure_uri"] = redact(data["request_insecure_uri"])
            if isinstance(self.filter, SMARTExceptionReporterFilter):
                if _is_private(self.request):
                    path, *_ = data["request_insecure_uri"].partition("?")
                    data["request_insecure_uri"] = path
                    files = data["request_FILES_items"]
                    data["request_FILES_items"] = [(name, HIDDEN) for name, _ in files]
                data["request_GET_items"] = self.filter.get_get_parameters(self.request)
        for name in ("exception_value", "exception_notes"):
            if name in data:
                # Since Django 6.1, the value is the exception itself.
                data[name] = redact(str(data[name]))
        # One text per exception: the templates compare it with the previous one.
        causes: dict[int, _Text] = {}
        for frame in data["frames"]:
            if (cause := frame.get("exc_cause")) is not None:
                text = causes.setdefault(id(cause), _Text(redact(str(cause))))
                frame["exc_cause"] = text
        return data


def hide_parameters(request: HttpRequest) -> None:
    """
    Remove the query from *request*, for any report about the current error.

    This works for every reporter: they all read ``GET``, ``META`` or the path.
    """
    hidden = QueryDict(mutable=True)
    for name in request.GET:
        hidden[name] = HIDDEN
    hidden._mutable = False
    request.GET = hidden  # type: ignore[assignment]  # WSGI and ASGI let it be set
    for name in _QUERIES:
        if request.META.get(name):
            request.META[name] = hidden.urlencode() if name == _QUERIES[0] else HIDDEN


class _Text:
    """A string that is shown without quotation marks."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _describe(value: Any) -> Any:
    """Describe *value* without revealing it."""
    if value is None or isinstance(value, bool | type | FunctionType | ModuleType):
        return value
    name = type(value).__name__
    if isinstance(value, Model):
        return _Text(f"<{name}, pk {vars(value).get(value._meta.pk.attname)}>")
    if isinstance(value, str | bytes | list | tuple | dict | set | frozenset):
        return _Text(f"<{name} of {len(value)}>")
    return _Text(f"<{name}>")


def _is_private(request: Any) -> bool:
    """
    Return whether *request* has or names a launch, or is for this package's URLs.

    No launch is looked up, and the request need not be resolved.
    """
    smart = getattr(request, "smart", None)
    found = getattr(smart, "__dict__", {}).get("launch")
    if found is not None or getattr(smart, "_key", None):
        return True
    match = getattr(request, "resolver_match", None)
    if match is not None:
        # Sites can use our views, or subclasses, at URLs of their own.
        view = getattr(match.func, "view_class", object)
        return _PACKAGE in match.app_names or any(
            cls.__module__.startswith(f"{_PACKAGE}.views") for cls in view.__mro__
        )
    path = getattr(request, "path_info", "")
    return any(path.endswith(each) for each in get_protocol_paths())


def _is_ours(frame: FrameType) -> bool:
    """Return whether *frame* is in this package, or was called from it."""
    caller: FrameType | None = frame
    while caller is not None:
        module = caller.f_globals.get("__name__") or ""
        if module.startswith(f"{_PACKAGE}.") and module not in _AROUND:
            return True
        caller = caller.f_back
    return False

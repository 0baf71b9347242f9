"""The logging filter: records as Django, gunicorn, uvicorn and careless code make."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import requests
from django.http.request import HttpHeaders
from django.test import RequestFactory
from django.utils.log import ServerFormatter
from gunicorn.glogging import SafeAtoms
from requests.structures import CaseInsensitiveDict

from django_smart.redaction import HIDDEN, RedactionFilter

CODE = "s3cret-code"
URL = f"/elsewhere/?code={CODE}&state=s3cret-state"


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger whose one handler has the filter, and what it writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedactionFilter())
    handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    logger = logging.getLogger("tests.redaction.log")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield logger, stream
    logger.removeHandler(handler)
    logger.propagate = True


def make_record(message: Any, *args: Any, **values: Any) -> logging.LogRecord:
    arguments = args[0] if len(args) == 1 and isinstance(args[0], Mapping) else args
    return logging.makeLogRecord({"msg": message, "args": arguments, **values})


def test_no_record_is_dropped():
    assert RedactionFilter().filter(make_record("anything")) is True


def test_message_without_secrets_keeps_its_template():
    record = make_record("Launch %s failed: %s", 7, "state_unknown")
    RedactionFilter().filter(record)
    assert record.msg == "Launch %s failed: %s"
    assert record.args == (7, "state_unknown")


def test_secrets_in_message_and_arguments_are_hidden(log):
    logger, stream = log
    logger.info(f"code={CODE}")  # noqa: G004 (as careless code does)
    logger.info("to %s (%d)", URL, 5)
    logger.info("%(url)s", {"url": URL})
    logger.info(b"Authorization: Bearer s3cret")
    assert "s3cret" not in stream.getvalue()
    assert stream.getvalue().count(HIDDEN) >= 4
    assert "(5)" in stream.getvalue()


def test_what_only_becomes_a_text_in_the_message_is_hidden(log):
    logger, stream = log
    logger.info("request %s", RequestFactory().get(URL))
    logger.warning("failed: %s", requests.ConnectionError(f"GET {URL} failed"))
    logger.info("took 100%%: %s", [URL])
    assert "s3cret" not in stream.getvalue()
    assert "took 100%: " in stream.getvalue()


def test_traceback_is_redacted_and_stays_readable(log):
    logger, stream = log
    try:
        raise requests.HTTPError(f"400 for https://ehr.example.org{URL}")
    except requests.HTTPError:
        logger.exception("failed")
    text = stream.getvalue()
    assert "s3cret" not in text
    assert "requests.exceptions.HTTPError: 400 for" in text
    assert "Traceback" in text


def test_traceback_without_secrets_is_left_to_the_formatter():
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as exc:
        record = make_record("failed", exc_info=(type(exc), exc, exc.__traceback__))
    RedactionFilter().filter(record)
    assert record.exc_text is None
    assert record.exc_info


def test_stack_and_further_values_are_redacted():
    record = make_record("x", stack_info=f"in {URL}", url=URL, size=5, request=None)
    RedactionFilter().filter(record)
    values = vars(record)
    assert "s3cret" not in f"{record.stack_info}{values['url']}"
    assert (values["size"], values["request"]) == (5, None)


def test_arguments_that_do_not_fit_do_not_reach_stderr(log, capsys):
    logger, stream = log
    logger.info("one %s", URL, "two")
    logger.info("none %s %s", URL)
    assert "s3cret" not in stream.getvalue() + "".join(capsys.readouterr())
    assert stream.getvalue().count("with (") == 2


def test_line_of_runserver(log):
    logger, _ = log
    handler = logger.handlers[0]
    handler.setFormatter(ServerFormatter("{message}", style="{"))
    request_line = f"GET /smart/callback/?code={CODE} HTTP/1.1"
    extra = {"status_code": 302, "server_time": "now"}
    logger.info('"%s" %s %s', request_line, "302", "0", extra=extra)
    text = log[1].getvalue()
    assert "s3cret" not in text
    assert "GET /smart/callback/?" in text


def test_line_of_gunicorn_keeps_what_its_formatters_look_into():
    atoms = SafeAtoms({"r": f"GET {URL}", "q": f"code={CODE}", "s": "302", "B": 5})
    record = make_record("%(r)s %(s)s %(missing)s %({referer}i)s", atoms)
    RedactionFilter().filter(record)
    assert record.getMessage() == (
        f"GET /elsewhere/?code={HIDDEN}&state={HIDDEN} 302 - -"
    )
    assert isinstance(record.args, SafeAtoms)
    assert "s3cret" not in str(dict(record.args))
    # The server's own values are left alone.
    assert atoms["q"] == f"code={CODE}"


def test_arguments_of_uvicorn_keep_their_number():
    record = make_record(
        '%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", URL, "1.1", 302
    )
    RedactionFilter().filter(record)
    assert isinstance(record.args, tuple)
    _, method, path, _, status = record.args
    assert (method, status) == ("GET", 302)
    assert "s3cret" not in str(path)


@pytest.mark.parametrize("kind", [HttpHeaders, MappingProxyType, CaseInsensitiveDict])
def test_mapping_that_is_no_dict_is_redacted_in_a_copy(kind):
    name = "HTTP_AUTHORIZATION" if kind is HttpHeaders else "Authorization"
    token = f"Bearer s3cret{'x' * 20}"
    headers = kind({name: token})
    record = make_record("sent %s", headers)
    RedactionFilter().filter(record)
    assert "s3cret" not in record.getMessage()
    # The request still needs it.
    assert headers["Authorization"] == token

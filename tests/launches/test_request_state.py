"""The state of a request: one for each, also where the middleware did not run."""

from __future__ import annotations

from typing import Any

import pytest
from django.http import HttpResponse
from rest_framework.request import Request

from django_smart.launches.request_state import get_request_state
from django_smart.middleware import SMARTMiddleware


def test_state_is_made_once_for_each_request(rf):
    request = rf.get("/")
    state = get_request_state(request)
    assert get_request_state(request) is state
    assert get_request_state(rf.get("/")) is not state
    assert (state.context, state.prefix, state.browser) == (None, None, None)


@pytest.mark.django_db
def test_middleware_fills_the_state_that_is_there(rf):
    request = rf.get(f"/~{'k' * 22}/page/")
    state = get_request_state(request)
    SMARTMiddleware(lambda request: HttpResponse())(request)
    assert get_request_state(request) is state
    assert state.context is request.smart
    assert state.prefix is not None
    assert state.prefix.key == "k" * 22


def test_wrapped_request_has_the_state_of_the_one_it_wraps(rf):
    request = rf.get("/")
    state = get_request_state(request)
    wrapped: Any = Request(request)
    assert get_request_state(wrapped) is state


def test_misspelled_name_is_refused(rf):
    state: Any = get_request_state(rf.get("/"))
    with pytest.raises(AttributeError):
        state.prefx = None

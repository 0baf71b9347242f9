"""Grants whose access token has ended, and an EHR that answers at a bad moment."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from django_smart.models import ClientRegistration, TokenGrant
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.state import Grant, RefreshToken, new_id


def reload_grant(grant_id: Any) -> TokenGrant:
    """The grant as the database has it."""
    return TokenGrant.objects.select_related("registration__server").get(pk=grant_id)


def expire(grant: TokenGrant, ehr: EHRSimulator) -> TokenGrant:
    """Let the access token end, for us and for the EHR."""
    then = timezone.now() - timedelta(hours=2)
    TokenGrant.objects.filter(pk=grant.pk).update(
        received_at=then,
        expires_at=then + timedelta(hours=1),
        refresh_due_at=then + timedelta(minutes=45),
    )
    ehr.expire_access_tokens()
    ehr.clear_requests()
    return reload_grant(grant.pk)


def make_grants(
    ehr: EHRSimulator, registration: ClientRegistration, number: int, **values: Any
) -> list[int]:
    """
    Due grants that *ehr* knows, without the launches; returns their primary keys.

    The access token of each has ended, a second after that of the one before.
    """
    now = timezone.now()
    scope = "patient/Patient.rs offline_access"
    grants = []
    for offset in range(number):
        known = Grant(
            client_id=registration.client_id,
            user=None,
            patient=None,
            scopes=scope.split(),
            context={},
        )
        token = RefreshToken(value=new_id(), grant=known, expires_at=None)
        ehr.store.refresh_tokens[token.value] = token
        grant = TokenGrant(
            registration=registration,
            is_offline=True,
            scope=scope,
            scope_granted=scope,
            received_at=now - timedelta(hours=2),
            expires_at=now - timedelta(hours=1) + timedelta(seconds=offset),
            refresh_due_at=now - timedelta(hours=1),
            **values,
        )
        grant.set_tokens(access_token=f"ended {offset}", refresh_token=token.value)
        grants.append(grant)
    TokenGrant.objects.bulk_create(grants)
    due = TokenGrant.objects.filter(registration=registration)
    return list(due.order_by("-pk").values_list("pk", flat=True)[:number])[::-1]


def after_answer(
    ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]
) -> None:
    """Do *action* when the token endpoint has answered and we do not know it yet."""
    respond = ehr.wsgi_app.respond

    def respond_and_act(request: Any) -> Any:
        response = respond(request)
        if request.path.endswith("/auth/token"):
            action()
        return response

    monkeypatch.setattr(ehr.wsgi_app, "respond", respond_and_act)

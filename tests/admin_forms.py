"""The admin's addresses, and what its forms send."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Permission, User
from django.urls import reverse


def url_of(model: Any, page: str, *args: Any) -> str:
    return reverse(f"admin:django_smart_{model._meta.model_name}_{page}", args=args)


def grant_permissions(user: User, *codenames: str) -> None:
    found = Permission.objects.filter(codename__in=codenames)
    assert len(found) == len(codenames)
    user.user_permissions.add(*found)


def server_form(**values: Any) -> dict[str, Any]:
    return {
        "name": "Harbour Hospital",
        "slug": "harbour",
        "base_url": "https://ehr.example.org/fhir",
        "preset": "",
        "is_active": "on",
        "turns": "1",
        "authorization_parameters": "{}",
        "nonce_required": "on",
        "authorize_in_frame": "on",
        "frame_origins": "[]",
        "overrides": "{}",
        **values,
    }


def registration_form(**values: Any) -> dict[str, Any]:
    return {
        "client_id": "growth-chart",
        "token_endpoint_auth_method": "client_secret_basic",
        "signing_algorithm": "RS384",
        "ehr_scope": "launch patient/Patient.rs",
        "redirect_uri": "https://app.example.org/smart/callback/",
        "is_ehr_default": "on",
        "is_standalone_default": "on",
        "create_users": "on",
        "user_switch": "ask",
        "is_active": "on",
        **values,
    }


def read_form(page: Any) -> dict[str, Any]:
    """What a browser sends for the form of *page* if nobody types in it."""
    data: dict[str, Any] = {}
    forms = [page.context["adminform"].form]
    for inline in page.context["inline_admin_formsets"]:
        forms += [inline.formset.management_form, *inline.formset.initial_forms]
    for field in (field for form in forms for field in form):
        value = field.value()
        if value is not None and value is not False:
            data[field.html_name] = "on" if value is True else value
        if field.field.show_hidden_initial:
            assert f'name="{field.html_initial_name}"' in page.text
            data[field.html_initial_name] = "" if value is None else value
    return data


def levels_of(response: Any) -> list[str]:
    """Whether each message of a page tells of a success, or warns."""
    return [message.level_tag for message in response.context["messages"]]

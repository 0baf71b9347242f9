"""What the admin pages share: permissions, and how values are shown."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.admin.widgets import AdminTextareaWidget, AdminTextInputWidget
from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist, PermissionDenied
from django.core.paginator import Paginator
from django.db import models, router, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import NoReverseMatch, reverse
from django.utils.functional import Promise, cached_property
from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from ..diagnoses import DIAGNOSES
from ..launches.people import get_own_name
from ..models import Identity, Launch, TokenGrant

__all__ = [
    "EMPTY",
    "AuthorizationAdmin",
    "BaseAdmin",
    "ModelForm",
    "ReadOnlyAdmin",
    "TabularInline",
    "as_code",
    "as_facts",
    "as_list",
]

logger = logging.getLogger(__name__)

EMPTY = "–"
# Columns that pages show under another name.
_SHOWN = frozenset({"id", "scope", "scope_asked", "scope_granted", "user"})
# A list shows at most a hundred pages.  Search or filter to find the other rows.
_MOST_ROWS = 10_000


def as_code(code: str) -> SafeString | str:
    """A code with a link to what it means, or a dash if there is none."""
    if known := DIAGNOSES.get(code):
        return format_html('<a href="{}">{}</a>', known.docs_url, code)
    return code or EMPTY


def as_list(items: Iterable[str | Promise]) -> SafeString | str:
    """A list, or a dash if there is nothing in it."""
    rows = format_html_join("", "<li>{}</li>", ((item,) for item in items))
    return format_html('<ul class="smart-list">{}</ul>', rows) if rows else EMPTY


def as_facts(rows: Iterable[tuple[StrOrPromise, object]]) -> SafeString:
    """A list of names and values."""
    facts = format_html_join("", "<dt>{}</dt><dd>{}</dd>", rows)
    return format_html('<dl class="smart-facts">{}</dl>', facts)


def _as_scopes(scope: str) -> SafeString | str:
    """A scope string, one scope a line."""
    return as_list(format_html("<code>{}</code>", each) for each in scope.split())


if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

    ModelForm = forms.ModelForm[Any]
    TabularInline = admin.TabularInline[Any, Any]
    _ModelAdmin = admin.ModelAdmin[Any]
    _BasePaginator = Paginator[Any]
else:  # Django's classes take type arguments in the stubs alone.
    ModelForm = forms.ModelForm
    TabularInline = admin.TabularInline
    _ModelAdmin = admin.ModelAdmin
    _BasePaginator = Paginator


class _Paginator(_BasePaginator):
    """Count and show only the first rows of a long list."""

    @cached_property
    def count(self) -> int:
        """How many rows there are, or else the limit."""
        rows: Any = self.object_list
        return int(rows[:_MOST_ROWS].count())


class BaseAdmin(_ModelAdmin):
    """Our look, and a permission for actions that change what no form may change."""

    change_form_template = "django_smart/admin/change_form.html"
    empty_value_display = EMPTY
    # Counting a large table is not worth the number.
    show_full_result_count = False
    paginator = _Paginator
    # Other rows can be read, searched and acted on alone.
    is_changeable = True

    formfield_overrides = {
        models.TextField: {"widget": AdminTextareaWidget(attrs={"rows": 3})}
    }

    class Media:
        css = {"all": ("django_smart/admin.css",)}
        js = ("django_smart/admin.js",)

    def formfield_for_dbfield(
        self, db_field: Any, request: HttpRequest, **kwargs: Any
    ) -> Any:
        """Django's, with room for URLs, and with help texts that are no markup."""
        if isinstance(db_field, models.CharField) and (db_field.max_length or 0) >= 500:
            kwargs["widget"] = AdminTextInputWidget(attrs={"class": "vLargeTextField"})
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if field is not None:
            # Django's template marks it as safe: "callback/<callback ID>/".
            field.help_text = escape(field.help_text)
        return field

    def get_admin_url(self, name: str, *args: object) -> str:
        """The URL of a page of this admin, which need not be the default one."""
        return reverse(f"admin:{name}", args=args, current_app=self.admin_site.name)

    def has_change_permission(
        self, request: HttpRequest, obj: models.Model | None = None
    ) -> bool:
        """Whether there is a form: Django's permission, if rows can be changed."""
        return self.is_changeable and super().has_change_permission(request, obj)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whether an action may be run: Django's permission to change the model."""
        return super().has_change_permission(request)

    @staticmethod
    def log_action(request: HttpRequest, rows: Iterable[Any], field: str) -> None:
        """Record in the history of *rows* that an action has changed *field*."""
        user: Any = request.user
        changed = [{"changed": {"fields": [field]}}]
        LogEntry.objects.log_actions(user.pk, rows, CHANGE, changed)

    def tell_result(
        self, request: HttpRequest, number: int, *, done: str, nothing: str
    ) -> None:
        """Say what an action has *done*, with its ``count``, or why it did nothing."""
        if number:
            self.message_user(request, done % {"count": number}, messages.SUCCESS)
        else:
            self.message_user(request, nothing, messages.WARNING)

    def send_task(
        self, request: HttpRequest, name: str, *calls: object, sent: str, unsent: str
    ) -> None:
        """
        Have workers run the task *name* after the transaction, and say so.

        Args:
            calls: an argument for each message; without any, there is one without.
        """

        def send() -> None:
            from .. import tasks  # loads Celery

            try:
                task = getattr(tasks, name)
                for arguments in zip(calls) if calls else ((),):
                    task.apply_async(arguments, retry=False)
            except Exception as exc:  # noqa: BLE001 (any broker, any client library)
                error = type(exc).__name__
                logger.warning("Nothing sent to a worker: no broker (%s)", error)
                self.message_user(request, unsent, messages.WARNING)
            else:
                self.message_user(request, sent, messages.SUCCESS)

        transaction.on_commit(send, using=router.db_for_write(self.model))

    def get_row_actions(self, obj: Any) -> dict[str, StrOrPromise]:
        """Actions with a button on the page of *obj*, with the words on it."""
        return {}

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """With the buttons for those who may run the actions."""
        if obj := context["original"]:
            allowed = self.get_actions(request)
            context["row_actions"] = [
                (name, words)
                for name, words in self.get_row_actions(obj).items()
                if name in allowed
            ]
        return super().render_change_form(request, context, *args, **kwargs)

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Django's, which ignores an action that the user may not run."""
        asked = {*request.POST.getlist("action")}.intersection(self.actions or ())
        if asked - self.get_actions(request).keys():
            raise PermissionDenied
        return super().changelist_view(request, *args, **kwargs)

    def response_action(
        self, request: HttpRequest, queryset: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """
        Django's (6.1 passes more); a button on a row's page leads back there.

        "Select all" means the rows that the page counted.
        """
        if request.POST.get("select_across") == "1":
            pks = list(queryset.values_list("pk", flat=True)[:_MOST_ROWS])
            queryset = queryset.filter(pk__in=pks)
        response = super().response_action(request, queryset, *args, **kwargs)
        if "_row" in request.POST and isinstance(response, HttpResponseRedirect):
            name = f"{self.opts.app_label}_{self.opts.model_name}_change"
            return HttpResponseRedirect(
                self.get_admin_url(name, request.POST[ACTION_CHECKBOX_NAME])
            )
        return response

    def get_obstacle(self, obj: Any) -> StrOrPromise:
        """Why *obj* cannot be deleted yet; empty if it can."""
        return ""

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[Any, Any], set[Any], list[Any]]:
        """Django's, or the obstacles if there are any: it reads all related rows."""
        obstacles = [
            format_html("{}: {}", obj, obstacle)
            for obj in objs
            if (obstacle := self.get_obstacle(obj))
        ]
        if obstacles:
            return [], {}, set(), obstacles
        return super().get_deleted_objects(objs, request)


class ReadOnlyAdmin(BaseAdmin):
    """Rows that launches write, each with a user: millions, at a large site."""

    # The latest first; by time it would be the same order, without an index.
    ordering = ("-pk",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Rows come from launches alone."""
        return False

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Django's, but not for a column that no page shows: it could be guessed."""
        name = lookup.partition("__")[0]
        try:
            name = self.opts.get_field(name).name
        except FieldDoesNotExist:
            pass  # of a filter, or ignored
        else:
            shown = flatten_fieldsets(self.get_fieldsets(request))
            filters = (
                each[0] if isinstance(each, list | tuple) else each
                for each in self.get_list_filter(request)
            )
            if name not in {*_SHOWN, *shown, *self.search_fields, *filters}:
                return False
        return super().lookup_allowed(lookup, value, request)

    def get_search_fields(self, request: HttpRequest) -> list[str]:
        """The columns named by the class, and the name of the user."""
        names = list(super().get_search_fields(request))
        user_model: Any = get_user_model()
        return [*names, f"user__{user_model.USERNAME_FIELD}"]

    @admin.display(description=_("user"), ordering="user")
    def person(self, obj: Identity | Launch | TokenGrant) -> str:
        """By name, since names of accounts that came from an EHR are generated."""
        return get_own_name(obj.user) or str(obj.user or EMPTY)

    @admin.display(description=_("user"))
    def account(self, obj: Identity | Launch | TokenGrant) -> SafeString | str:
        """The same, with a link to the account."""
        if obj.user is None:
            return EMPTY
        opts = obj.user._meta
        name = f"{opts.app_label}_{opts.model_name}_change"
        try:
            url = self.get_admin_url(name, obj.user.pk)
        except NoReverseMatch:
            return self.person(obj)
        return format_html('<a href="{}">{}</a>', url, self.person(obj))


class AuthorizationAdmin(ReadOnlyAdmin):
    """Launches and grants: at which server, and how much was requested and granted."""

    is_changeable = False
    list_select_related = ("registration__server", "user")

    @admin.display(description=_("FHIR server"), ordering="registration__server__name")
    def server(self, obj: Launch | TokenGrant) -> str:
        """The server of its registration."""
        return str(obj.registration.server)

    @admin.display(description=_("scopes"))
    def scopes(self, obj: Launch | TokenGrant) -> SafeString:
        """What was requested and granted, one scope a line."""
        grant = obj if isinstance(obj, TokenGrant) else obj.grant
        rows: list[tuple[StrOrPromise, str]] = [
            (_("requested"), obj.scope_asked),
            (_("granted"), grant.scope_granted if grant is not None else ""),
            (_("requested but not granted"), obj.missing_scope),
        ]
        if isinstance(obj, TokenGrant):
            rows.append((_("after the last refresh"), obj.scope))
        return as_facts((name, _as_scopes(scope)) for name, scope in rows)

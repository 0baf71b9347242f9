"""Mixins for class-based views that require a launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.views.generic import View

from .decorators import smart_required
from .protocol.scopes import ScopeSet

__all__ = ["SMARTRequiredMixin"]


if TYPE_CHECKING:
    _View = View[Any]  # views of every type of response can be mixed with it
else:  # Django's class takes type arguments in the stubs alone.
    _View = View


class SMARTRequiredMixin(_View):
    """
    :func:`~django_smart.decorators.smart_required` for class-based views.

    Attributes:
        smart_scopes: required scopes, as a scope string or ``ScopeSet``.
        smart_context: required context: ``"patient"``, ``"encounter"``, both or
            neither.
    """

    smart_scopes: str | ScopeSet = ""
    smart_context: str | tuple[str, ...] = ()

    def dispatch(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        """Respond with a page if the request's launch is insufficient."""
        require = smart_required(scopes=self.smart_scopes, context=self.smart_context)
        # Of an asynchronous view, this is a coroutine, which Django awaits.
        return require(super().dispatch)(request, *args, **kwargs)

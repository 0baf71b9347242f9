"""Mixins for class-based views that require a launch."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

from asgiref.sync import sync_to_async
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.views.generic import View

from .decorators import get_launch_refusal
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
        if self.view_is_async:
            # Runs in the event loop; Django awaits the returned coroutine.
            later = self._adispatch(request, *args, **kwargs)
            return cast("HttpResponseBase", later)
        refusal = self._refuse(request)
        if refusal is not None:
            return refusal
        return super().dispatch(request, *args, **kwargs)

    async def _adispatch(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        refusal = await sync_to_async(self._refuse)(request)
        if refusal is not None:
            return refusal
        later = super().dispatch(request, *args, **kwargs)
        return await cast("Awaitable[HttpResponseBase]", later)

    def _refuse(self, request: HttpRequest) -> HttpResponseBase | None:
        scopes = self.smart_scopes
        if isinstance(scopes, str):
            scopes = ScopeSet.parse(scopes, strict=True)
        return get_launch_refusal(request, scopes=scopes, context=self.smart_context)

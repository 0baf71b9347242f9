"""What a person sees when the EHR fails a page of the site."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse

from ..exceptions import (
    BearerBoundaryError,
    DiscoveryError,
    FHIRStatusError,
    FHIRUnavailableError,
    MalformedFHIRResponseError,
    ReauthorizationRequiredError,
    RefreshBusyError,
    SMARTError,
    TokenError,
    TransportError,
)
from ..models import Launch
from . import render_error
from .retry import can_pass, connect_again, get_page, try_again

__all__ = ["is_trouble", "render_trouble"]

# Of the EHR's making.  What the code of the page did wrong is left to the site's own
# report of errors.
_TROUBLE = (
    BearerBoundaryError,
    DiscoveryError,
    FHIRStatusError,
    MalformedFHIRResponseError,
    ReauthorizationRequiredError,
    RefreshBusyError,
    TokenError,
    TransportError,
)
_PASSING = (FHIRUnavailableError, RefreshBusyError)


def is_trouble(error: SMARTError) -> bool:
    """Whether *error* is the EHR's, so that a page of ours tells of it best."""
    return isinstance(error, _TROUBLE)


def render_trouble(
    request: HttpRequest, error: SMARTError, launch: Launch
) -> HttpResponse:
    """The page that tells of *error*, which a view met with the grant of *launch*."""
    page = get_page(request)
    if can_pass(error) or isinstance(error, _PASSING):
        retry = try_again(page) if page else None
    else:
        retry = connect_again(launch, next_url=page)
    return render_error(
        request,
        error,
        retry=retry,
        server_name=launch.registration.server.name,
        kind=launch.kind,
    )

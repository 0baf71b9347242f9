"""One header for every page of the site."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse

__all__ = ["CONTENT_SECURITY_POLICY", "ContentSecurityPolicyMiddleware"]

# No ``form-action``: browsers apply it to the redirect that follows a form as well, and
# the form that connects records leads to the EHR.  No ``frame-ancestors``: who may
# frame a page depends on its launch, and SMARTMiddleware says so.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'"
)


class ContentSecurityPolicyMiddleware:
    """Let pages use scripts and styles of this site alone, from files."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Add the policy, unless the view has set one."""
        response = self.get_response(request)
        # Django's own debugging pages are made of inline scripts and styles.
        if not (settings.DEBUG and response.status_code in {404, 500}):
            response.headers.setdefault(
                "Content-Security-Policy", CONTENT_SECURITY_POLICY
            )
        return response

"""What a server says of itself, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..conf import conf
from ..exceptions import SMARTError
from ..models import FHIRServer
from ..protocol.configuration import SMARTConfiguration
from .display import EMPTY, as_list

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = ["show_capabilities", "show_endpoints", "show_methods"]

_ENDPOINTS: dict[str, StrOrPromise] = {
    "authorization_endpoint": _("authorization"),
    "token_endpoint": _("token"),
    "revocation_endpoint": _("revocation"),
    "introspection_endpoint": _("introspection"),
    "registration_endpoint": _("registration"),
    "jwks_uri": _("JWK Set"),
}
# SMART App Launch 2.2, "Conformance", Capabilities.
_CAPABILITIES: dict[str, StrOrPromise] = {
    "launch-ehr": _("launches from the EHR"),
    "launch-standalone": _("launches from this site"),
    "authorize-post": _("authorization requests by POST"),
    "client-public": _("clients without a secret"),
    "client-confidential-symmetric": _("clients with a secret"),
    "client-confidential-asymmetric": _("clients with a signing key"),
    "sso-openid-connect": _("sign-in with its accounts"),
    "context-banner": _("tells whether to show who the patient is"),
    "context-style": _("tells its style"),
    "context-ehr-patient": _("names the patient of an EHR launch"),
    "context-ehr-encounter": _("names the encounter of an EHR launch"),
    "context-standalone-patient": _("lets the patient be chosen"),
    "context-standalone-encounter": _("lets the encounter be chosen"),
    "permission-offline": _("access in the background (offline_access)"),
    "permission-online": _("access until sign-out (online_access)"),
    "permission-patient": _("access to one patient's data"),
    "permission-user": _("access to what the user may see"),
    "permission-v1": _("scopes of version 1"),
    "permission-v2": _("scopes of version 2"),
    "smart-app-state": _("stores state of apps"),
}


def show_endpoints(server: FHIRServer) -> SafeString | str:
    """Its endpoints; those entered by hand are marked."""
    found = _read(server)
    if not isinstance(found, SMARTConfiguration):
        return found
    rows = []
    overrides = server.endpoint_overrides
    for name, words in _ENDPOINTS.items():
        # The column of the JWK Set's URL holds what was discovered, there or in the
        # OpenID configuration.
        url = (server.jwks_uri if name == "jwks_uri" else "") or getattr(found, name)
        if url:
            mark = gettext("(entered by hand)") if name in overrides else ""
            rows.append((words, url, mark))
    return format_html(
        '<dl class="smart-facts">{}</dl>',
        format_html_join("", "<dt>{}</dt><dd><code>{}</code> {}</dd>", rows),
    )


def show_capabilities(server: FHIRServer) -> SafeString | str:
    """What it lists, known names in words and in the specification's order."""
    found = _read(server)
    if not isinstance(found, SMARTConfiguration):
        return EMPTY
    unknown = sorted(found.capabilities - _CAPABILITIES.keys())
    return as_list(
        [
            *(words for name, words in _CAPABILITIES.items() if found.has(name)),
            *unknown,
        ]
    )


def show_methods(server: FHIRServer) -> SafeString | str:
    """How clients authenticate there, with which algorithms, and PKCE."""
    found = _read(server)
    if not isinstance(found, SMARTConfiguration):
        return EMPTY
    methods = found.token_endpoint_auth_methods_supported
    algorithms = found.token_endpoint_auth_signing_alg_values_supported
    lines = [
        gettext("PKCE with S256")
        if found.supports_s256
        else gettext("PKCE with S256 is not advertised")
    ]
    if methods:
        lines.append(", ".join(methods))
    if algorithms:
        lines.append(
            gettext("signed with %(names)s") % {"names": ", ".join(algorithms)}
        )
    if found.missing:
        lines.append(
            gettext("left out, though required: %(names)s")
            % {"names": ", ".join(sorted(found.missing))}
        )
    return as_list(lines)


def _read(server: FHIRServer) -> SMARTConfiguration | str:
    """The stored configuration, or why there is none."""
    if server.configuration is None:
        return gettext("Not asked yet.")
    try:
        return SMARTConfiguration.from_json(
            server.configuration,
            base_url=server.base_url,
            insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
            overrides=server.endpoint_overrides,
        )
    except SMARTError as exc:
        return gettext("What was stored cannot be used: %(why)s") % {"why": exc}

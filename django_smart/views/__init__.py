"""
The protocol's URLs: parse the request, call one flow, choose the response.

All of them answer outside ``ATOMIC_REQUESTS``: a failed launch keeps its row, and no
network call is made inside a transaction.
"""

from __future__ import annotations

from .account import ConnectionsView, LogoutView, OpenConnectionView
from .fhir_proxy import FHIRProxyView
from .health import HealthView
from .jwks import JWKSView
from .launches import CallbackView, DecideView, LaunchView, LoginView

__all__ = [
    "CallbackView",
    "ConnectionsView",
    "DecideView",
    "FHIRProxyView",
    "HealthView",
    "JWKSView",
    "LaunchView",
    "LoginView",
    "LogoutView",
    "OpenConnectionView",
]

"""
The admin: for whoever registers clients, and whoever is asked why a launch failed.

Secrets can be set and never read; tokens, digests and leases are on no page.  Workers
refresh and revoke, so that no page waits for many EHRs; one EHR is asked what it offers
while whoever registers it waits.
"""

from __future__ import annotations

from .grant import TokenGrantAdmin
from .identity import IdentityAdmin
from .key import SigningKeyAdmin
from .launch import LaunchAdmin
from .registration import ClientRegistrationAdmin
from .server import FHIRServerAdmin

__all__ = [
    "ClientRegistrationAdmin",
    "FHIRServerAdmin",
    "IdentityAdmin",
    "LaunchAdmin",
    "SigningKeyAdmin",
    "TokenGrantAdmin",
]
